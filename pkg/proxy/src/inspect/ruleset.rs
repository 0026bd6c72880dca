//! All that a proxy of this network namespace has made, as the kernel holds it: IPVS in the form of `ipvsadm -Ln`, tables in
//! that of `nft list table`, and the addresses and sockets of relays.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde_json::{Value, json};
use svcnet_netlink::ipvs::{Connections, Destination, Flags, Forward, Service};
use svcnet_netlink::nft::{self, Listing};

use crate::backend::Error;
use crate::ipvs::{self, LINK, Listed};
use crate::nftables;
use crate::userspace::look::{self, Listening};

/// All of it.
pub struct Ruleset {
    ipvs: Option<Listed>,
    tables: Vec<Listing>,
    placed: BTreeSet<IpAddr>,
    listening: BTreeSet<Listening>,
}

impl Ruleset {
    /// Reads it from the kernel.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn read() -> Result<Self, Error> {
        let listings = || -> Result<Vec<Listing>, nft::Error> {
            let mut tables = nftables::listings()?;
            tables.extend(ipvs::listings()?);
            Ok(tables)
        };
        let tables = match listings() {
            // A host for relays.
            Err(error) if error.is_unsupported() => Vec::new(),
            tables => tables?,
        };
        let mut seen = look::see()?;
        seen.listening.retain(|(_, at)| seen.placed.contains(&at.ip()));
        Ok(Self {
            ipvs: ipvs::listed()?,
            tables,
            placed: seen.placed,
            listening: seen.listening,
        })
    }

    /// Whether there is nothing of a proxy.
    pub fn is_empty(&self) -> bool {
        self.ipvs.is_none() && self.tables.is_empty() && self.placed.is_empty()
    }

    /// As JSON: `nftables` as nft prints it with -j, and `ipvs` and `relays` where there are such.
    pub fn json(&self, version: &str) -> Value {
        let about = json!({"metainfo": {"version": version, "json_schema_version": 1}});
        let objects = self.tables.iter().flat_map(Listing::objects);
        let all: Vec<Value> = std::iter::once(about).chain(objects).collect();
        let mut json = json!({ "nftables": all });
        if let Some(listed) = &self.ipvs {
            json["ipvs"] = listed_json(listed);
        }
        if !self.placed.is_empty() {
            let listening = self.listening.iter();
            let listening: Vec<Value> = listening
                .map(|(protocol, at)| json!({"protocol": protocol.to_string(), "address": at.ip(), "port": at.port()}))
                .collect();
            json["relays"] = json!({ "addresses": self.placed, "listening": listening });
        }
        json
    }
}

fn listed_json(listed: &Listed) -> Value {
    let destination = |(to, connections): &(Destination, Connections)| {
        json!({
            "address": to.at.ip(), "port": to.at.port(), "forward": forward(to.forward), "weight": to.weight,
            "activeConnections": connections.active, "inactiveConnections": connections.inactive,
        })
    };
    let service = |(service, destinations): &(Service, Vec<(Destination, Connections)>)| {
        let (protocol, at) = ipvs::words(service.identity);
        let mut json = json!({
            "protocol": protocol, "at": at, "scheduler": service.scheduler,
            "destinations": destinations.iter().map(destination).collect::<Vec<_>>(),
        });
        if let Some(persistence) = service.persistence {
            json["persistenceSeconds"] = json!(persistence.seconds);
        }
        let flags = flags(service);
        if !flags.is_empty() {
            json["flags"] = json!(flags);
        }
        json
    };
    let timeouts = listed.timeouts;
    json!({
        "timeouts": {"tcp": timeouts.tcp, "tcpFin": timeouts.tcp_fin, "udp": timeouts.udp},
        "services": listed.services.iter().map(service).collect::<Vec<_>>(),
        "addresses": listed.bound,
    })
}

fn forward(forward: Forward) -> &'static str {
    match forward {
        Forward::Masquerade => "Masq",
        Forward::Local => "Local",
        Forward::Tunnel => "Tunnel",
        Forward::Route => "Route",
        Forward::Bypass => "Bypass",
    }
}

/// What a scheduler is told, in the words of `ipvsadm`.
fn flags(service: &Service) -> Vec<String> {
    let named = [(Flags::SCHED_1, "fallback"), (Flags::SCHED_2, "port")];
    let set = named.iter().filter(|(flag, _)| service.flags.contains(*flag));
    let mut flags: Vec<String> = set
        .map(|(_, name)| format!("{}-{name}", service.scheduler))
        .collect();
    if service.flags.contains(Flags::ONE_PACKET) {
        flags.push("ops".into());
    }
    flags
}

fn write_listed(f: &mut fmt::Formatter<'_>, listed: &Listed) -> fmt::Result {
    let ((major, minor, patch), size) = (listed.info.version, listed.info.table_size);
    writeln!(
        f,
        "IP Virtual Server version {major}.{minor}.{patch} (size={size})"
    )?;
    writeln!(f, "Prot LocalAddress:Port Scheduler Flags")?;
    writeln!(
        f,
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn"
    )?;
    for (service, destinations) in &listed.services {
        let (protocol, at) = ipvs::words(service.identity);
        write!(f, "{protocol:<4} {at} {}", service.scheduler)?;
        let flags = flags(service);
        if !flags.is_empty() {
            write!(f, " ({})", flags.join(","))?;
        }
        if let Some(persistence) = service.persistence {
            write!(f, " persistent {}", persistence.seconds)?;
        }
        writeln!(f)?;
        for (to, connections) in destinations {
            let (at, forward) = (to.at.to_string(), forward(to.forward));
            writeln!(
                f,
                "  -> {at:<28} {forward:<7} {:<6} {:<10} {}",
                to.weight, connections.active, connections.inactive
            )?;
        }
    }
    if let Some(bound) = &listed.bound {
        let all: Vec<String> = bound.iter().map(ToString::to_string).collect();
        writeln!(f, "\n{LINK}: {}", all.join(" "))?;
    }
    Ok(())
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(listed) = &self.ipvs {
            write_listed(f, listed)?;
            separator = "\n";
        }
        for table in &self.tables {
            write!(f, "{separator}{table}")?;
            separator = "\n";
        }
        if self.placed.is_empty() {
            return Ok(());
        }
        let all: Vec<String> = self.placed.iter().map(ToString::to_string).collect();
        writeln!(f, "{separator}addresses of relays: {}", all.join(" "))?;
        for (protocol, at) in &self.listening {
            writeln!(f, "listening: {at} {protocol}")?;
        }
        Ok(())
    }
}
