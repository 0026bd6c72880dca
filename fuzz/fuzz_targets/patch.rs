//! See `svcnet_apiserver::fuzzing::patch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| svcnet_apiserver::fuzzing::patch(data));
