//! How long a request may take: as long as its client says (`?timeout=34s`), and no longer than the server allows (kube-apiserver,
//! `endpoints/filters/request_deadline.go`, `server/filters/timeout.go`). Watches have a time of their own.
//!
//! A deadline is around the whole of a request; a write is a task of its own, which goes on when its answer is overdue.

use std::time::Duration;

use http::Method;
use serde_json::json;
use svcnet_api::types::{GoDuration, GoDurationError};
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

/// A length of time as a query has it. What is below zero is zero.
fn duration(text: &str) -> Result<Duration, GoDurationError> {
    let duration: GoDuration = text.parse()?;
    Ok(duration.positive().unwrap_or_default())
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
    fn what_is_no_time_is_refused_in_the_real_words() {
        assert_eq!(
            of(Method::GET, "/api/v1/nodes", "timeout=x").unwrap_err(),
            "invalid timeout specified in the request URL - time: invalid duration \"x\""
        );
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
