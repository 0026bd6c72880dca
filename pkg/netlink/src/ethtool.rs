//! What a link computes for the kernel: the checksums of what leaves by it. Numbers as in
//! `include/uapi/linux/ethtool.h`.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

/// `SIOCETHTOOL`
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `ETHTOOL_GTXCSUM`
const GET_TX_CHECKSUM: u32 = 0x16;
/// `ETHTOOL_STXCSUM`
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Asks about the links of the namespace that it was opened in.
#[derive(Debug)]
pub struct Ethtool(Socket);

impl Ethtool {
    /// In the namespace of the calling thread.
    ///
    /// # Errors
    /// When the system has no more sockets.
    pub fn open() -> io::Result<Self> {
        Socket::new(Domain::UNIX, Type::DGRAM, None).map(Self)
    }

    /// Whether checksums of what leaves by the link are left to it (`tx-checksumming`).
    ///
    /// # Errors
    /// When there is no such link.
    pub fn tx_checksum(&self, link: &str) -> io::Result<bool> {
        self.ask(link, GET_TX_CHECKSUM, 0).map(|on| on != 0)
    }

    /// Leaves checksums to the link, or computes them before (`ethtool -K LINK tx off`). With them goes segmentation by
    /// the link.
    ///
    /// # Errors
    /// When there is no such link, or it can not.
    pub fn set_tx_checksum(&self, link: &str, on: bool) -> io::Result<()> {
        self.ask(link, SET_TX_CHECKSUM, on.into()).map(drop)
    }

    fn ask(&self, link: &str, command: u32, data: u32) -> io::Result<u32> {
        let mut value = Value { command, data };
        // SAFETY: a structure of bytes, numbers and pointers, for all of which zero is a value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        // The last byte stays zero.
        let room = request.ifr_name.len() - 1;
        if link.len() > room {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the request names its link with an end and points at a value that outlives the call; for these two
        // commands the kernel reads and writes no more than that value.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(value.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rtnl;
    use crate::link::Vxlan;
    use crate::netns::OwnedNetNs;

    #[test]
    fn checksums_are_switched_off_and_on() {
        let netns = OwnedNetNs::unique("svcnet-eth").unwrap();
        let vxlan = Vxlan {
            vni: 1,
            port: 8472,
            local: None,
            device: None,
            learning: false,
        };
        Rtnl::open_in(&netns)
            .unwrap()
            .add_vxlan("vx", &vxlan, None, 1450)
            .unwrap();
        let ethtool = netns.run(Ethtool::open).unwrap().unwrap();
        assert!(ethtool.tx_checksum("vx").unwrap());
        ethtool.set_tx_checksum("vx", false).unwrap();
        assert!(!ethtool.tx_checksum("vx").unwrap());
        ethtool.set_tx_checksum("vx", true).unwrap();
        assert!(ethtool.tx_checksum("vx").unwrap());
        let absent = ethtool.tx_checksum("nosuch").unwrap_err();
        assert_eq!(absent.raw_os_error(), Some(libc::ENODEV));
    }
}
