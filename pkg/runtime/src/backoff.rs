//! Waiting between tries, and saying a failure once rather than at every try.

use std::time::Duration;

/// Delays that double from `first` up to `most`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
    said: Option<String>,
}

impl Backoff {
    /// Delays from `first` to `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
            said: None,
        }
    }

    /// The delay before the next try.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.most);
        delay
    }

    /// Whether this failure is news: the first one since the last success, or another one than before.
    pub fn is_news(&mut self, failure: &str) -> bool {
        let news = self.said.as_deref() != Some(failure);
        if news {
            self.said = Some(failure.to_string());
        }
        news
    }

    /// Begins anew after a success. Says whether failures had been told, so that the recovery is told too.
    pub fn reset(&mut self) -> bool {
        self.next = self.first;
        self.said.take().is_some()
    }
}

impl Default for Backoff {
    /// From 100 ms to 5 s: a peer that comes back is seen within seconds, and one that stays away costs nothing.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_limit_and_failures_are_news_once() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
        let delays: Vec<u64> = (0..4).map(|_| backoff.next_delay().as_secs()).collect();
        assert_eq!(delays, [1, 2, 3, 3]);
        assert!(backoff.is_news("refused") && !backoff.is_news("refused") && backoff.is_news("timeout"));
        assert!(backoff.reset() && !backoff.reset());
        assert_eq!(backoff.next_delay().as_secs(), 1);
    }
}
