//! Medians and spreads, and how a row is printed.

use std::fmt;

/// The middle of the values; NaN where there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which `share` of the values lie.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index"
)]
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * share).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// One ratio for each round.
pub(crate) fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter()
        .zip(theirs)
        .map(|(ours, theirs)| ours / theirs)
        .collect()
}

/// What several runs came to: printed as their median, and behind it the least and the most.
pub(crate) struct Spread<'a> {
    values: &'a [f64],
    factor: f64,
    digits: usize,
    unit: &'static str,
}

impl<'a> Spread<'a> {
    /// As they are.
    pub(crate) fn new(values: &'a [f64], digits: usize) -> Self {
        Self::scaled(values, 1.0, digits)
    }

    /// Each times a factor.
    pub(crate) fn scaled(values: &'a [f64], factor: f64, digits: usize) -> Self {
        Self {
            values,
            factor,
            digits,
            unit: "",
        }
    }

    /// With a unit behind the median.
    pub(crate) fn unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    /// Seconds, printed as milliseconds.
    pub(crate) fn ms(values: &'a [f64]) -> Self {
        Self::scaled(values, 1e3, 2).unit(" ms")
    }

    /// Seconds.
    pub(crate) fn s(values: &'a [f64]) -> Self {
        Self::new(values, 2).unit(" s")
    }
}

impl fmt::Display for Spread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            values,
            factor,
            digits,
            unit,
        } = *self;
        let least = percentile(values, 0.0) * factor;
        let most = percentile(values, 1.0) * factor;
        write!(f, "{:.digits$}{unit}", median(values) * factor)?;
        if values.len() < 2 {
            return f.write_str(" (1 run)");
        }
        write!(f, " ({least:.digits$}–{most:.digits$})")
    }
}

/// One row of the table, in Markdown.
pub(crate) fn row(what: &str, ours: &str, theirs: &str, ratio: &str) {
    println!("| {what} | {ours} | {theirs} | {ratio} |");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_between_the_least_and_the_most() {
        let seconds = [0.003, 0.001, 0.0025, 0.004, 0.0002];
        assert_eq!(Spread::ms(&seconds).to_string(), "2.50 ms (0.20–4.00)");
        assert_eq!(Spread::new(&[1.25], 1).unit(" MB").to_string(), "1.2 MB (1 run)");
        assert_eq!(percentile(&seconds, 0.99), 0.004);
        assert_eq!(ratios(&[4.0, 9.0], &[2.0, 3.0]), [2.0, 3.0]);
    }
}
