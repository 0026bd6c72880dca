//! A cluster without nodes: API server, allocator and controllers in this process, on loopback ports and a data
//! directory of their own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::{NamespaceResourceScope, Resource as K8sResource};
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use svcnet_api::types::CidrList;
use svcnet_apiserver::ApiServer;
use svcnet_controller::alloc::ServiceAllocator;
use svcnet_controller::{Config, Controllers};
use svcnet_runtime::{Context, Health, Informers, connect};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    pub(crate) client: kube::Client,
    pub(crate) shutdown: CancellationToken,
    controllers: Option<(DropGuard, JoinHandle<()>)>,
    agent_kubeconfig: std::path::PathBuf,
    cluster_cidr: CidrList,
    dir: TempDir,
    _stop: DropGuard,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with("10.244.0.0/16").await
    }

    pub(crate) async fn start_with(cluster_cidr: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let server = ApiServer::start(server_config(dir.path())).await.unwrap();
        // The administrator's leads to the advertised address, where nothing is served here.
        let client = connect::client(server.controller_kubeconfig()).await.unwrap();
        let agent_kubeconfig = server.agent_kubeconfig().to_path_buf();
        tokio::spawn(server.run(shutdown.clone()));
        let mut cluster = Self {
            client,
            _stop: shutdown.clone().drop_guard(),
            shutdown,
            controllers: None,
            agent_kubeconfig,
            cluster_cidr: cluster_cidr.parse().unwrap(),
            dir,
        };
        cluster.start_controllers().await;
        cluster
    }

    /// Starts the controllers and waits until they are ready.
    pub(crate) async fn start_controllers(&mut self) {
        let stop = self.shutdown.child_token();
        let context = self.context("controller", self.client.clone(), stop.clone());
        let config = Config {
            cluster_cidr: self.cluster_cidr.clone(),
            allocator: None,
        };
        let controllers = Controllers::new(config, &context).unwrap();
        let task = tokio::spawn(async move { controllers.run().await.unwrap() });
        self.controllers = Some((stop.drop_guard(), task));
        eventually("the controllers are ready", async || {
            context.health.report().0.then_some(())
        })
        .await;
    }

    pub(crate) async fn stop_controllers(&mut self) {
        if let Some((guard, task)) = self.controllers.take() {
            drop(guard);
            task.await.unwrap();
        }
    }

    /// What a role of node `name` runs on, with the identity of the server's own agent.
    pub(crate) async fn agent_context(&self, stop: CancellationToken) -> Context {
        let client = connect::client(&self.agent_kubeconfig).await.unwrap();
        self.context("server", client, stop)
    }

    fn context(&self, node_name: &str, client: kube::Client, shutdown: CancellationToken) -> Context {
        Context {
            node_name: node_name.to_string(),
            informers: Informers::new(client.clone(), None, shutdown.clone()),
            client,
            health: Health::default(),
            shutdown,
            data_dir: self.dir.path().to_path_buf(),
            run_dir: self.dir.path().to_path_buf(),
        }
    }

    pub(crate) fn api<
        K: K8sResource<Scope = NamespaceResourceScope> + k8s_openapi::Metadata<Ty = kube::core::ObjectMeta>,
    >(
        &self,
    ) -> Api<K> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Makes an object of whatever kind it says.
    pub(crate) async fn create(&self, object: Value) -> Value {
        self.try_create(object).await.unwrap()
    }

    pub(crate) async fn try_create(&self, object: Value) -> Result<Value, String> {
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default")
            .to_string();
        let api = self.dynamic(&object, &namespace);
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        match api.create(&PostParams::default(), &object).await {
            Ok(stored) => Ok(serde_json::to_value(stored).unwrap()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn dynamic(&self, object: &Value, namespace: &str) -> Api<DynamicObject> {
        let (group, version) = {
            let text = object["apiVersion"].as_str().unwrap();
            text.split_once('/').unwrap_or(("", text))
        };
        let kind = object["kind"].as_str().unwrap();
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match kind {
            "Node" | "Namespace" | "ServiceCIDR" | "IPAddress" => {
                Api::all_with(self.client.clone(), &resource)
            }
            _ => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }

    /// A pod that answers on this address.
    pub(crate) async fn pod(&self, name: &str, app: &str, node: &str, ip: &str) {
        self.create(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}},
            "spec": {"nodeName": node, "containers": [{
                "name": "c", "image": "none", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
        }))
        .await;
        self.pod_ready(name, Some(ip), true).await;
    }

    pub(crate) async fn pod_ready(&self, name: &str, ip: Option<&str>, ready: bool) {
        let mut status = json!({"phase": "Running", "conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" }, "reason": null}]});
        if let Some(ip) = ip {
            status["podIP"] = json!(ip);
            status["podIPs"] = json!([{"ip": ip}]);
        }
        let pods = self.api::<k8s_openapi::api::core::v1::Pod>();
        let patch = Patch::Strategic(json!({"status": status}));
        pods.patch_status(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// Messages of the Events with this reason.
    pub(crate) async fn events(&self, namespace: &str, reason: &str) -> Vec<String> {
        let events: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(self.client.clone(), namespace);
        let list = events.list(&ListParams::default()).await.unwrap();
        let told = list
            .items
            .into_iter()
            .filter(|event| event.reason.as_deref() == Some(reason));
        told.filter_map(|event| event.message).collect()
    }
}

fn server_config(dir: &Path) -> svcnet_apiserver::Config {
    let service_cidr: CidrList = "10.96.0.0/12".parse().unwrap();
    let reserved = ["10.96.0.1".parse().unwrap(), "10.96.0.10".parse().unwrap()];
    let allocator = ServiceAllocator::new(&service_cidr, "30000-32767".parse().unwrap(), &reserved).unwrap();
    svcnet_apiserver::Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        listen_plain: None,
        // One that may stand in Endpoints, which loopback may not.
        advertise_address: "192.0.2.1".parse().unwrap(),
        data_dir: dir.join("data"),
        datastore: None,
        token: None,
        admin_kubeconfig: dir.join("admin.yaml"),
        node_name: "server".to_string(),
        service_cidrs: service_cidr.iter().collect(),
        cluster_cidr: "10.244.0.0/16".to_string(),
        cluster_dns: vec![reserved[1]],
        cluster_domain: "cluster.local".to_string(),
        tls_sans: Vec::new(),
        limits: svcnet_apiserver::Limits::default(),
        audit: None,
        certificates_last: svcnet_apiserver::CERTIFICATES_LAST,
        admissions: vec![Arc::new(allocator)],
        metrics: None,
    }
}

/// Waits until `look` finds what it looks for.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until `look` sees this very thing, and says what it saw if it does not.
pub(crate) async fn becomes<T: PartialEq + std::fmt::Debug>(wanted: T, mut look: impl AsyncFnMut() -> T) {
    let start = Instant::now();
    loop {
        let seen = look().await;
        if seen == wanted {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "wanted {wanted:?}, saw {seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
