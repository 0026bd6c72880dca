//! How much one client may have under way.
//!
//! A client is a user; those who have not said who they are count by their address. Requests and watches are counted
//! apart, since a watch lasts for hours. What is counted is given back when the last byte of the answer is on its way, or
//! the client is gone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use svcnet_api::{ApiError, Reason};

use crate::auth::User;

/// Bounds for what clients may ask of the server at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests under way for each client, watches apart (`--max-requests-inflight`).
    pub requests_max: usize,
    /// Watches of each client (`--max-watches`).
    pub watches_max: usize,
    /// How long a request may take, watches apart (`--request-timeout`).
    pub request_max: Duration,
    /// How long a client may leave an answer unread before its connection is closed.
    pub unread_max: Duration,
}

impl Default for Limits {
    /// 400 is the real server's number, for all clients together; a minute is its --request-timeout.
    fn default() -> Self {
        Self {
            requests_max: 400,
            watches_max: 4000,
            request_max: Duration::from_secs(60),
            unread_max: Duration::from_secs(30),
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Request,
    Watch,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    requests: usize,
    watches: usize,
}

impl Counts {
    fn of(&mut self, what: What) -> &mut usize {
        match what {
            What::Request => &mut self.requests,
            What::Watch => &mut self.watches,
        }
    }
}

/// What all clients have under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    limits: Limits,
    clients: Arc<Mutex<HashMap<String, Counts>>>,
}

/// One request or watch that is under way. Over when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    clients: Arc<Mutex<HashMap<String, Counts>>>,
    client: String,
    what: What,
}

impl InFlight {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            clients: Arc::default(),
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// 429 when the client has as many under way as it may.
    pub(crate) fn enter(&self, user: &User, from: Option<IpAddr>, what: What) -> Result<Permit, ApiError> {
        let client = match from {
            Some(from) if user.is_anonymous() => from.to_string(),
            _ => user.name.clone(),
        };
        let most = match what {
            What::Request => self.limits.requests_max,
            What::Watch => self.limits.watches_max,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client.clone()).or_default().of(what);
        if *count >= most {
            return Err(too_many());
        }
        *count += 1;
        Ok(Permit {
            clients: self.clients.clone(),
            client,
            what,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = clients.get_mut(&self.client) {
            *counts.of(self.what) -= 1;
            if counts.requests == 0 && counts.watches == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// The real server's words; `reply` adds `Retry-After`.
fn too_many() -> ApiError {
    metrics::counter!("svcnet_apiserver_requests_refused_total").increment(1);
    let mut error = ApiError::new(
        Reason::TooManyRequests,
        "Too many requests, please try again later.",
    );
    error.details = Some(json!({"retryAfterSeconds": 1}));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_and_gets_it_back() {
        let limits = Limits {
            requests_max: 2,
            watches_max: 1,
            ..Limits::default()
        };
        let all = InFlight::new(limits);
        let (alice, bob) = (User::new("alice", []), User::new("bob", []));
        let first = all.enter(&alice, None, What::Request).unwrap();
        let _second = all.enter(&alice, None, What::Request).unwrap();
        let refused = all.enter(&alice, None, What::Request).unwrap_err();
        assert_eq!(refused.reason, Reason::TooManyRequests);
        let _watch = all.enter(&alice, None, What::Watch).unwrap();
        assert!(all.enter(&alice, None, What::Watch).is_err());
        drop(all.enter(&bob, None, What::Request).unwrap());
        drop(first);
        drop(all.enter(&alice, None, What::Request).unwrap());
    }

    #[test]
    fn strangers_count_by_address_and_nothing_is_left_behind() {
        let limits = Limits {
            requests_max: 1,
            ..Limits::default()
        };
        let all = InFlight::new(limits);
        let (here, there) = ("10.0.0.1".parse().ok(), "10.0.0.2".parse().ok());
        let held = all.enter(&User::anonymous(), here, What::Request).unwrap();
        assert!(all.enter(&User::anonymous(), here, What::Request).is_err());
        drop(all.enter(&User::anonymous(), there, What::Request).unwrap());
        drop(held);
        assert!(all.clients.lock().unwrap().is_empty());
    }
}
