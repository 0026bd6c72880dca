//! From a question to the sections of its answer: a function of the zone and the question alone.

use std::net::IpAddr;

use super::facts::{Endpoint, Kind, Protocol};
use super::find::{Missing, Node};
use super::{ServiceEntry, Zone, wide};
use crate::name::Name;
use crate::wire::{Answer, Data, Owner, Rcode, Record, RecordType};

/// Version of the schema that the zone follows.
const SCHEMA: &str = "1.1.0";
/// ExternalName Services in a row before we call it a loop.
const ALIASES_MAX: usize = 8;

/// A question about class IN.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The name: wire format, lower case, with the root label.
    pub name: &'a [u8],
    /// What is asked for.
    pub record_type: RecordType,
    /// Which of several addresses comes first: a number that differs from question to question.
    pub rotation: u32,
}

/// What the zone has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The name is ours.
    Ours {
        /// The sections.
        answer: Answer,
        /// How it came to be.
        reason: Reason,
        /// A name outside the zone whose answer belongs behind these records.
        chase: Option<Name>,
    },
    /// Ask somebody else.
    Elsewhere,
}

/// How an answer came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There are such records.
    Found,
    /// The name exists without such records.
    NoSuchType,
    /// The name does not exist.
    Missing(Missing),
    /// It may exist: the first lists have not all come in.
    NotSynced,
    /// ExternalName Services that stand for each other.
    AliasLoop,
}

impl Zone {
    /// Answers a question.
    pub fn answer(&self, question: Question<'_>) -> Verdict {
        if question.record_type == RecordType::PTR
            && let Some(verdict) = self.answer_reverse(question.name)
        {
            return verdict;
        }
        let Some(mut found) = self.find(question.name) else {
            return Verdict::Elsewhere;
        };
        let mut answer = Answer::empty(Rcode::NoError, true);
        let mut owner = Owner::Question;
        let mut aliases = 0;
        while let Ok(Node::Alias(target)) = found {
            answer
                .records
                .push(self.record(owner, Data::Cname(target.clone())));
            if question.record_type == RecordType::CNAME {
                return ours(answer, Reason::Found);
            }
            aliases += 1;
            if aliases > ALIASES_MAX {
                return ours(Answer::empty(Rcode::ServFail, false), Reason::AliasLoop);
            }
            match self.find(target.wire()) {
                Some(next) => found = next,
                None => {
                    return Verdict::Ours {
                        answer,
                        reason: Reason::Found,
                        chase: Some(target.clone()),
                    };
                }
            }
            owner = Owner::Name(target.clone());
        }
        match found {
            Ok(node) => self.answer_node(&node, question, owner, answer),
            Err(Missing::NotInSchema) => self.negative(answer, Rcode::NxDomain, Missing::NotInSchema.into()),
            Err(_) if !self.synced => self.not_synced(),
            Err(missing) => self.negative(answer, Rcode::NxDomain, missing.into()),
        }
    }

    fn answer_node(
        &self,
        node: &Node<'_>,
        question: Question<'_>,
        owner: Owner,
        mut answer: Answer,
    ) -> Verdict {
        let asked = question.record_type;
        let before = answer.records.len();
        match node {
            Node::Apex => self.answer_apex(asked, &owner, &mut answer),
            Node::Version if wants(asked, RecordType::TXT) => {
                answer.records.push(self.record(owner, Data::Txt(SCHEMA)));
            }
            Node::Server => {
                let servers = self.settings.servers.iter().copied();
                self.push_addresses(servers, asked, &owner, &mut answer.records);
            }
            Node::Addresses(addresses) => {
                self.push_addresses(addresses.iter().copied(), asked, &owner, &mut answer.records);
            }
            Node::Service(entry) if asked == RecordType::SRV => {
                self.answer_srv(entry, None, &owner, &mut answer);
            }
            Node::Service(entry) => {
                self.push_rotated(
                    &entry.v4,
                    RecordType::A,
                    Data::A,
                    question,
                    &owner,
                    &mut answer.records,
                );
                self.push_rotated(
                    &entry.v6,
                    RecordType::AAAA,
                    Data::Aaaa,
                    question,
                    &owner,
                    &mut answer.records,
                );
            }
            Node::Port(entry, name, protocol) if wants(asked, RecordType::SRV) => {
                self.answer_srv(entry, Some((name, *protocol)), &owner, &mut answer);
            }
            Node::Version | Node::Between | Node::Alias(_) | Node::Port(..) => {}
        }
        if answer.records.len() > before {
            return ours(answer, Reason::Found);
        }
        let certain = matches!(node, Node::Apex | Node::Version | Node::Server | Node::Between);
        if !self.synced && !certain {
            return self.not_synced();
        }
        self.negative(answer, Rcode::NoError, Reason::NoSuchType)
    }

    fn answer_apex(&self, asked: RecordType, owner: &Owner, answer: &mut Answer) {
        if wants(asked, RecordType::SOA) {
            answer
                .records
                .push(self.record(owner.clone(), Data::Soa(self.soa.clone())));
        }
        if wants(asked, RecordType::NS) {
            let server = &self.soa.server;
            answer
                .records
                .push(self.record(owner.clone(), Data::Ns(server.clone())));
            let servers = self.settings.servers.iter().copied();
            let owner = Owner::Name(server.clone());
            self.push_addresses(servers, RecordType::ANY, &owner, &mut answer.additional);
        }
    }

    /// One SRV record for each port (of that name, if one is given) and host, and the addresses of the hosts.
    fn answer_srv(
        &self,
        entry: &ServiceEntry,
        port: Option<(&str, Protocol)>,
        owner: &Owner,
        answer: &mut Answer,
    ) {
        let fits =
            |p: &&super::Port| port.is_none_or(|(name, protocol)| p.protocol == protocol && *p.name == *name);
        // Target, port, addresses of the target; in the order of the slices, and each only once.
        let mut found: Vec<(Name, u16, Vec<IpAddr>)> = Vec::new();
        if matches!(entry.facts.kind, Kind::Headless) {
            let mut seen = std::collections::HashMap::<(Name, u16), usize>::new();
            for (endpoint, ports) in entry.published() {
                for port in ports.iter().filter(fits) {
                    let target = self.endpoint_name(entry, endpoint);
                    let at = *seen.entry((target.clone(), port.number)).or_insert(found.len());
                    match found.get_mut(at) {
                        Some((_, _, addresses)) if addresses.contains(&endpoint.address) => {}
                        Some((_, _, addresses)) => addresses.push(endpoint.address),
                        None => found.push((target, port.number, vec![endpoint.address])),
                    }
                }
            }
        } else {
            let target = self.service_name(entry);
            let ports = entry.facts.ports.iter().filter(fits);
            found.extend(ports.map(|port| (target.clone(), port.number, entry.addresses().collect())));
        }
        let weight = (100 / found.len().max(1)).max(1) as u16;
        let mut told = std::collections::HashSet::new();
        for (target, port, addresses) in found {
            let data = Data::Srv {
                weight,
                port,
                target: target.clone(),
            };
            answer.records.push(self.record(owner.clone(), data));
            let owner = Owner::Name(target.clone());
            for address in addresses {
                if told.insert((target.clone(), address)) {
                    answer
                        .additional
                        .push(self.record(owner.clone(), address_data(address)));
                }
            }
        }
    }

    /// Names of an address that is a Service's own, or an endpoint's of a headless Service; names that were given to the
    /// endpoint go before those made of its address.
    fn answer_reverse(&self, name: &[u8]) -> Option<Verdict> {
        let address = Self::reverse_address(name)?;
        let Some(entry) = self.addresses.get(&wide(address)) else {
            return (!self.synced).then(|| self.not_synced());
        };
        let entries: Vec<_> = entry
            .services
            .iter()
            .filter_map(|key| self.services.get(key.wire()))
            .collect();
        let mut names: Vec<Name> = Vec::new();
        let own = entries
            .iter()
            .filter(|entry| matches!(entry.facts.kind, Kind::ClusterIp(_)));
        names.extend(own.map(|entry| self.service_name(entry)));
        let endpoints = |named: bool| {
            let all = entries
                .iter()
                .flat_map(|entry| entry.published().map(move |(e, _)| (entry, e)));
            let fitting = all.filter(move |(entry, e)| {
                e.address == address
                    && e.hostname.is_some() == named
                    && matches!(entry.facts.kind, Kind::Headless)
            });
            fitting.map(|(entry, endpoint)| self.endpoint_name(entry, endpoint))
        };
        for named in [true, false] {
            if names.is_empty() {
                names.extend(endpoints(named));
            }
        }
        names.sort_unstable();
        names.dedup();
        let mut answer = Answer::empty(Rcode::NoError, true);
        answer.records.extend(
            names
                .into_iter()
                .map(|name| self.record(Owner::Question, Data::Ptr(name))),
        );
        Some(ours(answer, Reason::Found))
    }

    fn push_rotated<T: Copy>(
        &self,
        addresses: &[T],
        record_type: RecordType,
        data: fn(T) -> Data,
        question: Question<'_>,
        owner: &Owner,
        records: &mut Vec<Record>,
    ) {
        if addresses.is_empty() || !wants(question.record_type, record_type) {
            return;
        }
        let (tail, head) = addresses.split_at(question.rotation as usize % addresses.len());
        records.reserve_exact(addresses.len());
        records.extend(
            head.iter()
                .chain(tail)
                .map(|&address| self.record(owner.clone(), data(address))),
        );
    }

    fn push_addresses(
        &self,
        addresses: impl Iterator<Item = IpAddr>,
        asked: RecordType,
        owner: &Owner,
        records: &mut Vec<Record>,
    ) {
        let data = addresses
            .map(address_data)
            .filter(|data| wants(asked, data.record_type()));
        records.extend(data.map(|data| self.record(owner.clone(), data)));
    }

    fn record(&self, owner: Owner, data: Data) -> Record {
        Record {
            owner,
            ttl: self.settings.ttl,
            data,
        }
    }

    fn service_name(&self, entry: &ServiceEntry) -> Name {
        Name::from_lower_wire([entry.key.wire(), b"\x03svc", self.apex().wire()].concat())
    }

    /// `hostname.service…`, or `10-244-1-7.service…` where the endpoint was given no name.
    fn endpoint_name(&self, entry: &ServiceEntry, endpoint: &Endpoint) -> Name {
        let dashed;
        let label = match &endpoint.hostname {
            Some(hostname) => hostname,
            None => {
                dashed = endpoint.address.to_string().replace(['.', ':'], "-");
                dashed.as_str()
            }
        };
        let length = [label.len() as u8];
        Name::from_lower_wire(
            [
                &length,
                label.as_bytes(),
                entry.key.wire(),
                b"\x03svc",
                self.apex().wire(),
            ]
            .concat(),
        )
    }

    /// There is none, and the SOA says for how long that holds.
    fn negative(&self, mut answer: Answer, rcode: Rcode, reason: Reason) -> Verdict {
        answer.rcode = rcode;
        let owner = Owner::Name(self.apex().clone());
        answer
            .authority
            .push(self.record(owner, Data::Soa(self.soa.clone())));
        ours(answer, reason)
    }

    fn not_synced(&self) -> Verdict {
        ours(Answer::empty(Rcode::ServFail, false), Reason::NotSynced)
    }
}

impl From<Missing> for Reason {
    fn from(missing: Missing) -> Self {
        Self::Missing(missing)
    }
}

fn ours(answer: Answer, reason: Reason) -> Verdict {
    Verdict::Ours {
        answer,
        reason,
        chase: None,
    }
}

/// Whether a question for `asked` is answered by such records. ANY gets what there is at the name itself (RFC 8482, 4.1).
fn wants(asked: RecordType, record_type: RecordType) -> bool {
    asked == record_type || asked == RecordType::ANY
}

fn address_data(address: IpAddr) -> Data {
    match address {
        IpAddr::V4(ip) => Data::A(ip),
        IpAddr::V6(ip) => Data::Aaaa(ip),
    }
}
