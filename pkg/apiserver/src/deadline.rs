//! How long a request may take: as long as its client says (`?timeout=34s`), and no longer than the server allows (kube-apiserver,
//! `endpoints/filters/request_deadline.go`, `server/filters/timeout.go`). Watches have a time of their own.
//!
//! A deadline is around the whole of a request; a write is a task of its own, which goes on when its answer is overdue.

use std::time::Duration;

use http::Method;
use serde_json::json;
use svcnet_api::{ApiError, Reason};

use crate::url::{Path, Query};

/// How long a write of one object may take (`requestTimeoutUpperBound`).
const WRITE_MAX: Duration = Duration::from_secs(34);

/// By when an answer is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// Whenever the client has had enough.
    Never,
    After {
        time: Duration,
        /// The real server words it differently for these.
        writes: bool,
    },
}

impl Deadline {
    /// That of a request; `most` is the server's own (`--request-timeout`).
    ///
    /// # Errors
    /// 400 for a `timeout` that is no length of time.
    pub(crate) fn of(
        method: &Method,
        path: Option<&Path>,
        query: &Query,
        most: Duration,
    ) -> Result<Self, ApiError> {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let one = match path {
            Some(Path::Resource(target)) if reads && target.name.is_empty() && query.flag("watch") => {
                return Ok(Self::Never);
            }
            // The deletion of many is not bounded further.
            Some(Path::Resource(target)) => !target.name.is_empty() || *method != Method::DELETE,
            _ => true,
        };
        let most = if !reads && one { most.min(WRITE_MAX) } else { most };
        let wanted = query.get("timeout").map(duration).transpose().map_err(|why| {
            let why = format!("invalid timeout specified in the request URL - {why}");
            ApiError::bad_request(why)
        })?;
        Ok(Self::After {
            // None at all, or one below, means the server's.
            time: wanted
                .filter(|time| !time.is_zero())
                .map_or(most, |t| t.min(most)),
            writes: !reads,
        })
    }

    /// The answer, or 504 when it is not there in time.
    pub(crate) async fn within<T>(
        self,
        answer: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let Self::After { time, writes } = self else {
            return answer.await;
        };
        tokio::time::timeout(time, answer).await.unwrap_or_else(|_| {
            let why = if writes {
                "Timeout: request did not complete within requested timeout - context deadline exceeded"
            } else {
                "Timeout: request did not complete within the allotted timeout"
            };
            let mut late = ApiError::new(Reason::Timeout, why);
            late.details = Some(json!({}));
            Err(late)
        })
    }
}

/// A length of time as Go's `time.ParseDuration` reads it, and its words for what is none. What is below zero is zero.
fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
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
                "" => return Err(format!("time: missing unit in duration {text:?}")),
                _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
            };
        rest = behind;
    }
    if negative {
        return Ok(Duration::ZERO);
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url;

    const MOST: Duration = Duration::from_secs(60);

    fn of(method: Method, path: &str, query: &str) -> Result<Deadline, String> {
        let (path, query) = (url::parse(path), Query::parse(Some(query)));
        Deadline::of(&method, path.as_ref(), &query, MOST).map_err(|e| e.message)
    }

    #[test]
    fn the_shorter_of_what_client_and_server_say_holds() {
        let services = "/api/v1/namespaces/default/services";
        let after = |seconds, writes| {
            let time = Duration::from_secs_f64(seconds);
            Ok(Deadline::After { time, writes })
        };
        assert_eq!(of(Method::GET, services, ""), after(60.0, false));
        assert_eq!(of(Method::GET, services, "timeout=34s"), after(34.0, false));
        assert_eq!(of(Method::GET, services, "timeout=1h"), after(60.0, false));
        assert_eq!(of(Method::GET, services, "timeout=0s"), after(60.0, false));
        assert_eq!(of(Method::GET, services, "timeout=-5s"), after(60.0, false));
        assert_eq!(of(Method::POST, services, ""), after(34.0, true));
        assert_eq!(of(Method::POST, services, "timeout=1.5s"), after(1.5, true));
        assert_eq!(of(Method::DELETE, services, ""), after(60.0, true));
        assert_eq!(
            of(Method::DELETE, &format!("{services}/a"), ""),
            after(34.0, true)
        );
        assert_eq!(
            of(Method::GET, services, "watch=1&timeout=1s"),
            Ok(Deadline::Never)
        );
        assert_eq!(of(Method::GET, "/version", "timeout=32s"), after(32.0, false));
    }

    #[test]
    fn times_are_read_as_go_reads_them() {
        for (text, seconds) in [
            ("1m0s", 60.0),
            ("1h2m3.5s", 3723.5),
            ("+.5s", 0.5),
            ("250ms", 0.25),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for (text, words) in [
            ("abc", "time: invalid duration \"abc\""),
            ("-", "time: invalid duration \"-\""),
            (".s", "time: invalid duration \".s\""),
            ("34", "time: missing unit in duration \"34\""),
            ("1x", "time: unknown unit \"x\" in duration \"1x\""),
            (
                "99999999999999999999999h",
                "time: invalid duration \"99999999999999999999999h\"",
            ),
        ] {
            assert_eq!(duration(text).unwrap_err(), words);
        }
        assert_eq!(
            of(Method::GET, "/api/v1/nodes", "timeout=x").unwrap_err(),
            "invalid timeout specified in the request URL - time: invalid duration \"x\""
        );
    }

    proptest::proptest! {
        /// Whatever stands there, it is a time or it is refused.
        #[test]
        fn any_text_is_read(text in "[-+.0-9a-zµ]{0,12}", other in ".{0,12}") {
            _ = duration(&text);
            _ = duration(&other);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_too_late_is_told_so_in_the_real_words() {
        let late = |writes| {
            let time = Duration::from_secs(1);
            let never = std::future::pending::<Result<(), ApiError>>();
            Deadline::After { time, writes }.within(never)
        };
        let (read, written) = (late(false).await.unwrap_err(), late(true).await.unwrap_err());
        assert_eq!(read.reason.code(), 504);
        assert_eq!(
            read.message,
            "Timeout: request did not complete within the allotted timeout"
        );
        assert_eq!(
            written.message,
            "Timeout: request did not complete within requested timeout - context deadline exceeded"
        );
    }
}
