//! How the binary is linked.

use std::process::Command;

/// The first glibc whose static programs relocate themselves by packed relocations (`DT_RELR`).
const GLIBC_RELR: (u32, u32) = (2, 36);

/// A static program that may lie anywhere in memory relocates itself when it starts, by a table that is 1.5 MB here, all
/// of it read into memory. Packed, it is 20 KB.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of_target = |what: &str| std::env::var(what).unwrap_or_default();
    // Its C library is linked in: the one of this host, unless it is built for another.
    let native = of_target("TARGET") == of_target("HOST") && of_target("CARGO_CFG_TARGET_ENV") == "gnu";
    if native && glibc().is_some_and(|version| version >= GLIBC_RELR) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this host's glibc; nothing where it does not say.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
