//! A real etcd on loopback ports, with TLS both ways, in a directory of its own; gone with the test.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use svcnet_store::{EtcdConfig, SharedValues};

/// A generous deadline for what should happen at once.
pub const SOON: Duration = Duration::from_secs(60);

pub struct Etcd {
    pub dir: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    child: Child,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Etcd {
    /// Starts one, and waits until it answers.
    pub async fn start() -> Self {
        let mut dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        // Another program may take a port between its being found and etcd's listening: then with others.
        for _ in 0..5 {
            let (client_port, peer_port) = (free_port(), free_port());
            let child = spawn(dir.path(), client_port, peer_port);
            let mut etcd = Self {
                dir,
                client_port,
                peer_port,
                child,
            };
            if etcd.until_answers().await {
                return etcd;
            }
            dir = std::mem::replace(&mut etcd.dir, tempfile::tempdir().unwrap());
            fs::remove_dir_all(dir.path().join("data")).unwrap();
        }
        panic!("etcd does not start");
    }

    /// Kills it, as a power cut would, and starts it again on what it has on its disk.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.dir.path(), self.client_port, self.peer_port);
        assert!(self.until_answers().await, "etcd does not start again");
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.client_port)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// How a store with this prefix reaches it.
    pub fn config(&self, prefix: &str) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![self.url().parse().unwrap()],
            ca_file: Some(self.file("ca.crt")),
            client_files: Some((self.file("client.crt"), self.file("client.key"))),
            prefix: prefix.to_string(),
            resolve: None,
        }
    }

    async fn until_answers(&mut self) -> bool {
        let values = SharedValues::new(&self.config("/probe")).unwrap();
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            if values.get("x").await.is_ok() {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn spawn(dir: &Path, client_port: u16, peer_port: u16) -> Child {
    let (client, peer) = (
        format!("https://127.0.0.1:{client_port}"),
        format!("http://127.0.0.1:{peer_port}"),
    );
    let log = fs::File::create(dir.join("log")).unwrap();
    Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args([
            "--initial-cluster",
            &format!("default={peer}"),
            "--client-cert-auth",
        ])
        .args(["--logger", "zap", "--log-level", "warn"])
        .arg("--trusted-ca-file")
        .arg(dir.join("ca.crt"))
        .arg("--cert-file")
        .arg(dir.join("server.crt"))
        .arg("--key-file")
        .arg(dir.join("server.key"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("etcd on the PATH (Debian: etcd-server)")
}

fn certificates(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}
