//! Spans of time as kubectl prints them.

use jiff::Timestamp;

/// Seconds as `35s`, `4m10s`, `3h`, `2d5h`, `400d`, `3y40d`: two places at most, coarser the longer it is
/// (k8s.io/apimachinery, pkg/util/duration).
pub fn human_duration(seconds: i64) -> String {
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match () {
        // Clocks differ by a second; by more, something is wrong.
        () if seconds < -1 => "<invalid>".to_string(),
        () if seconds < 0 => "0s".to_string(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// How long before `now` (seconds since the epoch) a point of time in RFC 3339 was; `<unknown>` where there is none.
pub fn age_since(timestamp: &str, now: i64) -> String {
    match timestamp.parse::<Timestamp>() {
        Ok(then) => human_duration(now.saturating_sub(then.as_second())),
        Err(_) => "<unknown>".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_kubectls() {
        let (minute, hour, day) = (60, 3600, 86_400);
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (2 * minute, "2m"),
            (4 * minute + 10, "4m10s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (3 * hour + 20 * minute, "3h20m"),
            (9 * hour + minute, "9h"),
            (47 * hour, "47h"),
            (2 * day + 5 * hour, "2d5h"),
            (8 * day, "8d"),
            (400 * day, "400d"),
            (3 * 365 * day + 40 * day, "3y40d"),
            (9 * 365 * day, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
        assert_eq!(age_since("1970-01-01T00:01:00Z", 100), "40s");
        assert_eq!(age_since("1970-01-01T00:01:00.500000Z", 100), "40s");
        assert_eq!(age_since("", 100), "<unknown>");
    }
}
