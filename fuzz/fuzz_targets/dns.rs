//! See `svcnet_dns::fuzzing::client`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| svcnet_dns::fuzzing::client(data));
