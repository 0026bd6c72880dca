//! Tables of commands and what they must say, as text (`tables/*.txt`):
//!
//! ```text
//! server: --service-node-port-range 30000-30100        further flags of the server, before the first case
//!
//! ## a title
//! source: where the real one says so
//! kubectl: 1.28-1.31                                    only for these versions; either end may be missing
//! $ kubectl create configmap a                          run by bash, in a namespace of its own
//! | a line of standard input
//!   a line of standard output
//! ! a line of standard error
//! ? 1                                                   how it ends; 0 where nothing is said
//! ```
//!
//! `[..]` stands for anything within a line, a line of `...` for any lines, `[NS]` for the case's namespace. Several
//! commands of a case share the namespace. A command that begins with `$~` is tried again until it says what it must:
//! for what controllers do in their own time. Before standard input that begins with `{` comes a line `---`: up to 1.32 kubectl takes
//! it for JSON otherwise.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Server;

/// How long a command that is tried again may take to come right.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kubectl, and which version it is: the minor one, `33`.
#[derive(Debug, Clone)]
pub struct Kubectl {
    path: PathBuf,
    minor: u32,
}

impl Kubectl {
    /// Those that `SVCNET_CONFORMANCE_KUBECTL` names, with colons between, each minor version once; else the one on the PATH.
    ///
    /// # Panics
    /// When there is none: a test that skips is a test that fails.
    pub fn all() -> Vec<Self> {
        let named = std::env::var("SVCNET_CONFORMANCE_KUBECTL").unwrap_or_default();
        if named.is_empty() {
            return vec![Self::at(Path::new("kubectl"))];
        }
        let mut seen = BTreeSet::new();
        let named = named.split(':').map(|path| Self::at(Path::new(path)));
        named.filter(|kubectl| seen.insert(kubectl.minor)).collect()
    }

    fn at(path: &Path) -> Self {
        let output = Command::new(path)
            .args(["version", "--client", "-o", "json"])
            .output();
        let output = output.unwrap_or_else(|error| panic!("no kubectl at {}: {error}", path.display()));
        let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let minor = version
            .pointer("/clientVersion/minor")
            .and_then(serde_json::Value::as_str);
        let minor = minor.and_then(|m| m.trim_end_matches('+').parse().ok());
        Self {
            path: path.to_path_buf(),
            minor: minor.unwrap_or_else(|| panic!("{} tells no version: {output:?}", path.display())),
        }
    }
}

/// A command and what it must say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Step {
    command: String,
    again: bool,
    stdin: String,
    out: Vec<String>,
    err: Vec<String>,
    code: i32,
}

/// A row: commands in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Case {
    title: String,
    versions: (u32, u32),
    steps: Vec<Step>,
}

/// The flags of the server, and the rows.
fn parse(text: &str) -> (Vec<String>, Vec<Case>) {
    let (mut flags, mut cases) = (Vec::new(), Vec::<Case>::new());
    for (index, line) in text.lines().enumerate() {
        let wrong = || -> ! { panic!("line {}: {line:?} is no part of a table", index + 1) };
        if let Some(title) = line.strip_prefix("## ") {
            cases.push(Case {
                title: title.to_string(),
                versions: (0, u32::MAX),
                steps: Vec::new(),
            });
            continue;
        }
        if line.is_empty() || line.starts_with("# ") || line.starts_with("source: ") {
            continue;
        }
        if let Some(more) = line.strip_prefix("server: ") {
            flags.extend(more.split_whitespace().map(str::to_string));
            continue;
        }
        let Some(case) = cases.last_mut() else { wrong() };
        if let Some(range) = line.strip_prefix("kubectl: ") {
            case.versions = versions(range).unwrap_or_else(|| wrong());
            continue;
        }
        if let Some(command) = line.strip_prefix('$') {
            case.steps.push(Step {
                again: command.starts_with('~'),
                command: command.trim_start_matches('~').trim().to_string(),
                ..Step::default()
            });
            continue;
        }
        let Some(step) = case.steps.last_mut() else {
            wrong()
        };
        match line.split_at_checked(1) {
            Some(("|", text)) => step.stdin += &format!("{}\n", text.strip_prefix(' ').unwrap_or(text)),
            Some((" ", text)) => step.out.push(text.strip_prefix(' ').unwrap_or(text).to_string()),
            Some(("!", text)) => step.err.push(text.strip_prefix(' ').unwrap_or(text).to_string()),
            Some(("?", code)) => step.code = code.trim().parse().unwrap_or_else(|_| wrong()),
            _ => wrong(),
        }
    }
    (flags, cases)
}

fn versions(range: &str) -> Option<(u32, u32)> {
    let minor = |text: &str, open| match text.trim() {
        "" => Some(open),
        text => text.strip_prefix("1.")?.parse().ok(),
    };
    let (from, to) = range.split_once('-')?;
    Some((minor(from, 0)?, minor(to, u32::MAX)?))
}

/// Whether lines are as wanted.
fn matches(wanted: &[String], lines: &[&str]) -> bool {
    match (wanted.split_first(), lines.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((first, after)), _) if first == "..." => {
            (0..=lines.len()).any(|skip| matches(after, &lines[skip..]))
        }
        (Some((first, after)), Some((line, rest))) => {
            like(first.trim_end(), line.trim_end()) && matches(after, rest)
        }
        (Some(_), None) => false,
    }
}

fn like(wanted: &str, line: &str) -> bool {
    match wanted.split_once("[..]") {
        None => wanted == line,
        Some((head, tail)) => line.strip_prefix(head).is_some_and(|rest| {
            let ends = (0..=rest.len()).filter(|at| rest.is_char_boundary(*at));
            ends.into_iter().any(|at| like(tail, &rest[at..]))
        }),
    }
}

/// Where the `kubectl` of a case is.
const BIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bin");

/// Where the commands of a case run.
struct Room<'a> {
    server: &'a Server,
    namespace: String,
    dir: PathBuf,
    kubectl: PathBuf,
    cache: PathBuf,
}

impl<'a> Room<'a> {
    /// Makes the namespace, and a `kubectl` that is in it.
    fn open(server: &'a Server, kubectl: &'a Kubectl, number: usize) -> Self {
        let namespace = format!("c{}-{number}", kubectl.minor);
        let dir = server.path(&namespace);
        let room = Self {
            server,
            namespace,
            dir,
            kubectl: which(&kubectl.path),
            cache: server.path(&format!("cache-{}", kubectl.minor)),
        };
        let fail = |what: &str, error: std::io::Error| -> ! { panic!("{what}: {error}") };
        std::fs::create_dir_all(&room.dir).unwrap_or_else(|error| fail("the case's directory", error));
        let config =
            std::fs::read_to_string(server.kubeconfig()).unwrap_or_else(|e| fail("the kubeconfig", e));
        let inside = format!("  context:\n    namespace: {}", room.namespace);
        let config = config.replacen("  context:", &inside, 1);
        assert!(
            config.contains(&inside),
            "the kubeconfig has another form: {config}"
        );
        std::fs::write(room.dir.join("config"), config).unwrap_or_else(|e| fail("the kubeconfig", e));
        let made = room.run(&format!("kubectl create namespace {}", room.namespace), "");
        assert_eq!(made.2, 0, "{}{}", made.0, made.1);
        room
    }

    /// Standard output, standard error, and how it ended.
    fn run(&self, command: &str, stdin: &str) -> (String, String, i32) {
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new("bash")
            .args(["-c", command])
            .env("PATH", format!("{BIN}:{path}"))
            .env("CASE_KUBECTL", &self.kubectl)
            .env("CASE_DIR", &self.dir)
            .env("CASE_CACHE", &self.cache)
            .env("HOME", &self.dir)
            .env("NS", &self.namespace)
            .env("SERVER_DIR", self.server.dir())
            .env_remove("KUBECONFIG")
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.unwrap_or_else(|error| panic!("bash: {error}"));
        if let Some(mut pipe) = child.stdin.take() {
            let stdin = if stdin.starts_with('{') {
                format!("---\n{stdin}")
            } else {
                stdin.to_string()
            };
            // Who reads none of it closes the pipe.
            _ = pipe.write_all(stdin.as_bytes());
        }
        let output = child
            .wait_with_output()
            .unwrap_or_else(|error| panic!("{command}: {error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&self.namespace, "[NS]");
        (
            text(&output.stdout),
            text(&output.stderr),
            output.status.code().unwrap_or(-1),
        )
    }

    /// What is wrong with a step; nothing when all is well.
    fn step(&self, step: &Step) -> Option<String> {
        let begun = Instant::now();
        loop {
            let (out, err, code) = self.run(&step.command, &step.stdin);
            let lines = |text: &'_ str| text.lines().map(str::to_string).collect::<Vec<_>>();
            let right = |wanted: &[String], got: &str| matches(wanted, &got.lines().collect::<Vec<_>>());
            if right(&step.out, &out) && right(&step.err, &err) && code == step.code {
                return None;
            }
            if step.again && begun.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(200));
                continue;
            }
            let mut said = format!("$ {}\n", step.command);
            for (mark, lines) in [("  ", lines(&out)), ("! ", lines(&err))] {
                lines.iter().for_each(|line| _ = writeln!(said, "{mark}{line}"));
            }
            _ = writeln!(said, "? {code}\n--- wanted");
            for (mark, lines) in [("  ", &step.out), ("! ", &step.err)] {
                lines.iter().for_each(|line| _ = writeln!(said, "{mark}{line}"));
            }
            _ = writeln!(said, "? {}", step.code);
            return Some(said);
        }
    }
}

fn which(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_path_buf();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {} on the PATH", program.display()))
}

/// Runs a table with every kubectl, against a server of its own.
///
/// # Panics
/// When something is not as the table says: with all of it.
#[track_caller]
pub fn run_table(name: &str) {
    let path = format!("{}/tables/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (flags, cases) = parse(&text);
    let server = Server::start(&flags);
    let (mut wrong, mut count) = (String::new(), 0);
    for kubectl in Kubectl::all() {
        for (number, case) in cases.iter().enumerate() {
            if !(case.versions.0..=case.versions.1).contains(&kubectl.minor) {
                continue;
            }
            let room = Room::open(&server, &kubectl, number);
            count += 1;
            if let Some(said) = case.steps.iter().find_map(|step| room.step(step)) {
                _ = writeln!(wrong, "\n## {} (kubectl 1.{})\n{said}", case.title, kubectl.minor);
            }
        }
    }
    assert!(count > 0, "{path} has no row for this kubectl");
    assert!(wrong.is_empty(), "{path}:\n{wrong}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        let (flags, cases) = parse(
            "server: --a b\n\n## one\nsource: s\nkubectl: 1.28-\n$ kubectl x\n| in\n  out\n! err\n? 1\n$~ second\n",
        );
        assert_eq!(flags, ["--a", "b"]);
        assert_eq!(
            (cases[0].title.as_str(), cases[0].versions),
            ("one", (28, u32::MAX))
        );
        let [first, second] = &cases[0].steps[..] else {
            panic!("{cases:?}")
        };
        assert_eq!((first.stdin.as_str(), first.code), ("in\n", 1));
        assert_eq!(
            (&first.out[..], &first.err[..]),
            (&["out".to_string()][..], &["err".to_string()][..])
        );
        assert!(second.again && second.command == "second");
    }

    #[test]
    fn wildcards_stand_for_parts_of_lines_and_for_lines() {
        let wanted: Vec<String> = ["a[..]c", "...", "z"].map(str::to_string).into();
        assert!(matches(&wanted, &["abc", "z"]) && matches(&wanted, &["ac", "q", "r", "z"]));
        assert!(!matches(&wanted, &["ab", "z"]) && !matches(&wanted, &["abc", "z", "y"]));
    }
}
