//! See `svcnet_netlink::fuzzing::netlink`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| svcnet_netlink::fuzzing::netlink(data));
