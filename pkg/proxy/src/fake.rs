//! A backend for tests: it holds frontends, refuses what makes no sense, and fails when told to.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use svcnet_netlink::nft;

use crate::backend::{Backend, Error, Report};
use crate::model::{Frontend, FrontendKey};

/// What the backend was told, and what it is to do next. Shared between a test and the backend.
#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) held: BTreeMap<FrontendKey, Frontend>,
    pub(crate) calls: Vec<&'static str>,
    pub(crate) failures: usize,
    pub(crate) touched: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Fake(pub(crate) Arc<Mutex<Inner>>);

impl Fake {
    fn call(&self, name: &'static str) -> Result<std::sync::MutexGuard<'_, Inner>, Error> {
        let mut inner = self.0.lock().unwrap();
        inner.calls.push(name);
        if inner.failures > 0 {
            inner.failures -= 1;
            return Err(Error::Nftables(nft::Error::Refused {
                what: "test".into(),
                errno: Errno::EINVAL,
                detail: None,
            }));
        }
        Ok(inner)
    }

    /// The calls since the last time.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    pub(crate) fn fail(&self, times: usize) {
        self.0.lock().unwrap().failures = times;
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap()
            .held
            .values()
            .map(|f| f.name.to_string())
            .collect()
    }
}

impl Backend for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn converge(
        &mut self,
        frontends: &mut dyn Iterator<Item = Frontend>,
        from_scratch: bool,
    ) -> Result<Report, Error> {
        let mut inner = self.call(if from_scratch { "scratch" } else { "converge" })?;
        inner.held.clear();
        for frontend in frontends {
            let twice = inner.held.insert(frontend.key, frontend);
            assert_eq!(twice, None, "one frontend from two services");
        }
        Ok(Report {
            operations: 1,
            ..Report::default()
        })
    }

    fn change(&mut self, changes: Vec<(FrontendKey, Option<Frontend>)>) -> Result<Report, Error> {
        let mut inner = self.call("change")?;
        for (key, frontend) in changes {
            match frontend {
                Some(frontend) => {
                    assert_eq!(frontend.key, key);
                    inner.held.insert(key, frontend);
                }
                None => assert!(inner.held.remove(&key).is_some(), "{key} is not held"),
            }
        }
        Ok(Report {
            operations: 1,
            ..Report::default()
        })
    }

    fn touched(&mut self) -> Result<bool, Error> {
        Ok(std::mem::take(&mut self.0.lock().unwrap().touched))
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A Service `default/NAME` at that address with an external one, if any.
pub(crate) fn service(
    name: &str,
    cluster_ip: &str,
    external_ip: Option<&str>,
) -> Arc<k8s_openapi::api::core::v1::Service> {
    let service = serde_json::json!({
        "metadata": { "namespace": "default", "name": name },
        "spec": { "clusterIPs": [cluster_ip], "externalIPs": external_ip, "ports": [{ "port": 80 }] },
    });
    let mut service = service;
    service["spec"]["externalIPs"] = external_ip.map_or(serde_json::json!([]), |ip| serde_json::json!([ip]));
    Arc::new(serde_json::from_value(service).unwrap())
}
