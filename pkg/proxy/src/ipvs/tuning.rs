//! Settings of the kernel that belong to no frontend: who answers ARP, and how long IPVS keeps idle connections
//! (`ipvs.strictARP`, `ipvs.tcpTimeout`, `tcpFinTimeout` and `udpTimeout` of kube-proxy's configuration).
//!
//! What they were before is written down with the kernel parameters (`crate::sysctls`), and put back when nobody asks for
//! another value any more.

use std::fmt;

use serde::{Deserialize, Serialize};
use svcnet_api::types::GoDuration;
use svcnet_netlink::ipvs as kernel;
use svcnet_netlink::sysctl;

use super::{Error, Ipvs, STRICT_ARP, SYSCTLS};
use crate::backend::Mode;
use crate::sysctls::Sysctls;

/// Under which name the timeouts are written down, among the kernel parameters as they were.
pub const NOTE: &str = "ipvs/timeouts";
/// Longest that the kernel takes, in seconds: it counts in jiffies, of which there are at most a thousand a second.
const SECONDS_MAX: u64 = (i32::MAX / 1000) as u64;

/// How long idle connections are kept, in seconds; zero is as the kernel has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// Established TCP.
    pub tcp: u32,
    /// TCP after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// Why a timeout is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTimeout {
    /// It can not be read.
    #[error("{0:?} is no duration, which is like 15m or 1h30m0s")]
    NoDuration(String),
    /// It is less than nothing.
    #[error("{0:?}: must be greater than or equal to 0")]
    Negative(String),
    /// The kernel would not take it.
    #[error("{0:?}: must be at most {SECONDS_MAX} s")]
    TooLong(String),
}

impl Timeouts {
    /// Whole seconds of a duration as Go writes it; what is left of one is cut off, as kube-proxy does.
    ///
    /// # Errors
    /// When it is none, or not one for a timeout.
    pub fn seconds(text: &str) -> Result<u32, BadTimeout> {
        let duration: GoDuration = text.parse().map_err(|_| BadTimeout::NoDuration(text.into()))?;
        let duration = duration
            .positive()
            .ok_or_else(|| BadTimeout::Negative(text.into()))?;
        let seconds = Some(duration.as_secs()).filter(|seconds| *seconds <= SECONDS_MAX);
        let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
        seconds.ok_or_else(|| BadTimeout::TooLong(text.into()))
    }

    fn or(self, other: kernel::Timeouts) -> kernel::Timeouts {
        let pick = |wanted, is| if wanted == 0 { is } else { wanted };
        kernel::Timeouts {
            tcp: pick(self.tcp, other.tcp),
            tcp_fin: pick(self.tcp_fin, other.tcp_fin),
            udp: pick(self.udp, other.udp),
        }
    }
}

/// What is to be set of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tuning {
    /// Keep links from answering ARP for addresses of others.
    pub strict_arp: bool,
    /// How long idle connections are kept.
    pub timeouts: Timeouts,
}

/// Timeouts to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetTimeouts {
    /// What they will be.
    pub to: kernel::Timeouts,
    /// What they were before anybody asked for others, to be put back one day; nothing when that is done by this.
    pub former: Option<kernel::Timeouts>,
}

impl fmt::Display for SetTimeouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel::Timeouts { tcp, tcp_fin, udp } = self.to;
        write!(f, "timeouts tcp {tcp} s, tcpfin {tcp_fin} s, udp {udp} s")
    }
}

impl SetTimeouts {
    /// What is to be set for `wanted`, if anything; `noted` is what was before others were asked for.
    fn plan(wanted: Timeouts, is: kernel::Timeouts, noted: Option<kernel::Timeouts>) -> Option<Self> {
        let before = noted.unwrap_or(is);
        let to = wanted.or(before);
        let former = (wanted != Timeouts::default()).then_some(before);
        // A note that nothing needs goes too.
        (to != is || (noted.is_some() && former.is_none())).then_some(Self { to, former })
    }

    /// Sets them.
    pub(super) fn apply(self, socket: &mut kernel::Socket, sysctls: Option<&Sysctls>) -> Result<(), Error> {
        if let (Some(sysctls), Some(former)) = (sysctls, self.former) {
            sysctls.note(NOTE, &words(former))?;
        }
        socket.set_timeouts(self.to)?;
        if let (Some(sysctls), None) = (sysctls, self.former) {
            sysctls.strike(NOTE)?;
        }
        Ok(())
    }
}

fn words(timeouts: kernel::Timeouts) -> String {
    format!("{} {} {}", timeouts.tcp, timeouts.tcp_fin, timeouts.udp)
}

fn noted(sysctls: &Sysctls) -> Option<kernel::Timeouts> {
    read_words(sysctls.former().get(NOTE)?)
}

fn read_words(words: &str) -> Option<kernel::Timeouts> {
    let mut numbers = words.split(' ').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(kernel::Timeouts {
        tcp: next()?,
        tcp_fin: next()?,
        udp: next()?,
    })
}

/// Puts timeouts back to what they were, and says whether that changed any.
///
/// # Errors
/// When the kernel refuses, or the file can not be written.
pub(crate) fn restore(sysctls: &Sysctls) -> Result<bool, Error> {
    let (Some(former), Some(mut socket)) = (noted(sysctls), kernel::Socket::open()?) else {
        return Ok(false);
    };
    let is = socket.timeouts()?;
    if let Some(set) = SetTimeouts::plan(Timeouts::default(), is, Some(former)) {
        set.apply(&mut socket, Some(sysctls))?;
    }
    Ok(is != former)
}

/// Sets the timeouts to what was written down of them under [`NOTE`]. A kernel without IPVS has none, and words of somebody
/// else's say nothing.
///
/// # Errors
/// When the kernel refuses.
pub fn put_back_timeouts(words: &str) -> Result<(), Error> {
    if let (Some(former), Some(mut socket)) = (read_words(words), kernel::Socket::open()?) {
        socket.set_timeouts(former)?;
    }
    Ok(())
}

impl Ipvs {
    /// The kernel parameters that are not as they should be.
    pub(super) fn wrong_sysctls(&self) -> Result<Vec<(&'static str, &'static str)>, Error> {
        let strict = if self.tuning.strict_arp {
            &STRICT_ARP[..]
        } else {
            &[]
        };
        let mut wrong = Vec::new();
        for (name, value) in SYSCTLS.iter().chain(strict) {
            if sysctl::read(name)? != *value {
                wrong.push((*name, *value));
            }
        }
        Ok(wrong)
    }

    /// The kernel parameters that are to be as they were.
    pub(super) fn needless_sysctls(&self) -> Vec<&'static str> {
        match &self.sysctls {
            Some(sysctls) if !self.tuning.strict_arp => {
                sysctls.needless(STRICT_ARP.iter().map(|(name, _)| *name))
            }
            _ => Vec::new(),
        }
    }

    /// Tells others that need the same what this mode needs.
    pub(super) fn claim_sysctls(&self) {
        if let Some(sysctls) = &self.sysctls {
            sysctls.need(
                Mode::Ipvs,
                STRICT_ARP.map(|(name, _)| name),
                self.tuning.strict_arp,
            );
        }
    }

    /// The timeouts to set, if they are not as they should be.
    pub(super) fn wrong_timeouts(&mut self) -> Result<Option<SetTimeouts>, Error> {
        let is = self.kernel.balancer.timeouts()?;
        let noted = self.sysctls.as_ref().and_then(noted);
        Ok(SetTimeouts::plan(self.tuning.timeouts, is, noted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_they_were_written_down() {
        let timeouts = kernel::Timeouts {
            tcp: 900,
            tcp_fin: 120,
            udp: 300,
        };
        assert_eq!(read_words(&words(timeouts)), Some(timeouts));
        for words in ["", "900 120", "900 120 x", "900s 120s 300s"] {
            assert_eq!(read_words(words), None, "{words}");
        }
    }

    #[test]
    fn timeouts_are_durations_as_kube_proxy_takes_them() {
        for (text, seconds) in [
            ("0s", 0),
            ("0", 0),
            ("900s", 900),
            ("15m0s", 900),
            ("1h1.5m", 3690),
            ("1500ms", 1),
            ("+1m", 60),
            ("-0s", 0),
        ] {
            assert_eq!(Timeouts::seconds(text), Ok(seconds), "{text}");
        }
        for text in ["", "15", "1x", "s", "1s2", "soon", "1.2.3s"] {
            let error = Timeouts::seconds(text).unwrap_err();
            assert!(error.to_string().contains("no duration"), "{text}: {error}");
        }
        assert_eq!(
            Timeouts::seconds("-5s").unwrap_err().to_string(),
            "\"-5s\": must be greater than or equal to 0"
        );
        assert_eq!(
            Timeouts::seconds("10000h").unwrap_err(),
            BadTimeout::TooLong("10000h".into())
        );
    }

    #[test]
    fn what_was_before_comes_back() {
        let before = kernel::Timeouts {
            tcp: 900,
            tcp_fin: 120,
            udp: 300,
        };
        let nothing = Timeouts::default();
        assert_eq!(SetTimeouts::plan(nothing, before, None), None);
        let wanted = Timeouts { udp: 60, ..nothing };
        let changed = kernel::Timeouts { udp: 60, ..before };
        let set = SetTimeouts::plan(wanted, before, None).unwrap();
        assert_eq!((set.to, set.former), (changed, Some(before)));
        assert_eq!(SetTimeouts::plan(wanted, changed, Some(before)), None, "it is so");
        let other = Timeouts { tcp: 60, ..nothing };
        let set = SetTimeouts::plan(other, changed, Some(before)).unwrap();
        assert_eq!(
            set.to,
            kernel::Timeouts { tcp: 60, ..before },
            "the other is put back"
        );
        let set = SetTimeouts::plan(nothing, changed, Some(before)).unwrap();
        assert_eq!((set.to, set.former), (before, None));
        let struck = SetTimeouts::plan(nothing, before, Some(before)).unwrap();
        assert_eq!(struck.former, None, "the note goes");
    }
}
