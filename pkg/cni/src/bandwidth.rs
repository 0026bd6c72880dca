//! How fast a container may be (the capability `bandwidth`): a token bucket on the node's end of its link for what goes to
//! it, and for what comes from it one on an `ifb` link of its own, where it waits rather than being lost.
//!
//! Both are what common kernels have: `matchall` and `police` often lack, so a `u32` filter sends packets to the `ifb`
//! link, and a queue loses less than a policer.

use svcnet_netlink::qdisc::TokenBucket;
use svcnet_netlink::{Rtnl, rt};

use crate::link::{hash_of, host_name};
use crate::protocol::{Attachment, Bandwidth, Rate};

/// Beginning of the names of our `ifb` links.
const IFB_PREFIX: &str = "ifb";
/// An Ethernet header, and what a tag may add.
const FRAME_EXTRA: u64 = 22;

/// The link that what comes from a container takes a detour over.
pub fn ifb_name(attachment: &Attachment) -> String {
    format!("{IFB_PREFIX}{}", hash_of(attachment))
}

/// Whether a link's name is one of [`ifb_name`]'s; for cleaning up.
pub fn is_ifb_name(name: &str) -> bool {
    name.strip_prefix(IFB_PREFIX).is_some_and(crate::link::is_hash)
}

/// The bucket of a rate. A burst below one packet would let nothing through; one of more than a second is for none:
/// runtimes that have nothing to say about it (containerd) ask for 512 MB.
fn bucket(rate: Rate, mtu: u32) -> TokenBucket {
    let rate_bytes = (rate.rate_bits / 8).max(1);
    let least = u64::from(mtu) + FRAME_EXTRA;
    let burst = (rate.burst_bits / 8).min(rate_bytes).max(least);
    TokenBucket {
        rate_bytes,
        burst_bytes: u32::try_from(burst).unwrap_or(u32::MAX),
    }
}

/// Limits an attachment whose link has just been made.
///
/// # Errors
/// When the kernel refuses, or lacks token buckets or `ifb`. Then [`delete`] takes away what was made.
pub fn apply(
    rt: &mut Rtnl,
    attachment: &Attachment,
    bandwidth: &Bandwidth,
    mtu: u32,
) -> Result<(), rt::Error> {
    if bandwidth.is_unlimited() {
        return Ok(());
    }
    let Some(link) = rt.link(&host_name(attachment))? else {
        return Ok(());
    };
    if let Some(rate) = bandwidth.ingress {
        rt.limit_link(link.index, bucket(rate, mtu))?;
    }
    if let Some(rate) = bandwidth.egress {
        let name = ifb_name(attachment);
        // An unfinished ADD may have left it.
        rt.delete_link_named(&name)?;
        rt.add_ifb(&name, mtu)?;
        if let Some(ifb) = rt.link(&name)? {
            rt.limit_link(ifb.index, bucket(rate, mtu))?;
            rt.redirect_ingress(link.index, ifb.index)?;
        }
    }
    Ok(())
}

/// Takes the detour away; that there is none is fine. The bucket on the container's link goes with it.
///
/// # Errors
/// When the kernel refuses.
pub fn delete(rt: &mut Rtnl, attachment: &Attachment) -> Result<(), rt::Error> {
    let name = ifb_name(attachment);
    match rt.link(&name)? {
        Some(link) => rt.delete_link(link.index),
        None => Ok(()),
    }
}

/// What of the limits is not as it was made, in words.
///
/// # Errors
/// When the kernel does not answer.
pub fn check(
    rt: &mut Rtnl,
    attachment: &Attachment,
    bandwidth: &Bandwidth,
    mtu: u32,
) -> Result<Vec<String>, rt::Error> {
    let ends = [
        (bandwidth.ingress, host_name(attachment), "to"),
        (bandwidth.egress, ifb_name(attachment), "from"),
    ];
    let mut wrong = Vec::new();
    for (rate, name, way) in ends {
        let Some(rate) = rate else { continue };
        let wanted = bucket(rate, mtu).rate_bytes;
        let qdiscs = match rt.link(&name)? {
            Some(link) => rt.qdiscs(link.index)?,
            None => Vec::new(),
        };
        if !qdiscs.iter().any(|q| q.root && q.rate_bytes == Some(wanted)) {
            let bits = wanted.saturating_mul(8);
            wrong.push(format!(
                "what goes {way} the container is not limited to {bits} bits a second on link {name}"
            ));
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_lie_between_a_packet_and_a_second() {
        let burst = |rate_bits, burst_bits| {
            bucket(
                Rate {
                    rate_bits,
                    burst_bits,
                },
                1450,
            )
        };
        assert_eq!(
            burst(8_000_000, 4_000_000),
            TokenBucket {
                rate_bytes: 1_000_000,
                burst_bytes: 500_000
            }
        );
        assert_eq!(burst(8_000_000, u64::from(u32::MAX)).burst_bytes, 1_000_000);
        assert_eq!(burst(8_000_000, 8).burst_bytes, 1472);
        assert_eq!(burst(8_000, 8_000_000).burst_bytes, 1472);
        assert_eq!(burst(1, 1).rate_bytes, 1);
    }

    #[test]
    fn names_of_detours_are_told_from_others() {
        let name = ifb_name(&Attachment::new("c1", "eth0").unwrap());
        assert!(is_ifb_name(&name), "{name}");
        assert!(name.parse::<svcnet_api::types::IfName>().is_ok());
        assert!(!is_ifb_name("ifb0") && !is_ifb_name("ifb-of-another"));
    }
}
