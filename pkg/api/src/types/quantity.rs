//! Amounts of resources, as `500m`, `1Gi` or `12e6` (k8s.io/apimachinery, pkg/api/resource): read, and written in the one form
//! that Kubernetes gives them.

/// How many digits Go reads the short way, which may keep a text as it is (`maxInt64Factors`).
const SHORT_DIGITS: usize = 18;
/// Everything is counted in billionths, ten to the minus so many: nothing is smaller.
const NANO: i64 = 9;
const PER_UNIT: u128 = 1_000_000_000;
/// The largest amount: what is larger is this much.
const MAX: u128 = (i64::MAX as u128) * PER_UNIT;

/// Why a text is no quantity, in the real server's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Neither digits nor a suffix, or more than that.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// Letters that are no suffix, as in `1KiB`.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How an amount is written: after its suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// `5M`; the exponent is of ten.
    Decimal(i64),
    /// `5e6`.
    Exponent(i64),
    /// `5Mi`; the exponent is of two.
    Binary(u32),
}

const DECIMAL: [(&str, i64); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];

/// The parts of a text.
struct Parts<'a> {
    negative: bool,
    /// Without leading zeros.
    whole: &'a str,
    fraction: &'a str,
    format: Format,
}

/// A quantity as Kubernetes writes it: `0.5` is `500m`, `1024Mi` is `1Gi`, and what is smaller than a billionth is one.
///
/// # Errors
/// When the text is none.
pub fn canonical_quantity(text: &str) -> Result<String, QuantityError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let parts = parse(text)?;
    if is_kept(&parts) {
        return Ok(text.to_string());
    }
    let sign = if parts.negative { "-" } else { "" };
    let nano = nano(&parts);
    Ok(match parts.format {
        _ if nano == 0 => "0".to_string(),
        Format::Binary(_) if nano >= 1024 * PER_UNIT && nano.is_multiple_of(PER_UNIT) => {
            format!("{sign}{}", binary(nano / PER_UNIT))
        }
        Format::Exponent(_) => {
            let (amount, exponent) = decimal(nano);
            match exponent {
                0 => format!("{sign}{amount}"),
                _ => format!("{sign}{amount}e{exponent}"),
            }
        }
        Format::Decimal(_) | Format::Binary(_) => {
            let (mut amount, mut exponent) = decimal(nano);
            while exponent > 18 {
                (amount, exponent) = (amount * 1000, exponent - 3);
            }
            let suffix = DECIMAL.iter().find(|(_, of)| *of == exponent);
            format!("{sign}{amount}{}", suffix.map_or("", |(suffix, _)| suffix))
        }
    })
}

fn parse(text: &str) -> Result<Parts<'_>, QuantityError> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = unsigned.split_at(digits(unsigned));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let after_letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let exponent = after_letters.strip_prefix(['+', '-']).unwrap_or(after_letters);
    if digits(exponent) != exponent.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts {
        negative: text.starts_with('-'),
        whole: whole.trim_start_matches('0'),
        fraction,
        format: format(suffix).ok_or(QuantityError::Suffix)?,
    })
}

fn format(suffix: &str) -> Option<Format> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some(Format::Decimal(*exponent));
    }
    if let Some((_, exponent)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some(Format::Binary(*exponent));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    exponent
        .parse::<i32>()
        .ok()
        .map(|exponent| Format::Exponent(exponent.into()))
}

/// Whether Go takes a text for canonical, and keeps it. It looks at its last digits alone.
fn is_kept(parts: &Parts<'_>) -> bool {
    let Parts { whole, fraction, .. } = parts;
    let whole = if whole.is_empty() { "0" } else { whole };
    let digits = whole.len() + fraction.len();
    match parts.format {
        Format::Binary(exponent) => {
            // 15 digits, less those of the factor.
            let room = 14_usize.saturating_sub(usize::try_from(exponent).unwrap_or_default() * 3 / 10);
            let odd = whole.parse::<u64>().is_ok_and(|value| value & 7 != 0);
            fraction.is_empty() && whole.len() <= room && odd
        }
        Format::Decimal(exponent) | Format::Exponent(exponent) => {
            let scale = exponent - i64::try_from(fraction.len()).unwrap_or(i64::MAX);
            let ends = format!("{whole}{fraction}");
            digits <= SHORT_DIGITS
                && scale >= -NANO
                && scale % 3 == 0
                && !ends.ends_with("000")
                && !ends.starts_with('0')
        }
    }
}

/// The amount in billionths, rounded up.
fn nano(parts: &Parts<'_>) -> u128 {
    let digits = format!("{}{}", parts.whole, parts.fraction);
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    // What does not fit has its last digits cut off, of which nothing is left when it is rounded or capped.
    let kept = &digits[..digits.len().min(36)];
    let cut = i64::try_from(digits.len() - kept.len()).unwrap_or(i64::MAX);
    let fraction = i64::try_from(parts.fraction.len()).unwrap_or(i64::MAX);
    let (exponent, factor) = match parts.format {
        Format::Decimal(exponent) | Format::Exponent(exponent) => (exponent, 1),
        Format::Binary(exponent) => (0, 1_u128 << exponent),
    };
    let scale = exponent + NANO + cut - fraction;
    let Some(value) = kept
        .parse::<u128>()
        .ok()
        .and_then(|value| value.checked_mul(factor))
    else {
        return MAX;
    };
    let power = u32::try_from(scale.unsigned_abs())
        .ok()
        .and_then(|by| 10_u128.checked_pow(by));
    let nano = match (scale >= 0, power) {
        (true, Some(power)) => value.checked_mul(power).unwrap_or(MAX),
        (true, None) => MAX,
        (false, Some(power)) => value.div_ceil(power),
        (false, None) => 1,
    };
    nano.min(MAX)
}

/// An amount of billionths, and its power of ten, which is one of a thousand.
fn decimal(nano: u128) -> (u128, i64) {
    let (mut amount, mut exponent) = (nano, -NANO);
    while amount.is_multiple_of(1000) {
        (amount, exponent) = (amount / 1000, exponent + 3);
    }
    (amount, exponent)
}

fn binary(mut amount: u128) -> String {
    let mut suffix = "";
    for (next, _) in BINARY {
        if !amount.is_multiple_of(1024) {
            break;
        }
        (amount, suffix) = (amount / 1024, next);
    }
    format!("{amount}{suffix}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_kubernetes_shows() {
        for (given, shown) in [
            ("1", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0", "0"),
            ("00", "0"),
            ("-0", "0"),
            ("0Gi", "0"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("1500Mi", "1500Mi"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1023Ki", "1023Ki"),
            ("1.1Ki", "1126400m"),
            ("24684092Ki", "24684092Ki"),
            ("1000", "1k"),
            ("1000000", "1M"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("10e2", "1e3"),
            ("1.5e3", "1500"),
            ("12e6", "12e6"),
            ("0.0000000001", "1n"),
            ("1.0000000001", "1000000001n"),
            ("-1.5", "-1500m"),
            ("+1", "+1"),
            (" 1 ", "1"),
            ("1.", "1."),
            (".5", "500m"),
            ("1.500", "1.500"),
            ("99999999999999999999", "9223372036854775807"),
            ("9Ei", "9223372036854775807"),
            ("1e99", "1e99"),
            ("1e-99", "1e-9"),
        ] {
            assert_eq!(canonical_quantity(given).as_deref(), Ok(shown), "{given}");
        }
    }

    #[test]
    fn what_is_none() {
        for (given, why) in [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1KiB", QuantityError::Format),
            ("1,5", QuantityError::Format),
            ("true", QuantityError::Format),
            ("1K", QuantityError::Suffix),
            ("1mm", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1e99999999999", QuantityError::Suffix),
        ] {
            assert_eq!(canonical_quantity(given), Err(why), "{given}");
        }
    }

    proptest! {
        /// Whatever is given: a canonical form is its own, and nothing overflows.
        #[test]
        fn canonical_forms_stay(text in "[+-]?[0-9]{0,40}[.]?[0-9]{0,40}([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,12})?") {
            if let Ok(once) = canonical_quantity(&text) {
                prop_assert_eq!(canonical_quantity(&once), Ok(once.clone()));
            }
        }
    }
}
