//! `svcnet server` without an agent, on loopback ports and in a directory of its own.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use svcnet_runtime::{connect, servers};

use crate::etcd::{Etcd, SOON};

pub(crate) struct Server {
    dir: PathBuf,
    name: String,
    port: u16,
    args: Vec<String>,
    finds_its_address: bool,
    child: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// One that is not started yet; `args` are further arguments.
    pub(crate) fn new(dir: &Path, name: &str, args: &[String]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        fs::create_dir_all(dir).unwrap();
        Self {
            dir: dir.to_path_buf(),
            name: name.to_string(),
            port,
            args: args.to_vec(),
            finds_its_address: false,
            child: None,
        }
    }

    /// One that is not told its address, but finds that of a link, and follows it.
    pub(crate) fn finding_its_address(mut self) -> Self {
        self.finds_its_address = true;
        self
    }

    /// The arguments of a server that shares an etcd.
    pub(crate) fn on(etcd: &Etcd, token: &str) -> Vec<String> {
        let file = |name: &str| etcd.file(name).display().to_string();
        let args = [
            ("--datastore-endpoint", etcd.url()),
            ("--datastore-cafile", file("ca.crt")),
            ("--datastore-certfile", file("client.crt")),
            ("--datastore-keyfile", file("client.key")),
            ("--token", token.to_string()),
        ];
        args.into_iter()
            .flat_map(|(flag, value)| [flag.to_string(), value])
            .collect()
    }

    pub(crate) fn spawn(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let port = self.port.to_string();
        let node_ip: &[&str] = if self.finds_its_address {
            &[]
        } else {
            &["--node-ip", "127.0.0.1"]
        };
        let child = Command::new(svcnet_e2e::binary())
            .args(["server", "--disable-agent", "--node-name", &self.name])
            .args(node_ip)
            .args(["--bind-address", "127.0.0.1", "--secure-port", &port])
            .args([
                "--metrics-bind-address",
                "127.0.0.1:0",
                "--service-node-port-range",
                "30000-32767",
            ])
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .arg("--run-dir")
            .arg(self.dir.join("run"))
            .arg("--kubeconfig-out")
            .arg(self.kubeconfig())
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Starts it, and waits until it answers.
    pub(crate) async fn start(&mut self) -> kube::Client {
        self.spawn();
        let deadline = Instant::now() + SOON;
        loop {
            if let Ok(client) = connect::client(&self.kubeconfig()).await
                && client.apiserver_version().await.is_ok()
            {
                return client;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Has it end in order.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
            kill(pid, Signal::SIGTERM).unwrap();
            assert!(child.wait().unwrap().success(), "{}", self.log());
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// Waits for the end of one that does not start, and gives its log.
    pub(crate) fn until_refused(&mut self) -> String {
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(!status.success());
        self.log()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.yaml")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn token(&self) -> String {
        fs::read_to_string(self.dir.join("data/token"))
            .unwrap()
            .trim()
            .to_string()
    }

    /// A client of this server's administrator that goes on at another server.
    pub(crate) async fn client_of_both(&self, other: &Self) -> kube::Client {
        let own = fs::read_to_string(self.kubeconfig()).unwrap();
        let line = servers::lines(&self.url());
        let both = servers::lines(&format!("{},{}", self.url(), other.url()));
        assert!(own.contains(&line), "{own}");
        let path = self.dir.join("both.yaml");
        fs::write(&path, own.replace(&line, &both)).unwrap();
        connect::client(&path).await.unwrap()
    }
}
