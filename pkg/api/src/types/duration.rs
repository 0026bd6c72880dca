//! Lengths of time as Go writes them, in queries and in configuration.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time, which may be below zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoDuration {
    negative: bool,
    length: Duration,
}

/// Why a text is no length of time, in the words of Go's `time.ParseDuration`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GoDurationError {
    /// It is something else, or too long.
    Invalid(String),
    /// A number says not of what.
    MissingUnit(String),
    /// A number is of something else: the unit, and the whole text.
    UnknownUnit(String, String),
}

impl fmt::Display for GoDurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(text) => write!(f, "time: invalid duration {text:?}"),
            Self::MissingUnit(text) => write!(f, "time: missing unit in duration {text:?}"),
            Self::UnknownUnit(unit, text) => write!(f, "time: unknown unit {unit:?} in duration {text:?}"),
        }
    }
}

impl std::error::Error for GoDurationError {}

impl GoDuration {
    /// The length; nothing when it is below zero.
    pub fn positive(self) -> Option<Duration> {
        (!self.negative || self.length.is_zero()).then_some(self.length)
    }
}

impl FromStr for GoDuration {
    type Err = GoDurationError;

    fn from_str(text: &str) -> Result<Self, GoDurationError> {
        let invalid = || GoDurationError::Invalid(text.to_string());
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let of = |length| Self { negative, length };
        if rest == "0" {
            return Ok(of(Duration::ZERO));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let mut seconds = 0.0;
        while !rest.is_empty() {
            let (number, behind) = rest.split_at(rest.find(|c| !is_number(c)).unwrap_or(rest.len()));
            let number: f64 = number.parse().map_err(|_| invalid())?;
            let (unit, behind) = behind.split_at(behind.find(is_number).unwrap_or(behind.len()));
            seconds += number
                * match unit {
                    "ns" => 1e-9,
                    "us" | "µs" | "μs" => 1e-6,
                    "ms" => 1e-3,
                    "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3600.0,
                    "" => return Err(GoDurationError::MissingUnit(text.to_string())),
                    _ => return Err(GoDurationError::UnknownUnit(unit.to_string(), text.to_string())),
                };
            rest = behind;
        }
        Duration::try_from_secs_f64(seconds)
            .map(of)
            .map_err(|_| invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Duration>, String> {
        let duration = text.parse::<GoDuration>().map_err(|e| e.to_string())?;
        Ok(duration.positive())
    }

    #[test]
    fn times_are_read_as_go_reads_them() {
        for (text, seconds) in [
            ("0", 0.0),
            ("-0", 0.0),
            ("-0s", 0.0),
            ("1m0s", 60.0),
            ("1h2m3.5s", 3723.5),
            ("+.5s", 0.5),
            ("250ms", 0.25),
            ("1h1.5m", 3690.0),
        ] {
            assert_eq!(read(text), Ok(Some(Duration::from_secs_f64(seconds))), "{text}");
        }
        assert_eq!(read("-5s"), Ok(None));
        for (text, words) in [
            ("", "time: invalid duration \"\""),
            ("abc", "time: invalid duration \"abc\""),
            ("-", "time: invalid duration \"-\""),
            ("--5s", "time: invalid duration \"--5s\""),
            (".s", "time: invalid duration \".s\""),
            ("1.2.3s", "time: invalid duration \"1.2.3s\""),
            ("34", "time: missing unit in duration \"34\""),
            ("1x", "time: unknown unit \"x\" in duration \"1x\""),
            (
                "99999999999999999999999h",
                "time: invalid duration \"99999999999999999999999h\"",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), words);
        }
    }

    proptest::proptest! {
        /// Whatever stands there, it is a time or it is refused.
        #[test]
        fn any_text_is_read(text in "[-+.0-9a-zµ]{0,12}", other in ".{0,12}") {
            _ = read(&text);
            _ = read(&other);
        }
    }
}
