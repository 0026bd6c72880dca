//! Memory that a process does not use any more.

/// Gives free memory back to the kernel. To be called after something large and rare: a list of everything, a batch that
/// says everything. The C library keeps what lies between objects that stay, and it would count as ours for ever.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, may be called by any thread at any time, and touches free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}
