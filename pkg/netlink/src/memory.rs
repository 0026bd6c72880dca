//! Memory that a process does not use any more.
//!
//! The C library keeps what a large list took, and would count as ours for ever: a server held 266 MB after 10,000 Services had
//! come in and been listed, of which it used 93. And of a proxy's 16 MB, 7 are program text that only its start needed.

use std::ops::Range;

/// Gives free memory back to the kernel. To be called after something large and rare: a list of everything, a batch that
/// says everything. It waits for allocations of other threads and they for it, for some milliseconds where there is much.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, may be called by any thread at any time, and touches free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of program text; what still runs is mapped again where it is called, from the page cache.
pub fn let_go_of_text() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    let here = let_go_of_text as fn() as usize;
    let Some(text) = maps
        .lines()
        .filter_map(text_range)
        .find(|range| range.contains(&here))
    else {
        return;
    };
    // SAFETY: the range is a mapping of this process, whole pages, private, of a file and never written: a program that is
    // linked whole has no relocations in its text. What is dropped reads the same when it comes back.
    unsafe {
        libc::madvise(text.start as *mut libc::c_void, text.len(), libc::MADV_DONTNEED);
    }
}

/// The addresses of a line of proc_pid_maps(5), if it maps a file's text, and not for writing.
fn text_range(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_text = words.next()? == "r-xp" && words.nth(3)?.starts_with('/');
    let number = |hex| usize::from_str_radix(hex, 16).ok();
    is_text.then_some(number(start)?..number(end)?)
}

/// What this process holds of its own, program text not included, in KiB.
pub fn held_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().trim_end_matches("kB").trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_files_is_let_go_of() {
        let text =
            "555555555000-555555560000 r-xp 00001000 fe:00 1234                       /usr/local/bin/svcnet";
        assert_eq!(text_range(text), Some(0x5555_5555_5000..0x5555_5556_0000));
        for other in [
            "555555560000-555555570000 r--p 00001000 fe:00 1234                       /usr/local/bin/svcnet",
            "555555560000-555555570000 rwxp 00001000 fe:00 1234                       /usr/local/bin/svcnet",
            "7ffff7fc1000-7ffff7fc3000 r-xp 00000000 00:00 0                          [vdso]",
            "7ffff7fc1000-7ffff7fc3000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(text_range(other), None, "{other}");
        }
    }

    /// This very test runs on through it.
    #[test]
    fn text_comes_back() {
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut lines = smaps.lines().skip_while(|line| {
                !text_range(line).is_some_and(|range| range.contains(&(let_go_of_text as fn() as usize)))
            });
            let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
            let kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
            kib
        };
        let before = resident();
        let_go_of_text();
        assert!(resident() < before);
    }

    #[test]
    fn what_is_held_shows() {
        let before = held_kib().unwrap();
        let large = vec![1_u8; 64 << 20];
        assert!(held_kib().unwrap() >= before + (32 << 10), "{}", large.len());
    }
}
