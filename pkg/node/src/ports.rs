//! Ports that programs of this machine listen on, which Services are not to be given: a node port takes the packets before
//! the program does, on this machine alone. The Node tells them in an annotation; the allocator stays away from them.

use std::collections::BTreeSet;
use std::time::Duration;

use svcnet_netlink::listeners::{self, Listener, Protocol};

/// How often is looked.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Lower ones are no node ports, and belong to the system's services.
const PORT_MIN: u16 = 1024;
/// The range that the kernel itself picks from: datagram sockets there come and go with each question that is asked.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Numbers told at most: an annotation is no place for a port scan.
const TOLD_MAX: usize = 1000;

/// What the annotation is to say, or why it cannot be known.
pub(crate) fn look() -> Result<String, listeners::Error> {
    let all = listeners::list()?;
    let range = std::fs::read_to_string(EPHEMERAL).unwrap_or_default();
    Ok(text(&all, &own_sockets(), ephemeral(&range)))
}

fn text(all: &BTreeSet<Listener>, own: &BTreeSet<u32>, ephemeral: Option<(u16, u16)>) -> String {
    let passing = |l: &Listener| {
        l.protocol == Protocol::Udp && ephemeral.is_some_and(|(first, last)| (first..=last).contains(&l.port))
    };
    // The kernel's own sockets (VXLAN) have no inode.
    let others = |l: &Listener| l.inode != 0 && !own.contains(&l.inode);
    let told = all
        .iter()
        .filter(|l| l.port >= PORT_MIN && others(l) && !passing(l));
    let ports: BTreeSet<u16> = told.map(|l| l.port).collect();
    let ports: Vec<String> = ports.into_iter().take(TOLD_MAX).map(|p| p.to_string()).collect();
    ports.join(",")
}

/// The sockets of this process by inode: what it listens on for Services (relays, health checks) is theirs already.
fn own_sockets() -> BTreeSet<u32> {
    let all = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    all.filter_map(|fd| {
        let to = std::fs::read_link(fd.ok()?.path()).ok()?;
        let inode = to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        inode.parse().ok()
    })
    .collect()
}

fn ephemeral(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_and_is_not_ours_is_told_once() {
        let listener = |protocol, port, inode| Listener {
            protocol,
            port,
            inode,
        };
        let all = BTreeSet::from([
            listener(Protocol::Tcp, 22, 1),
            listener(Protocol::Tcp, 30080, 2),
            listener(Protocol::Udp, 30080, 3),
            listener(Protocol::Tcp, 31000, 4),
            listener(Protocol::Udp, 40000, 5),
            listener(Protocol::Udp, 8472, 0),
            listener(Protocol::Tcp, 40001, 6),
        ]);
        assert_eq!(
            text(&all, &BTreeSet::from([4]), ephemeral("32768\t60999\n")),
            "30080,40001"
        );
        assert_eq!(text(&BTreeSet::new(), &BTreeSet::new(), None), "");
        assert_eq!((ephemeral(""), ephemeral("1 x")), (None, None));
    }
}
