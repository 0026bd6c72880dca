//! See `svcnet_api::fuzzing::selectors`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| svcnet_api::fuzzing::selectors(data));
