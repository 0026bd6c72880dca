//! An API server on a free loopback port, a kubectl for it, and a small HTTP client.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use svcnet_api::Admission;
use svcnet_apiserver::{ApiServer, AuditConfig, CERTIFICATES_LAST, Config, Limits};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A generous deadline for what should happen at once.
pub const SOON: Duration = Duration::from_secs(60);

pub struct Running {
    pub dir: Arc<tempfile::TempDir>,
    pub url: String,
    pub plain: String,
    pub kubeconfig: PathBuf,
    /// Another kubeconfig for kubectl.
    pub as_whom: Option<PathBuf>,
    /// Which kubectl.
    pub program: PathBuf,
    shutdown: CancellationToken,
    task: Option<JoinHandle<()>>,
}

pub fn config(dir: &Path) -> Config {
    Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        listen_plain: Some("127.0.0.1:0".parse().unwrap()),
        advertise_address: "127.0.0.1".parse().unwrap(),
        data_dir: dir.join("data"),
        datastore: None,
        token: None,
        admin_kubeconfig: dir.join("etc/kubeconfig.yaml"),
        node_name: "n1".to_string(),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        cluster_cidr: "10.244.0.0/16".to_string(),
        cluster_dns: vec!["10.96.0.10".parse().unwrap()],
        cluster_domain: "cluster.local".to_string(),
        tls_sans: vec!["box.example".to_string()],
        admissions: Vec::new(),
        limits: Limits::default(),
        audit: None,
        certificates_last: CERTIFICATES_LAST,
        metrics: Some(Arc::new(|| "svcnet_up 1\n".to_string())),
    }
}

impl Running {
    pub async fn start() -> Self {
        Self::start_with(Arc::new(tempfile::tempdir().unwrap()), Vec::new()).await
    }

    pub async fn start_with(dir: Arc<tempfile::TempDir>, admissions: Vec<Arc<dyn Admission>>) -> Self {
        Self::start_as(dir, |config| config.admissions = admissions).await
    }

    /// A server that is configured differently.
    pub async fn start_as(dir: Arc<tempfile::TempDir>, differ: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir.path());
        differ(&mut config);
        let server = ApiServer::start(config).await.unwrap();
        let shutdown = CancellationToken::new();
        let mut running = Self {
            dir,
            url: format!("https://{}", server.addresses()[0]),
            plain: format!("http://{}", server.plain_address().unwrap()),
            kubeconfig: server.admin_kubeconfig().to_path_buf(),
            as_whom: None,
            program: "kubectl".into(),
            shutdown: shutdown.clone(),
            task: None,
        };
        running.task = Some(tokio::spawn(async move { server.run(shutdown).await.unwrap() }));
        running
    }

    pub async fn stop(mut self) -> Arc<tempfile::TempDir> {
        self.shutdown.cancel();
        self.task.take().unwrap().await.unwrap();
        self.dir.clone()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(self.as_whom.as_ref().unwrap_or(&self.kubeconfig))
            .arg("--cache-dir")
            .arg(self.path("kubectl-cache"))
            .args(args)
            .env("HOME", self.dir.path())
            .env_remove("KUBECONFIG")
            .env("EDITOR", self.path("editor"))
            .stdin(Stdio::piped());
        command
    }

    /// Runs kubectl to its end, off the runtime's threads.
    pub async fn kubectl_full(&self, args: &[&str], stdin: &str) -> Output {
        let mut command = self.kubectl_command(args);
        let stdin = stdin.to_string();
        tokio::task::spawn_blocking(move || {
            use std::io::Write as _;
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("kubectl on the PATH");
            child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap()
    }

    /// What another kubectl than the one on the PATH prints when all is well.
    pub async fn kubectl_of(&self, program: &std::path::Path, args: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(self.kubectl_command(args).get_args());
        // A cache of its own: versions read each other's files differently.
        let cache = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        command
            .arg("--cache-dir")
            .arg(self.path(&cache))
            .env("HOME", self.dir.path())
            .env_remove("KUBECONFIG");
        let output = tokio::task::spawn_blocking(move || command.output().expect("kubectl runs"))
            .await
            .unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{} {args:?}\n{out}{err}",
            program.display()
        );
        out
    }

    /// What kubectl prints when all is well.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        self.kubectl_in(args, "").await
    }

    pub async fn kubectl_in(&self, args: &[&str], stdin: &str) -> String {
        let output = self.kubectl_full(args, stdin).await;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "kubectl {args:?}\n{out}{err}");
        out
    }

    /// What kubectl says when it is refused.
    pub async fn kubectl_refused(&self, args: &[&str], stdin: &str) -> String {
        let output = self.kubectl_full(args, stdin).await;
        assert!(
            !output.status.success(),
            "kubectl {args:?} was not refused: {}",
            text(&output.stdout)
        );
        text(&output.stderr)
    }

    /// A kubectl that goes on, its output into a file.
    pub fn kubectl_spawn(&self, args: &[&str], out: &str) -> Background {
        let file = std::fs::File::create(self.path(out)).unwrap();
        let child = self
            .kubectl_command(args)
            .stdout(file)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Background {
            child,
            out: self.path(out),
        }
    }

    /// A request over plain HTTP, as the administrator.
    pub async fn http(
        &self,
        method: Method,
        path: &str,
        media: &str,
        body: impl Into<Bytes>,
    ) -> (u16, Value) {
        let (code, _, body) = self
            .http_full(method, path, &[("content-type", media)], body)
            .await;
        (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub async fn http_full(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, http::HeaderMap, Bytes) {
        let address = self.plain.trim_start_matches("http://");
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", address);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender
            .send_request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap();
        let (head, body) = response.into_parts();
        (
            head.status.as_u16(),
            head.headers,
            body.collect().await.unwrap().to_bytes(),
        )
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.http(Method::GET, path, "application/json", "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.http(Method::POST, path, "application/json", body.to_string())
            .await
    }

    pub async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.http(Method::PUT, path, "application/json", body.to_string())
            .await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.http(Method::DELETE, path, "application/json", "").await
    }

    /// A watch over plain HTTP.
    pub async fn watch(&self, path: &str) -> Watch {
        let address = self.plain.trim_start_matches("http://");
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", address)
            .body(Full::new(Bytes::new()))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Watch::new(response.into_body())
    }

    /// The audit log's lines that are written whole. The server writes while this reads: what follows the last line feed
    /// is a line on its way.
    pub fn audited(&self) -> Vec<Value> {
        let text = std::fs::read(self.path(AUDIT_LOG)).unwrap_or_default();
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        text[..whole]
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    /// The first line of the audit log that is as wanted, once it is there.
    pub async fn audited_soon(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            if let Some(line) = self.audited().into_iter().find(&wanted) {
                return line;
            }
            assert!(
                start.elapsed() < SOON,
                "{what} is not in the audit log: {:#?}",
                self.audited()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The oldest and the newest kubectl of this machine: those of one version each stand beside the one on the PATH, as
/// `kubectl.1.NN`. Where there are none, that one alone.
pub fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("kubectl"))
        .find(|file| file.is_file());
    let found = found.expect("kubectl on the PATH");
    let minor = |file: &PathBuf| -> Option<u32> {
        file.file_name()?
            .to_str()?
            .strip_prefix("kubectl.1.")?
            .parse()
            .ok()
    };
    let beside = std::fs::read_dir(found.canonicalize().unwrap().parent().unwrap()).unwrap();
    let mut versions: Vec<PathBuf> = beside
        .map(|entry| entry.unwrap().path())
        .filter(|f| minor(f).is_some())
        .collect();
    versions.sort_by_key(minor);
    match &versions[..] {
        [] => vec![found],
        [one] => vec![one.clone()],
        [oldest, .., newest] => vec![oldest.clone(), newest.clone()],
    }
}

/// Where the audit log of a server is whose configuration says so.
pub const AUDIT_LOG: &str = "audit/audit.log";

pub fn auditing(config: &mut Config) {
    let dir = config.data_dir.parent().unwrap();
    config.audit = Some(AuditConfig {
        path: dir.join(AUDIT_LOG),
        bytes_max: 100_000_000,
        backups_max: 1,
    });
}

pub struct Watch {
    body: hyper::body::Incoming,
    rest: Vec<u8>,
}

impl Watch {
    pub fn new(body: hyper::body::Incoming) -> Self {
        Self {
            body,
            rest: Vec::new(),
        }
    }

    /// The next event; nothing when the server has ended the watch.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(SOON, self.body.frame())
                .await
                .expect("an event in time")?;
            self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn next_named(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch goes on");
        let name = event["object"]["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_string();
        (event["type"].as_str().unwrap().to_string(), name)
    }
}

pub struct Background {
    child: Child,
    out: PathBuf,
}

impl Background {
    /// Waits until the output is as wanted.
    pub async fn until(&self, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.out).unwrap();
            if wanted(&text) {
                return text;
            }
            assert!(start.elapsed() < SOON, "kubectl has only said: {text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ended(mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < SOON {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("kubectl does not end");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// What comes over a connection, until it holds what is wanted.
pub async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    while !answer.contains(wanted) {
        let read = tokio::time::timeout(SOON, stream.read(&mut buffer))
            .await
            .expect("an answer in time")
            .unwrap();
        assert!(read > 0, "the connection ended with: {answer}");
        answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    answer
}
