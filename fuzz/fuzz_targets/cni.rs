//! See `svcnet_cni::fuzzing::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| svcnet_cni::fuzzing::config(data));
