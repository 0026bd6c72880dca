//! A process killed in the middle of its work loses nothing that it had acknowledged.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use svcnet_store::{Change, CollectionSpec, Key, Range, Store, Template, Write};

const DIR: &str = "SVCNET_STORE_CRASH_DIR";
const WRITERS: u64 = 8;
const NAMES: u64 = 40;

fn open(dir: &Path) -> Store {
    let spec = |name: &str, volatile| CollectionSpec {
        name: name.to_string(),
        volatile,
        encrypted: false,
    };
    Store::open(dir, &[spec("services", false), spec("leases", true)]).unwrap()
}

/// The child: writes until it is killed, and says on its output what was acknowledged.
#[test]
fn child_writes_until_it_is_killed() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = open(Path::new(&dir));
        let tasks: Vec<_> = (0..WRITERS)
            .map(|w| tokio::spawn(write(store.clone(), w)))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Writes and deletes in turn, and says so.
async fn write(store: Store, writer: u64) {
    let collection = store.collection("services").unwrap();
    let leases = store.collection("leases").unwrap();
    for turn in 0_u64.. {
        let name = format!("w{writer}-{}", (turn * 7) % NAMES);
        let key = Key::new(collection, "default", &name);
        let expect = store.get(&key).map(|e| e.revision);
        let deletes = expect.is_some() && turn % 5 == 0;
        let template = Template::new("v".repeat((turn % 900) as usize).into_bytes(), Vec::new());
        let change = if deletes {
            Change::Delete(template)
        } else {
            Change::Put(template)
        };
        let write = Write {
            key,
            change,
            expect,
            guards: Vec::new(),
        };
        if deletes {
            say(&format!("deleting {name} 0 .\n"));
        }
        let done = store.commit(write).await.unwrap();
        let verb = if deletes { "delete" } else { "put" };
        say(&format!("{verb} {name} {} .\n", done.revision));
        let beat = Key::new(leases, "default", &format!("w{writer}"));
        let expect = store.get(&beat).map(|e| e.revision);
        let change = Change::Put(Template::new(Vec::new(), Vec::new()));
        let beat = Write {
            key: beat,
            change,
            expect,
            guards: Vec::new(),
        };
        store.commit(beat).await.unwrap();
    }
}

/// One write call, so that lines do not mix; a line that the kill has cut is ignored.
fn say(line: &str) {
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// What the children have said about each name.
#[derive(Default)]
struct Told {
    /// The last acknowledged change: whether it was a deletion, and its revision.
    acknowledged: BTreeMap<String, (bool, u64)>,
    /// Names whose deletion was begun and not acknowledged.
    deleting: BTreeSet<String>,
    count: usize,
}

impl Told {
    fn take(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let [verb, name, revision, "."] = words[..] else {
            return None;
        };
        match verb {
            "deleting" => {
                self.deleting.insert(name.to_string());
            }
            "put" | "delete" => {
                let revision = revision.parse().ok()?;
                self.deleting.remove(name);
                self.acknowledged
                    .insert(name.to_string(), (verb == "delete", revision));
                self.count += 1;
            }
            _ => {}
        }
        Some(())
    }
}

/// Runs a child and kills it after so many acknowledgements.
fn run(dir: &Path, acknowledgements: usize) -> Told {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_writes_until_it_is_killed", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut told = Told::default();
    while let Some(Ok(line)) = lines.next() {
        _ = told.take(&line);
        if told.count == acknowledgements {
            child.0.kill().unwrap();
        }
    }
    assert!(told.count >= acknowledgements, "the child ended by itself");
    told
}

#[test]
fn acknowledged_writes_survive_kill_9_and_revisions_never_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut last_revision = 0;
    for round in 0..8 {
        let told = run(dir.path(), 50 + round * 173 % 700);
        let store = open(dir.path());
        let services = store.collection("services").unwrap();
        let there = store.list(services, &Range::default(), None).unwrap();
        let there: BTreeMap<_, _> = there
            .entries
            .iter()
            .map(|(path, e)| (path.trim_start_matches("default/").to_string(), e.revision))
            .collect();
        for (name, (deleted, revision)) in &told.acknowledged {
            assert!(
                *revision > last_revision,
                "{name} got a revision of an earlier life"
            );
            // A later change that nobody was told of may be there too.
            match there.get(name) {
                Some(found) => assert!(found >= revision && !(*deleted && found == revision), "{name}"),
                None => assert!(*deleted || told.deleting.contains(name), "{name} is lost"),
            }
        }
        last_revision = store.revision();
        assert!(there.values().all(|r| *r < last_revision));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store.close());
    }
}
