//! From a rule's expressions to its statements: what `nft` calls delinearizing. Expressions load registers and use them
//! up; a row of neighbouring registers is a concatenation.

use serde_json::{Value, json};

use super::super::attr::{Reader, be32, be64, text as name_of};
use super::super::object::{Family, Verdict};
use super::set::verdict_json;
use super::{address, class_id, hex, protocol};

/// What lies in the registers.
#[derive(Debug, Default)]
struct Registers {
    loaded: Vec<Loaded>,
}

#[derive(Debug, Clone)]
struct Loaded {
    word: u32,
    what: Value,
    mask: Option<Vec<u8>>,
}

impl Registers {
    fn put(&mut self, register: Option<&[u8]>, what: Value) {
        let word = word(register);
        self.loaded.retain(|loaded| loaded.word != word);
        self.loaded.push(Loaded {
            word,
            what,
            mask: None,
        });
        self.loaded.sort_by_key(|loaded| loaded.word);
    }

    /// The value in a register.
    fn get(&self, register: Option<&[u8]>) -> Option<&Loaded> {
        let word = word(register);
        self.loaded.iter().find(|loaded| loaded.word == word)
    }

    /// The concatenation from one register to another.
    fn concat(&self, from: Option<&[u8]>, to: Option<&[u8]>) -> Value {
        let (first, end) = (word(from), to.map_or(u32::MAX, |to| word(Some(to))));
        let mut fields: Vec<Value> = self
            .loaded
            .iter()
            .filter(|loaded| (first..end).contains(&loaded.word))
            .map(|loaded| loaded.what.clone())
            .collect();
        match fields.as_mut_slice() {
            [only] => only.take(),
            _ => json!({ "concat": fields }),
        }
    }

    /// The registers from this one on hold something new.
    fn replace(&mut self, register: Option<&[u8]>, what: Value) {
        let first = word(register);
        self.loaded.retain(|loaded| loaded.word < first);
        self.put(register, what);
    }
}

/// The kernel tells a register by its old number where it has one: four words each, from 1 on.
fn word(register: Option<&[u8]>) -> u32 {
    match register.and_then(be32).unwrap_or_default() {
        number @ 1..=4 => (number - 1) * 4,
        number => number.saturating_sub(8),
    }
}

/// The statements of a rule.
pub(super) fn statements(family: Family, expressions: &[u8]) -> Vec<Value> {
    let mut registers = Registers::default();
    let mut statements = Vec::new();
    for (_, expression) in Reader::new(expressions) {
        let expression = Reader::new(expression);
        let name = expression.find(1).map(name_of).unwrap_or_default();
        let body = Reader::new(expression.find(2).unwrap_or_default());
        match load(family, name, &body) {
            Some((register, what)) => registers.put(register, what),
            None => statements.extend(statement(family, name, &body, &mut registers)),
        }
    }
    statements
}

/// Expressions that only load a register.
fn load<'a>(family: Family, name: &str, body: &Reader<'a>) -> Option<(Option<&'a [u8]>, Value)> {
    let number = |kind| body.find(kind).and_then(be32);
    match name {
        "payload" if body.find(1).is_some() => {
            let what = payload(family, number(2)?, number(3)?, number(4)?);
            Some((body.find(1), what))
        }
        "meta" if body.find(1).is_some() => {
            Some((body.find(1), json!({"meta": {"key": meta_key(number(2)?)}})))
        }
        "ct" if body.find(1).is_some() => Some((body.find(1), ct(number(2)?, body.find(3)))),
        "fib" => {
            let flag = if number(3)? & 1 == 0 { "daddr" } else { "saddr" };
            // NFT_FIB_RESULT_ADDRTYPE; the others are never written here.
            let result = if number(2)? == 3 { "type" } else { "oif" };
            Some((body.find(1), json!({"fib": {"result": result, "flags": [flag]}})))
        }
        "numgen" => {
            let mode = if number(3)? == 0 { "inc" } else { "random" };
            let offset = number(4).unwrap_or_default();
            Some((
                body.find(1),
                json!({"numgen": {"mode": mode, "mod": number(2)?, "offset": offset}}),
            ))
        }
        _ => None,
    }
}

fn payload(family: Family, base: u32, offset: u32, length: u32) -> Value {
    let network = match family {
        Family::Ip => "ip",
        Family::Ip6 => "ip6",
    };
    let icmp = match family {
        Family::Ip => "icmp",
        Family::Ip6 => "icmpv6",
    };
    let (protocol, field) = match (base, family, offset, length) {
        (1, Family::Ip, 12, 4) | (1, Family::Ip6, 8, 16) => (network, "saddr"),
        (1, Family::Ip, 16, 4) | (1, Family::Ip6, 24, 16) => (network, "daddr"),
        (2, _, 0, 2) => ("th", "sport"),
        (2, _, 2, 2) => ("th", "dport"),
        (2, _, 0, 1) => (icmp, "type"),
        _ => {
            let base = ["ll", "nh", "th"].get(base as usize).copied().unwrap_or("ih");
            let bits = |bytes: u32| u64::from(bytes) * 8;
            return json!({"payload": {"base": base, "offset": bits(offset), "len": bits(length)}});
        }
    };
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn meta_key(number: u32) -> Value {
    match number {
        2 => json!("priority"),
        3 => json!("mark"),
        4 => json!("iif"),
        5 => json!("oif"),
        6 => json!("iifname"),
        7 => json!("oifname"),
        16 => json!("l4proto"),
        other => json!(format!("key-{other}")),
    }
}

fn ct(number: u32, direction: Option<&[u8]>) -> Value {
    let key = match number {
        0 => "state",
        1 => "direction",
        2 => "status",
        11 => "proto-src",
        12 => "proto-dst",
        19 => "ip saddr",
        20 => "ip daddr",
        21 => "ip6 saddr",
        22 => "ip6 daddr",
        other => return json!({"ct": {"key": format!("key-{other}")}}),
    };
    match direction {
        Some([0]) => json!({"ct": {"key": key, "dir": "original"}}),
        Some([1]) => json!({"ct": {"key": key, "dir": "reply"}}),
        _ => json!({"ct": {"key": key}}),
    }
}

/// Expressions that do something, with what lies in the registers.
fn statement(family: Family, name: &str, body: &Reader<'_>, registers: &mut Registers) -> Option<Value> {
    let number = |kind| body.find(kind).and_then(be32);
    Some(match name {
        "bitwise" => {
            let mask = body.find(4).and_then(|data| Reader::new(data).find(1));
            let at = word(body.find(1));
            let loaded = registers.loaded.iter_mut().find(|loaded| loaded.word == at)?;
            loaded.mask = mask.map(<[u8]>::to_vec);
            return None;
        }
        "cmp" => compare(family, registers.get(body.find(1))?, number(2)?, body.find(3)?),
        "lookup" => return lookup(body, registers),
        "immediate" => return immediate(body, registers),
        "hash" => {
            let source = registers.concat(body.find(1), None);
            let (modulus, seed) = (number(4)?, number(5));
            let mut hash = json!({"mod": modulus, "expr": source});
            if let Some(offset) = number(6).filter(|offset| *offset > 0) {
                hash["offset"] = json!(offset);
            }
            if let Some(seed) = seed {
                hash["seed"] = json!(seed);
            }
            // What was hashed lies behind, and is used up.
            registers.replace(body.find(2), json!({ "jhash": hash }));
            return None;
        }
        "payload" => {
            let what = payload(family, number(2)?, number(3)?, number(4)?);
            let value = registers.get(body.find(5))?.what.clone();
            let value = match (&value, number(4)?) {
                // A constant that stands for an address.
                (Value::String(hex), 16) => hex_address(hex).unwrap_or(value),
                _ => value,
            };
            json!({"mangle": {"key": what, "value": value}})
        }
        "meta" => {
            let value = registers.get(body.find(3))?.what.clone();
            json!({"mangle": {"key": {"meta": {"key": meta_key(number(2)?)}}, "value": set_value(number(2)?, value)}})
        }
        "nat" => nat(family, body, registers),
        "masq" => match number(1) {
            Some(flags) if flags & 1 << 4 != 0 => json!({"masquerade": {"flags": "fully-random"}}),
            _ => json!({ "masquerade": null }),
        },
        "redir" => json!({ "redirect": null }),
        "reject" => match number(1) {
            Some(1) => json!({"reject": {"type": "tcp reset"}}),
            _ => {
                let kind = if family == Family::Ip { "icmp" } else { "icmpv6" };
                json!({"reject": {"type": kind, "expr": "port-unreachable"}})
            }
        },
        "dynset" => dynset(body, registers),
        "counter" => json!({"counter": {
            "packets": body.find(2).and_then(be64).unwrap_or_default(),
            "bytes": body.find(1).and_then(be64).unwrap_or_default(),
        }}),
        other => json!({"xt": {"type": "expression", "name": other}}),
    })
}

/// An IPv6 address out of the digits of [`hex`].
fn hex_address(digits: &str) -> Option<Value> {
    let number = u128::from_str_radix(digits.strip_prefix("0x")?, 16).ok()?;
    Some(json!(std::net::Ipv6Addr::from_bits(number).to_string()))
}

/// A value that is written: a constant says by the key what it means.
fn set_value(key: u32, value: Value) -> Value {
    match (&value, key) {
        (Value::Number(number), 2) => number
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .map_or(value.clone(), class_id),
        _ => value,
    }
}

fn compare(family: Family, loaded: &Loaded, op: u32, data: &[u8]) -> Value {
    let bytes = Reader::new(data).find(1).unwrap_or_default();
    let equal = op == 0;
    let left = loaded.what.clone();
    let ct = left["ct"]["key"].as_str().unwrap_or_default().to_string();
    if let Some(mask) = &loaded.mask {
        if ct == "state" || ct == "status" {
            let bit = <[u8; 4]>::try_from(mask.as_slice()).map_or(0, u32::from_ne_bytes);
            let op = if equal { "!" } else { "in" };
            return json!({"match": {"op": op, "left": left, "right": ct_bits(&ct, bit)}});
        }
        if left["meta"]["key"] == "priority" {
            let constant = |bytes| constant(family, &left, bytes);
            let (masked, right) = (json!({"&": [left, constant(mask)]}), constant(bytes));
            return json!({"match": {"op": if equal { "==" } else { "!=" }, "left": masked, "right": right}});
        }
        let length: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
        let right = json!({"prefix": {"addr": address(family, bytes), "len": length}});
        return json!({"match": {"op": if equal { "==" } else { "!=" }, "left": left, "right": right}});
    }
    let right = constant(family, &left, bytes);
    json!({"match": {"op": if equal { "==" } else { "!=" }, "left": left, "right": right}})
}

fn ct_bits(key: &str, bits: u32) -> Value {
    match (key, bits) {
        ("state", 1) => json!("invalid"),
        ("state", 2) => json!("established"),
        ("state", 4) => json!("related"),
        ("state", 8) => json!("new"),
        ("status", 0x10) => json!("snat"),
        ("status", 0x20) => json!("dnat"),
        _ => json!(bits),
    }
}

/// A constant, by what it is compared with.
fn constant(family: Family, left: &Value, bytes: &[u8]) -> Value {
    let meta = left["meta"]["key"].as_str().unwrap_or_default();
    let field = left["payload"]["field"].as_str().unwrap_or_default();
    let ct = left["ct"]["key"].as_str().unwrap_or_default();
    let word = <[u8; 4]>::try_from(bytes).map(u32::from_ne_bytes);
    match (meta, field, ct, bytes) {
        ("l4proto", ..) if bytes.len() == 1 => protocol(bytes.first().copied().unwrap_or_default()),
        ("iifname" | "oifname", ..) => json!(name_of(bytes)),
        (_, "saddr" | "daddr", ..) => address(family, bytes),
        (_, "sport" | "dport", _, [high, low]) | (_, _, "proto-src" | "proto-dst", [high, low]) => {
            json!(u16::from_be_bytes([*high, *low]))
        }
        (_, "type", _, [8 | 128]) => json!("echo-request"),
        (_, _, key, _) if key.ends_with("addr") => address(family, bytes),
        ("priority", ..) => word.map_or_else(|_| hex(bytes), class_id),
        _ if left.get("fib").is_some() && word.is_ok_and(|kind| kind == 2) => json!("local"),
        ("mark" | "iif" | "oif", ..) => word.map_or_else(|_| hex(bytes), |number| json!(number)),
        _ => hex(bytes),
    }
}

fn lookup(body: &Reader<'_>, registers: &mut Registers) -> Option<Value> {
    let set = format!("@{}", body.find(1).map(name_of).unwrap_or_default());
    let key = registers.concat(body.find(2), None);
    let inverted = body.find(5).and_then(be32).unwrap_or_default() & 1 != 0;
    match body.find(3) {
        None => {
            let op = if inverted { "!=" } else { "==" };
            Some(json!({"match": {"op": op, "left": key, "right": set}}))
        }
        // NFT_REG_VERDICT is 0: the value is followed at once.
        Some(register) if be32(register) == Some(0) => Some(json!({"vmap": {"key": key, "data": set}})),
        Some(register) => {
            registers.replace(Some(register), json!({"map": {"key": key, "data": set}}));
            None
        }
    }
}

fn immediate(body: &Reader<'_>, registers: &mut Registers) -> Option<Value> {
    let data = Reader::new(body.find(2)?);
    if let Some(verdict) = data.find(2) {
        let verdict = Reader::new(verdict);
        let code = verdict.find(1).and_then(be32)?.cast_signed();
        return Verdict::decode(code, verdict.find(2).map(name_of)).map(|verdict| verdict_json(&verdict));
    }
    let bytes = data.find(1)?;
    let word = <[u8; 4]>::try_from(bytes).map(u32::from_ne_bytes);
    let what = word.map_or_else(|_| hex(bytes), |number| json!(number));
    registers.put(body.find(1), what);
    None
}

fn nat(family: Family, body: &Reader<'_>, registers: &Registers) -> Value {
    // NFT_NAT_SNAT is 0.
    let kind = match body.find(1).and_then(be32) {
        Some(0) => "snat",
        _ => "dnat",
    };
    let mut nat = json!({"family": family.to_string()});
    if let Some(loaded) = registers.get(body.find(3)) {
        nat["addr"] = loaded.what.clone();
    }
    // The port comes out of the same value where that is a map's.
    if let Some(loaded) = registers.get(body.find(5)) {
        nat["port"] = loaded.what.clone();
    }
    json!({ kind: nat })
}

fn dynset(body: &Reader<'_>, registers: &Registers) -> Value {
    let op = match body.find(3).and_then(be32) {
        Some(0) => "add",
        Some(1) => "update",
        _ => "delete",
    };
    let key = registers.concat(body.find(4), body.find(5));
    let timeout = body.find(6).and_then(be64);
    let elem = match timeout {
        Some(timeout) => json!({"elem": {"val": key, "timeout": timeout / 1000}}),
        None => key,
    };
    let set = format!("@{}", body.find(1).map(name_of).unwrap_or_default());
    match body.find(5) {
        Some(data) => {
            let data = registers.concat(Some(data), None);
            json!({"map": {"op": op, "elem": elem, "data": data, "map": set}})
        }
        None => json!({"set": {"op": op, "elem": elem, "set": set}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_no_packet_has_is_shown_too() {
        assert_eq!(
            payload(Family::Ip, 1, u32::MAX, 1),
            json!({"payload": {"base": "nh", "offset": 34_359_738_360_u64, "len": 8}})
        );
    }
}
