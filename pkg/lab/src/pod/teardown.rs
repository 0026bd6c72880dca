//! Taking a pod away, in the order that loses no request: out of the API, out of the data planes, then the process.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use nix::sys::signal::Signal;
use svcnet_netlink::netns::{self, NetNs};
use tokio::time::{Instant, sleep, timeout};

use super::cni;
use super::supervisor::PodError;
use super::traces::{Note, NotePath};
use crate::exec::resolv_conf_of;
use crate::process;

/// The server answers within this time or is taken to be away.
const SERVER_PATIENCE: Duration = Duration::from_secs(3);
/// How long the endpoints may take to be withdrawn.
const WITHDRAWAL_PATIENCE: Duration = Duration::from_secs(5);
const WITHDRAWAL_GLANCE: Duration = Duration::from_millis(20);
/// From endpoints withdrawn in the API to the last node that programmed it, and for requests under way to be answered.
const DRAIN: Duration = Duration::from_millis(200);
/// What a program may take to end after SIGTERM.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(5);

/// Takes away all that a note names. Goes on after a failure and tells the first one; may be repeated.
///
/// # Errors
/// The first thing that could not be taken away.
pub(super) async fn remove(
    note: &Note,
    run_dir: &std::path::Path,
    client: Option<&kube::Client>,
) -> Result<(), PodError> {
    let mut failures = Vec::new();
    if let Some(client) = client {
        let withdrawn = timeout(SERVER_PATIENCE, delete_object(client, note)).await;
        match withdrawn {
            Ok(Ok(())) => drain(client, note).await,
            Ok(Err(error)) => tracing::warn!(%error, "the Pod object stays behind"),
            Err(_) => tracing::warn!("the server is away: the Pod object stays behind"),
        }
    }
    let (of, run_dir_too) = (note.clone(), run_dir.to_path_buf());
    let blocking = tokio::task::spawn_blocking(move || {
        let mut failures = Vec::new();
        failures.extend(stop_processes(&of).err());
        let disconnected = cni::del(&of, &run_dir_too);
        failures.extend(disconnected.err().map(|source| PodError::Disconnect {
            pod: of.pod.clone(),
            source,
        }));
        match netns::delete(&of.netns) {
            Err(error) if !error.is_gone() => failures.push(error.into()),
            _ => {}
        }
        failures
    });
    failures.extend(blocking.await.unwrap_or_default());
    let resolv_conf = resolv_conf_of(&note.netns);
    if let Some(dir) = resolv_conf.parent() {
        // Mostly there is none; /etc/netns goes with the last one in it.
        _ = std::fs::remove_file(&resolv_conf);
        _ = std::fs::remove_dir(dir).and_then(|()| dir.parent().map_or(Ok(()), std::fs::remove_dir));
    }
    if failures.is_empty() {
        NotePath::of(run_dir, &note.netns).remove();
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Deletes the Pod object at once; that it is gone, or another one by now, is right too.
async fn delete_object(client: &kube::Client, note: &Note) -> Result<(), kube::Error> {
    let Some(uid) = &note.uid else { return Ok(()) };
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default().grace_period(0)
    };
    let pods = Api::<Pod>::namespaced(client.clone(), &note.namespace);
    match pods.delete(&note.pod, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits until nobody sends anything to the pod any more.
async fn drain(client: &kube::Client, note: &Note) {
    let Some(address) = note.address.map(|address| address.to_string()) else {
        return;
    };
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), &note.namespace);
    let deadline = Instant::now() + WITHDRAWAL_PATIENCE;
    while Instant::now() < deadline {
        let listed = timeout(SERVER_PATIENCE, slices.list(&ListParams::default())).await;
        let Ok(Ok(listed)) = listed else { return };
        let mut endpoints = listed
            .items
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten());
        if !endpoints.any(|endpoint| endpoint.addresses.contains(&address)) {
            break;
        }
        sleep(WITHDRAWAL_GLANCE).await;
    }
    sleep(DRAIN).await;
}

fn stop_processes(note: &Note) -> Result<(), PodError> {
    let Ok(namespace) = NetNs::open(&note.netns) else {
        return Ok(());
    };
    let inside = process::inside(&[namespace.id()?]);
    Ok(process::stop(&inside, Signal::SIGTERM, PROGRAM_PATIENCE)?)
}
