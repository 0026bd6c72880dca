//! See `svcnet_apiserver::fuzzing::Bench::url`. The server's data lie below TMPDIR.
#![no_main]

use std::sync::LazyLock;

use svcnet_apiserver::fuzzing::Bench;

static BENCH: LazyLock<Bench> =
    LazyLock::new(|| Bench::new(&std::env::temp_dir().join(format!("svcnet-fuzz-{}", std::process::id()))));

libfuzzer_sys::fuzz_target!(|data: &[u8]| BENCH.url(data));
