//! svcnet-netlink
