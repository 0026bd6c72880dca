//! Lengths of time, as people write them.

use std::time::Duration;

/// `90s`, `24h`, `1h30m`, `30d`: numbers with units, as Go has them, and days.
///
/// # Errors
/// What would be right.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a length of time like 90s, 24h, 1h30m or 30d");
    let mut seconds: u64 = 0;
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..end].parse().map_err(|_| wrong())?;
        let unit = match rest[end..].chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 60 * 60,
            Some('d') => 24 * 60 * 60,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(unit).ok_or_else(wrong)?;
        seconds = seconds.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[end + 1..];
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("0", 0),
            ("90s", 90),
            ("24h", 86_400),
            ("24h0m0s", 86_400),
            ("1h30m", 5400),
            ("30d", 2_592_000),
        ] {
            assert_eq!(parse(text).unwrap().as_secs(), seconds, "{text}");
        }
        for text in [
            "",
            "24",
            "h",
            "1w",
            "-1h",
            "1.5h",
            "99999999999999999999h",
            "9999999999999999999d",
            "1é",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
