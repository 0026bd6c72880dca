//! Containers come and go on two nodes while the agents there are killed again and again: no address is two containers',
//! and in the end nothing is left of any. `SVCNET_CNI_PODS` says how many.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use svcnet_e2e::chain::{Attached, Chain, dir};
use svcnet_e2e::{Lab, until};
use svcnet_netlink::netns::OwnedNetNs;

const NODES: [&str; 2] = ["n2", "n3"];
/// Runtimes at work on each node.
const WORKERS: usize = 4;
/// An agent lives so long.
const LIFE_MS_MAX: u64 = 900;
/// A runtime that gets no answer tries again; a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Marsaglia's xorshift. A failure tells the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Who has which address, as runtimes know it.
#[derive(Default)]
struct Book {
    holders: Mutex<HashMap<String, String>>,
    kills: AtomicUsize,
    next: AtomicUsize,
    refused: AtomicUsize,
}

impl Book {
    fn enter(&self, address: &str, who: &str) {
        let former = self
            .holders
            .lock()
            .unwrap()
            .insert(address.to_string(), who.to_string());
        assert_eq!(former, None, "{address} was given to {who}, and is another's");
    }

    fn strike(&self, address: &str) {
        self.holders.lock().unwrap().remove(address);
    }
}

#[test]
fn killed_agents_lose_and_leak_nothing() {
    let pods = std::env::var("SVCNET_CNI_PODS").ok();
    let pods: usize = pods.map_or(40, |text| text.parse().expect("SVCNET_CNI_PODS is no number"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = u64::from(now.subsec_nanos()) << 20 | 1;
    println!("seed {seed}");
    let lab = Lab::up(&["--dual-stack"]);
    let before = NODES.map(|node| settled(&lab, node));
    let book = Book::default();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (lab, book, done) = (&lab, &book, &done);
        let killer = scope.spawn(move || keep_killing(lab, book, done, Random(seed)));
        let workers: Vec<_> = (0..NODES.len() * WORKERS)
            .map(|n| {
                scope.spawn(move || {
                    work(
                        lab,
                        book,
                        NODES[n % NODES.len()],
                        pods,
                        Random(seed + n as u64 + 1),
                    )
                })
            })
            .collect();
        let ends: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::SeqCst);
        killer.join().unwrap();
        ends.into_iter().for_each(|end| end.unwrap());
    });
    let (kills, refused) = (&book.kills, &book.refused);
    println!("{pods} pods, {kills:?} kills, {refused:?} calls that found no agent or lost it");
    assert!(kills.load(Ordering::SeqCst) > 0);
    for (node, before) in NODES.iter().zip(before) {
        // Those that were forgotten are found when the agent starts.
        kill(&lab, node);
        start(&lab, node);
        until(&format!("no lease is left on {node}"), || {
            leases(&lab, node).is_empty().then_some(())
        });
        until(&format!("{node} is as it was"), || {
            let now = observe(&lab, node);
            (now == before).then_some(()).or_else(|| {
                eprintln!("{node}: {now:?} instead of {before:?}");
                thread::sleep(Duration::from_secs(1));
                None
            })
        });
    }
    until("no Pod object is left", || {
        let listed = lab.kubectl(&[
            "get",
            "pods",
            "-A",
            "-l",
            "svcnet.io/created-by=cni",
            "-o",
            "name",
        ]);
        (listed.ok && listed.out.trim().is_empty()).then_some(())
    });
}

/// The same of a node that has come to rest: it has its routes to Services and to the pods of all others, which come
/// when its bridge and their Nodes are there.
fn settled(lab: &Lab, node: &str) -> [String; 4] {
    let mut former = None;
    until(&format!("{node} has its routes and rests"), || {
        let listed = lab.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"]);
        let now = observe(lab, node);
        let cidrs: Vec<&str> = listed.out.split_whitespace().collect();
        let pods = cidrs.len() == 3 && cidrs.iter().all(|cidr| now[1].contains(cidr));
        let whole = pods && now[1].contains("10.96.0.0/12");
        let rests = former.replace(now.clone()).is_some_and(|former| former == now);
        (whole && rests).then_some(now).or_else(|| {
            thread::sleep(Duration::from_secs(1));
            None
        })
    })
}

/// Links, routes and tables of a node.
fn observe(lab: &Lab, node: &str) -> [String; 4] {
    let chain = Chain::of(lab, node, "1.0.0");
    let shown = |words: &str| {
        let mut words = words.split(' ');
        let output = chain
            .node
            .run(|| Command::new(words.next().unwrap()).args(words).output());
        String::from_utf8(output.unwrap().unwrap().stdout).unwrap()
    };
    let links = shown("ip -br link");
    let mut links: Vec<&str> = links
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    links.sort_unstable();
    let sorted = |text: String| {
        let mut lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    [
        links.join("\n"),
        sorted(shown("ip -4 route show table all")),
        sorted(shown("nft list tables")),
        sorted(shown("ip -6 route show table local proto 117")),
    ]
}

fn leases(lab: &Lab, node: &str) -> Vec<String> {
    let leases = dir(lab, node, "dataDir").join("cni/leases");
    let names = std::fs::read_dir(leases)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name != "last").collect()
}

fn kill(lab: &Lab, node: &str) {
    let stop = lab.lab(&["node", "stop"], &[node, "--signal", "KILL", "--keep-pods"]);
    assert!(stop.ok, "{stop:?}");
}

fn start(lab: &Lab, node: &str) {
    let start = lab.lab(&["node", "start"], &[node, "--no-wait"]);
    assert!(start.ok, "{start:?}");
}

fn keep_killing(lab: &Lab, book: &Book, done: &AtomicBool, mut random: Random) {
    while !done.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(100 + random.below(LIFE_MS_MAX)));
        let node = NODES[usize::try_from(random.below(2)).unwrap()];
        kill(lab, node);
        book.kills.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(random.below(200)));
        start(lab, node);
    }
}

/// Adds and removes containers one after the other, with some of them there at a time.
fn work(lab: &Lab, book: &Book, node: &str, pods: usize, mut random: Random) {
    let chain = Chain::of(lab, node, "1.0.0");
    let mut running: Vec<Running> = Vec::new();
    loop {
        let number = book.next.fetch_add(1, Ordering::SeqCst);
        if number >= pods {
            break;
        }
        running.push(Running::start(&chain, book, node, number, &mut random));
        while running.len() > 3 || (!running.is_empty() && random.one_in(3)) {
            let at = usize::try_from(random.below(running.len() as u64)).unwrap();
            running.swap_remove(at).stop(&chain, book, &mut random);
        }
    }
    for container in running {
        container.stop(&chain, book, &mut random);
    }
}

struct Running {
    container: Attached,
    netns: OwnedNetNs,
    result: Value,
    addresses: Vec<String>,
}

impl Running {
    fn start(chain: &Chain, book: &Book, node: &str, number: usize, random: &mut Random) -> Self {
        let netns = OwnedNetNs::unique("e2e-churn").unwrap();
        let mut container = Attached::pod(&format!("churn-{number}"), Path::new(netns.path()));
        let mut runtime = serde_json::Map::new();
        if random.one_in(2) {
            let mapping = json!({ "hostPort": 20_000 + number, "containerPort": 80, "protocol": "tcp" });
            runtime.insert("portMappings".into(), json!([mapping]));
        }
        if random.one_in(4) {
            let limit = json!({ "egressRate": 100_000_000, "egressBurst": 10_000_000 });
            runtime.insert("bandwidth".into(), limit);
        }
        container.runtime = runtime.into();
        let result = patiently(&format!("ADD of churn-{number} on {node}"), || {
            // As runtimes do: what failed is deleted before it is tried again.
            chain.add(&container).inspect_err(|_| {
                book.refused.fetch_add(1, Ordering::SeqCst);
                let _ = chain.del(&container, &Value::Null);
            })
        });
        let ips = result["ips"].as_array().unwrap().iter();
        let addresses: Vec<String> = ips
            .map(|ip| ip["address"].as_str().unwrap().to_string())
            .collect();
        assert_eq!(addresses.len(), 2, "{result}");
        for address in &addresses {
            book.enter(address, &container.id);
        }
        Self {
            container,
            netns,
            result,
            addresses,
        }
    }

    fn stop(mut self, chain: &Chain, book: &Book, random: &mut Random) {
        for address in &self.addresses {
            book.strike(address);
        }
        if random.one_in(8) {
            // The runtime forgets it: no DEL ever comes.
            return;
        }
        if random.one_in(3) {
            drop(self.netns);
            self.container.netns = String::new();
        }
        patiently(&format!("DEL of {}", self.container.id), || {
            chain.del(&self.container, &self.result).inspect_err(|_| {
                book.refused.fetch_add(1, Ordering::SeqCst);
            })
        });
    }
}

fn patiently<T>(what: &str, mut call: impl FnMut() -> Result<T, Value>) -> T {
    let begun = Instant::now();
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{what}: {error}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}
