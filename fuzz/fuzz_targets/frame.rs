//! See `svcnet_netlink::fuzzing::frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| svcnet_netlink::fuzzing::frame(data));
