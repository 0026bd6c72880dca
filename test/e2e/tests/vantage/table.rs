//! Tables of what must happen, and how they are checked.
//!
//! A line is `FROM … | TARGET | OUTCOME`, for each vantage in the first column, and holds for both families and in all proxy
//! modes unless a last column says for which: `| v4`, `| ipvs`, `| v6 not ipvs`. The outcome is `refused` (at once), `dropped` (silence), or who answers: `web2 kept, web3
//! by n1` means that connections are spread over both, that web2 sees the address of the one who asks and web3 one of
//! node n1 (of one of several: `by n1 n2`). With `any:` before it, one of them is enough. Somebody else's answer is wrong, always.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use svcnet_netlink::netns::NetNs;

use crate::probe::{self, Outcome, Transport};
use crate::stage::{Family, Mode, Service, Stage};

/// Until a change that was just made is in force on every node.
const PATIENCE: Duration = Duration::from_secs(60);
/// Questions after which the absence of a wrong answer counts.
const QUESTIONS: usize = 12;
/// Questions within which everybody must have answered. With two endpoints one stays unasked once in 2^99 times.
const QUESTIONS_MAX: usize = 100;

/// Datagrams of which one must be refused: the kernel sends a host about one ICMP error a second.
const REFUSALS: usize = 10;

/// What must happen.
#[derive(Debug, Clone)]
pub(crate) enum Expected {
    /// Who answers, and the addresses that each may see.
    Answers {
        by: BTreeMap<String, Vec<IpAddr>>,
        all: bool,
    },
    Refused,
    Dropped,
}

/// One row in one family from one vantage.
struct Case {
    name: String,
    netns: NetNs,
    transport: Transport,
    to: SocketAddr,
    mark: u32,
    expected: Expected,
}

impl Stage {
    /// Checks a table over TCP.
    #[track_caller]
    pub(crate) fn check(&self, service: &str, table: &str) {
        self.check_over(Transport::Tcp, service, table);
    }

    /// Checks a table: every row must come true, and once all have they must stay so.
    #[track_caller]
    pub(crate) fn check_over(&self, transport: Transport, service: &str, table: &str) {
        let found = self.service(service);
        let cases: Vec<Case> = table
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .flat_map(|line| self.cases(transport, service, &found, line))
            .collect();
        assert!(!cases.is_empty(), "an empty table");
        let settled = in_parallel(&cases, Case::comes_true);
        assert!(
            settled.is_empty(),
            "{} of {} rows never hold:\n{}",
            settled.len(),
            cases.len(),
            settled.join("\n")
        );
        let stable = in_parallel(&cases, Case::holds);
        assert!(
            stable.is_empty(),
            "{} of {} rows do not hold always:\n{}",
            stable.len(),
            cases.len(),
            stable.join("\n")
        );
    }

    fn cases(&self, transport: Transport, name: &str, service: &Service, line: &str) -> Vec<Case> {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let (vantages, target, outcome, only) = match columns[..] {
            [vantages, target, outcome] => (vantages, target, outcome, ""),
            [vantages, target, outcome, only] => (vantages, target, outcome, only),
            _ => panic!("not a row: {line:?}"),
        };
        let families = self.families(only);
        let mut cases = Vec::new();
        for vantage in vantages.split_whitespace() {
            for family in &families {
                let (to, mark) = self.target(service, *family, target);
                cases.push(Case {
                    name: format!(
                        "{name}: {vantage} | {target} | {outcome} ({family:?}, {transport:?} to {to})"
                    ),
                    netns: self.netns(vantage),
                    transport,
                    to,
                    mark,
                    expected: self.expected(vantage, *family, outcome),
                });
            }
        }
        cases
    }

    /// The families that a row is for, by its last column; none when it is for other modes.
    fn families(&self, only: &str) -> Vec<Family> {
        let (mut families, mut wanted) = (Family::ALL.to_vec(), true);
        let mut words = only.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "v4" => families = vec![Family::V4],
                "v6" => families = vec![Family::V6],
                "not" => wanted &= words.next().and_then(Mode::named).unwrap() != self.mode,
                mode => wanted &= Mode::named(mode).unwrap() == self.mode,
            }
        }
        families.retain(|_| wanted);
        families
    }

    pub(crate) fn expected(&self, vantage: &str, family: Family, outcome: &str) -> Expected {
        let (outcome, all) = match outcome.strip_prefix("any:") {
            Some(outcome) => (outcome, false),
            None => (outcome, true),
        };
        if outcome == "refused" {
            return Expected::Refused;
        }
        if outcome == "dropped" {
            return Expected::Dropped;
        }
        let only = |mut addresses: Vec<IpAddr>| {
            addresses.retain(|address| Family::of(*address) == family);
            addresses
        };
        let of_family = |member: &str| only(self.addresses(member).to_vec());
        let by = outcome.split(',').map(|answer| {
            let words: Vec<&str> = answer.split_whitespace().collect();
            let seen = match words[1..] {
                ["kept"] => only(self.kept(vantage)),
                ["by", ref nodes @ ..] => nodes.iter().flat_map(|node| of_family(node)).collect(),
                _ => panic!("not an answer: {answer:?}"),
            };
            (words[0].to_string(), seen)
        });
        Expected::Answers {
            by: by.collect(),
            all,
        }
    }
}

/// What each case complains about.
fn in_parallel(cases: &[Case], check: impl Fn(&Case) -> Result<(), String> + Sync) -> Vec<String> {
    std::thread::scope(|scope| {
        let check = &check;
        let run = |case| scope.spawn(move || check(case));
        let running: Vec<_> = cases.iter().map(|case| (case, run(case))).collect();
        let ended = running
            .into_iter()
            .map(|(case, thread)| (case, thread.join().unwrap()));
        ended
            .filter_map(|(case, result)| Some(format!("  {}: {}", case.name, result.err()?)))
            .collect()
    })
}

impl Case {
    fn comes_true(&self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            match self.holds() {
                Err(why) if begun.elapsed() > PATIENCE => return Err(why),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
                Ok(()) => return Ok(()),
            }
        }
    }

    fn holds(&self) -> Result<(), String> {
        self.netns.run(|| self.ask()).unwrap()
    }

    /// In the namespace.
    fn ask(&self) -> Result<(), String> {
        let limited = self.transport == Transport::Udp && matches!(self.expected, Expected::Refused);
        let brief = limited || matches!(self.expected, Expected::Dropped);
        let ask = || probe::ask(self.transport, self.to, self.mark, brief);
        let (by, all) = match &self.expected {
            Expected::Refused if limited => {
                let mut asked = (1..REFUSALS).map(|_| ask());
                let told = asked.find(|outcome| *outcome != Outcome::Silence);
                return same(&told.unwrap_or_else(ask), &Outcome::Refused);
            }
            Expected::Refused => return same(&ask(), &Outcome::Refused),
            Expected::Dropped => return same(&ask(), &Outcome::Silence),
            Expected::Answers { by, all } => (by, *all),
        };
        let mut missing: Vec<&String> = by.keys().collect();
        let begun = Instant::now();
        for question in 0..QUESTIONS_MAX {
            if question >= QUESTIONS {
                // Two clients of one node that ask in step would each get the same endpoint of a round robin for ever.
                let out_of_step = begun.elapsed().subsec_nanos() % 20;
                std::thread::sleep(Duration::from_millis(out_of_step.into()));
            }
            let outcome = ask();
            let Outcome::Answered { who, seen } = &outcome else {
                return Err(format!("{outcome:?} at question {question}"));
            };
            match by.get(who) {
                None => return Err(format!("answered by {who}")),
                Some(right) if !right.contains(seen) => {
                    return Err(format!("{who} saw {seen}, which is none of {right:?}"));
                }
                Some(_) => missing.retain(|name| *name != who),
            }
            let enough = missing.is_empty() || !all;
            if enough && question + 1 >= QUESTIONS {
                return Ok(());
            }
        }
        Err(format!("{missing:?} never answered"))
    }
}

fn same(outcome: &Outcome, wanted: &Outcome) -> Result<(), String> {
    if outcome == wanted || *outcome == Outcome::Withheld {
        Ok(())
    } else {
        Err(format!("{outcome:?}"))
    }
}
