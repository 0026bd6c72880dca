//! Opening backends, one taking over from another, and removing what the former has made.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Choice, in_turn};
use crate::admission::Admission;
use crate::backend::{Backend, Mode};
use crate::engine::Engine;
use crate::ipvs::{self, Ipvs, Left, Step, Timeouts, Tuning};
use crate::nftables::{self, Nftables};
use crate::sysctls::Sysctls;
use crate::userspace::{self, Relays, Userspace};

/// Node ports answer on 127.0.0.1, from where packets leave with another source only if the kernel lets loopback
/// addresses be routed. A rule of ours keeps others from loopback.
pub(crate) const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";

/// What it takes to open a backend.
pub(crate) struct Openers {
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) service_cidrs: Vec<IpNet>,
    pub(crate) sysctls: Sysctls,
    /// Whether node ports are to answer on 127.0.0.1.
    pub(crate) on_loopback: bool,
    /// Whether ipvs mode keeps links from answering ARP for addresses of others.
    pub(crate) strict_arp: bool,
    /// How long ipvs mode keeps idle connections.
    pub(crate) timeouts: Timeouts,
    /// Threads that relay, once there were any: connections of an earlier userspace mode go on in them.
    pub(crate) relays: Option<Arc<Relays>>,
    /// Who says which client may reach which endpoint, where that is not the kernel.
    pub(crate) admission: Option<Arc<dyn Admission>>,
}

impl Openers {
    /// Opens a backend, or says why this host can not have it.
    fn open(&mut self, mode: Mode) -> Result<Box<dyn Backend>, String> {
        match mode {
            Mode::Nftables => {
                let backend = Nftables::open(&self.cluster_cidrs, &self.service_cidrs).map_err(|error| {
                    format!("{error}; it needs root and a kernel with nf_tables (CONFIG_NF_TABLES, CONFIG_NFT_NAT)")
                })?;
                self.route_loopback();
                Ok(Box::new(backend))
            }
            Mode::Ipvs => {
                let config = ipvs::Config {
                    pod_networks: self.cluster_cidrs.clone(),
                    service_networks: self.service_cidrs.clone(),
                    tuning: self.tuning(),
                    sysctls: Some(self.sysctls.clone()),
                };
                let backend = Ipvs::open(&config).map_err(|error| error.to_string())?;
                Ok(Box::new(backend))
            }
            Mode::Userspace => {
                let relays = match &self.relays {
                    Some(relays) => relays.clone(),
                    None => {
                        let (pods, sysctls) = (&self.cluster_cidrs, self.sysctls.clone());
                        Relays::start(pods, sysctls, self.admission.clone())
                            .map_err(|error| error.to_string())?
                    }
                };
                self.relays = Some(relays.clone());
                let backend = Userspace::open(&relays).map_err(|error| error.to_string())?;
                Ok(Box::new(backend))
            }
        }
    }

    fn tuning(&self) -> Tuning {
        Tuning {
            strict_arp: self.strict_arp,
            timeouts: self.timeouts,
        }
    }

    fn route_loopback(&self) {
        let result = if self.on_loopback {
            self.sysctls.set(Mode::Nftables, ROUTE_LOCALNET, "1")
        } else {
            self.sysctls.restore(Mode::Nftables, &[ROUTE_LOCALNET]).map(drop)
        };
        if let Err(error) = result {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "node ports will not answer on 127.0.0.1 as they should"
            );
        }
    }

    /// Removes what a mode has made and the one that is used does not need. What connections need stays where it can.
    fn clear(&self, mode: Mode, used: Mode, engine: &Engine) -> Result<Left, String> {
        if (mode, used) == (Mode::Ipvs, Mode::Nftables) {
            return self.leave_ipvs(engine);
        }
        let any = self.clear_now(mode, engine)?;
        Ok(if any { Left::Gone } else { Left::Nothing })
    }

    fn leave_ipvs(&self, engine: &Engine) -> Result<Left, String> {
        let Step { left, lost_datagrams } = ipvs::leave().map_err(|error| error.to_string())?;
        if lost_datagrams {
            // The next one goes the new way.
            let keys = engine.desired().map(|frontend| frontend.key);
            nftables::forget(keys).map_err(|error| error.to_string())?;
        }
        if let Left::Waits(_) = left {
            return Ok(left);
        }
        let restored = restore_ipvs(&self.sysctls)?;
        Ok(if restored { Left::Gone } else { left })
    }

    fn clear_now(&self, mode: Mode, engine: &Engine) -> Result<bool, String> {
        match mode {
            Mode::Nftables => {
                let cleared = clear_nftables(&self.sysctls)?;
                if cleared {
                    let keys = engine.desired().map(|frontend| frontend.key);
                    nftables::forget(keys).map_err(|error| error.to_string())?;
                }
                Ok(cleared)
            }
            Mode::Ipvs => clear_ipvs(&self.sysctls),
            // While there are relays, they look after their addresses themselves.
            Mode::Userspace if self.relays.is_some() => Ok(false),
            Mode::Userspace => userspace::cleanup(&self.sysctls).map_err(|error| error.to_string()),
        }
    }
}

/// Removes what the nftables mode has made, and says whether there was anything.
fn clear_nftables(sysctls: &Sysctls) -> Result<bool, String> {
    // While the rule that keeps others from loopback is still there.
    let restored = sysctls
        .restore(Mode::Nftables, &[ROUTE_LOCALNET])
        .map_err(|error| error.to_string())?;
    Ok(nftables::cleanup().map_err(|error| error.to_string())? || restored)
}

/// Removes what the ipvs mode has made, and says whether there was anything.
fn clear_ipvs(sysctls: &Sysctls) -> Result<bool, String> {
    let cleared = ipvs::cleanup().map_err(|error| error.to_string())?;
    let restored = restore_ipvs(sysctls)?;
    Ok(cleared || restored)
}

/// Puts back what the ipvs mode has set, and says whether there was anything.
fn restore_ipvs(sysctls: &Sysctls) -> Result<bool, String> {
    let names = ipvs::SYSCTLS.iter().chain(&ipvs::STRICT_ARP);
    let names: Vec<&'static str> = names.map(|(name, _)| *name).collect();
    let restored = sysctls.restore(Mode::Ipvs, &names);
    let mut restored = restored.map_err(|error| error.to_string())?;
    restored |= ipvs::restore_timeouts(sysctls).map_err(|error| error.to_string())?;
    Ok(restored)
}

/// Removes what every mode has made, and says of which there was anything. Not while a proxy runs.
///
/// # Errors
/// Why something could not be removed; the rest is.
pub fn cleanup(sysctls: &Sysctls) -> Result<Vec<Mode>, String> {
    let (mut cleared, mut failed) = (Vec::new(), Vec::new());
    for mode in Mode::ALL {
        let result = match mode {
            Mode::Nftables => clear_nftables(sysctls),
            Mode::Ipvs => clear_ipvs(sysctls),
            Mode::Userspace => userspace::cleanup(sysctls).map_err(|error| error.to_string()),
        };
        match result {
            Ok(true) => cleared.push(mode),
            Ok(false) => {}
            Err(why) => failed.push(format!("{mode}: {why}")),
        }
    }
    if failed.is_empty() {
        Ok(cleared)
    } else {
        Err(failed.join("; "))
    }
}

/// The mode that there is.
pub(crate) struct Modes {
    openers: Openers,
    choice: Choice,
    /// Modes of which something may be left.
    left: Vec<Mode>,
    /// Connections of ipvs mode go on that this one must not cut.
    leaving: bool,
    /// Why the last step of that failed, if it did.
    leave_failed: Option<String>,
}

impl Modes {
    /// Opens the first backend; nothing is changed yet.
    pub(crate) fn start(mut openers: Openers, asked: Mode) -> Result<(Self, Box<dyn Backend>), String> {
        let mut refused = Vec::new();
        for mode in in_turn(asked) {
            match openers.open(*mode) {
                Ok(backend) => {
                    let choice = Choice {
                        asked,
                        used: *mode,
                        refused,
                    };
                    let left = Mode::ALL.into_iter().filter(|other| other != mode).collect();
                    tell(&choice);
                    return Ok((
                        Self {
                            openers,
                            choice,
                            left,
                            leaving: false,
                            leave_failed: None,
                        },
                        backend,
                    ));
                }
                Err(why) => refused.push((*mode, why)),
            }
        }
        let reasons: Vec<String> = refused
            .iter()
            .map(|(mode, why)| format!("{mode}: {why}"))
            .collect();
        Err(reasons.join("; "))
    }

    /// Whether ipvs mode keeps links from answering ARP for addresses of others, and how long it keeps idle connections.
    pub(crate) fn tune(&mut self, strict_arp: bool, timeouts: Timeouts, engine: &mut Engine) {
        (self.openers.strict_arp, self.openers.timeouts) = (strict_arp, timeouts);
        engine.tune(&self.openers.tuning());
    }

    /// Whether node ports are to answer on 127.0.0.1.
    pub(crate) fn node_ports_on_loopback(&mut self, wanted: bool) {
        if self.openers.on_loopback != wanted {
            self.openers.on_loopback = wanted;
            if self.choice.used == Mode::Nftables {
                self.openers.route_loopback();
            }
        }
    }

    pub(crate) fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Has the mode that is asked for take over, or the next that is possible. Whether it is another than before.
    pub(crate) fn switch(&mut self, asked: Mode, engine: &mut Engine) -> bool {
        if asked == self.choice.asked {
            return false;
        }
        let mut refused = Vec::new();
        for mode in in_turn(asked) {
            let former = self.choice.used;
            if *mode != former {
                let taken = self
                    .openers
                    .open(*mode)
                    .and_then(|backend| engine.switch(backend).map_err(|error| error.to_string()));
                match taken {
                    Ok(backend) => drop(backend),
                    Err(why) => {
                        // It may have got half way.
                        self.left.push(*mode);
                        refused.push((*mode, why));
                        continue;
                    }
                }
                self.left.retain(|left| left != mode);
                self.left.push(former);
                if std::mem::take(&mut self.leaving) && *mode != Mode::Ipvs {
                    self.left.push(Mode::Ipvs);
                }
                tracing::info!(from = %former, to = %mode, "proxy mode changed");
            }
            self.choice = Choice {
                asked,
                used: *mode,
                refused,
            };
            tell(&self.choice);
            return *mode != former;
        }
        self.choice.refused = refused;
        tracing::error!(%asked, used = %self.choice.used, "no mode takes over, the former one stays");
        false
    }

    /// Removes what other modes have left. To be called when the mode that there is has everything in force.
    pub(crate) fn clear(&mut self, engine: &Engine) {
        for mode in std::mem::take(&mut self.left) {
            if mode == self.choice.used {
                continue;
            }
            match self.openers.clear(mode, self.choice.used, engine) {
                Ok(Left::Gone) => tracing::info!(%mode, "what another proxy mode had made is removed"),
                Ok(Left::Nothing) => {}
                Ok(Left::Waits(services)) => {
                    tracing::info!(%mode, services, "open connections of another proxy mode are kept until they end");
                    self.leaving = true;
                }
                // A kernel that does not know of a mode can not be asked about it either.
                Err(reason) => tracing::debug!(%mode, reason, "what another proxy mode had made may be left"),
            }
        }
    }
}

impl Modes {
    /// Whether [`Self::leave`] has something to do.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Removes what connections of ipvs mode do not need any more. To be called now and then.
    pub(crate) fn leave(&mut self, engine: &Engine) {
        match self.openers.clear(Mode::Ipvs, self.choice.used, engine) {
            Ok(left) => {
                if self.leave_failed.take().is_some() {
                    tracing::info!(mode = %Mode::Ipvs, "looking after its open connections works again");
                }
                if !matches!(left, Left::Waits(_)) {
                    self.leaving = false;
                    tracing::info!(mode = %Mode::Ipvs, "its last connection has ended, what it had made is removed");
                }
            }
            Err(reason) => {
                if self.leave_failed.as_ref() != Some(&reason) {
                    tracing::warn!(
                        mode = %Mode::Ipvs, reason,
                        "can not look after its open connections, trying again"
                    );
                }
                self.leave_failed = Some(reason);
            }
        }
    }
}

fn tell(choice: &Choice) {
    if choice.asked != choice.used {
        tracing::warn!(
            asked = %choice.asked, used = %choice.used, reason = %choice,
            "this host can not have the proxy mode that is asked for"
        );
    }
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;
