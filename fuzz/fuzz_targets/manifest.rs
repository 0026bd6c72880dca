//! See `svcnet_apiserver::fuzzing::manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| svcnet_apiserver::fuzzing::manifest(data));
