//! See `svcnet_apiserver::fuzzing::protobuf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| svcnet_apiserver::fuzzing::protobuf(data));
