//! The token that an agent is given.
#![no_main]

use svcnet_runtime::join::JoinToken;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(token) = String::from_utf8_lossy(data).parse::<JoinToken>() {
        assert_eq!(token.ca_hash().len(), 64);
    }
});
