//! `svcnet server` as a process of its own, on loopback, with directories of its own.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use svcnet_e2e::{binary, until};

/// A server that is killed when dropped, and leaves nothing.
#[derive(Debug)]
pub struct Server {
    dir: tempfile::TempDir,
    port: u16,
    flags: Vec<String>,
    process: Option<Child>,
}

impl Server {
    /// Starts a server with further flags, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start(flags: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("no directory for the server: {error}"));
        let mut server = Self {
            dir,
            port: free_port(),
            flags: flags.to_vec(),
            process: None,
        };
        server.begin();
        server
    }

    /// Starts it (again), on the same port with the same data, and waits until it is ready.
    ///
    /// # Panics
    /// When it runs already, or does not become ready.
    #[track_caller]
    pub fn begin(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        self.process = Some(self.spawn());
        until("the server is ready", || {
            let ended = self.process.as_mut().and_then(|p| p.try_wait().ok().flatten());
            assert!(ended.is_none(), "the server has ended: {}", self.log());
            let asked = Command::new("kubectl")
                .args([
                    "--kubeconfig",
                    &self.kubeconfig().to_string_lossy(),
                    "--cache-dir",
                ])
                .arg(self.path("kubectl-cache"))
                .args(["get", "--raw", "/readyz"])
                .env("HOME", self.dir.path())
                .stdin(Stdio::null())
                .output();
            asked.is_ok_and(|o| o.stdout == b"ok").then_some(())
        });
    }

    fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(self.path("log"));
        let log = log.unwrap_or_else(|error| panic!("no log for the server: {error}"));
        let at = |name: &str| self.path(name).to_string_lossy().into_owned();
        let mut command = Command::new(binary());
        command
            .args([
                "server",
                "--disable-agent",
                "--node-name",
                "n1",
                "--node-ip",
                "127.0.0.1",
            ])
            .args([
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                &self.port.to_string(),
            ])
            .args(["--metrics-bind-address", "127.0.0.1:0", "--log-level", "warn"])
            .args([
                "--config",
                "/dev/null",
                "--data-dir",
                &at("data"),
                "--run-dir",
                &at("run"),
            ])
            .args(["--kubeconfig-out", &at("kubeconfig.yaml")])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Ends it as a power cut would: no handler runs.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Only fails when it has ended already.
            _ = process.kill();
            _ = process.wait();
        }
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig.yaml")
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}

/// A port that is free now, and that nobody else is given soon: the kernel goes round.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    listener
        .unwrap_or_else(|error| panic!("no port on loopback: {error}"))
        .port()
}
