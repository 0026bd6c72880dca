//! The tree as text, in the words of `nft list table`.

use std::fmt;

use serde_json::Value;

use super::Listing;

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.table)?;
        if let Some(comment) = &self.comment {
            writeln!(f, "\tcomment \"{comment}\"")?;
        }
        for set in &self.sets {
            writeln!(f)?;
            write_set(f, set)?;
        }
        for chain in self.chains.iter().map(|chain| &chain["chain"]) {
            writeln!(f, "\n\tchain {} {{", word(&chain["name"]))?;
            if chain.get("hook").is_some() {
                writeln!(
                    f,
                    "\t\ttype {} hook {} priority {}; policy {};",
                    word(&chain["type"]),
                    word(&chain["hook"]),
                    chain["prio"],
                    word(&chain["policy"])
                )?;
            }
            let of_chain = self.rules.iter().map(|rule| &rule["rule"]);
            for rule in of_chain.filter(|rule| rule["chain"] == chain["name"]) {
                writeln!(f, "\t\t{}", rule_text(rule))?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

fn write_set(f: &mut fmt::Formatter<'_>, set: &Value) -> fmt::Result {
    let (kind, set) = match set.get("map") {
        Some(map) => ("map", map),
        None => ("set", &set["set"]),
    };
    writeln!(f, "\t{kind} {} {{", word(&set["name"]))?;
    if let Some(of) = set.get("typeof") {
        writeln!(f, "\t\ttypeof {}", word(of))?;
    } else {
        let key = match &set["type"] {
            Value::Array(fields) => fields.iter().map(word).collect::<Vec<_>>().join(" . "),
            field => word(field),
        };
        match set.get("map") {
            Some(data) => writeln!(f, "\t\ttype {key} : {}", word(data))?,
            None => writeln!(f, "\t\ttype {key}")?,
        }
    }
    if let Some(size) = set.get("size") {
        writeln!(f, "\t\tsize {size}")?;
    }
    if let Some(Value::Array(flags)) = set.get("flags") {
        let flags: Vec<String> = flags.iter().map(word).collect();
        writeln!(f, "\t\tflags {}", flags.join(","))?;
    }
    if let Some(comment) = set.get("comment") {
        writeln!(f, "\t\tcomment {comment}")?;
    }
    if let Some(Value::Array(elements)) = set.get("elem") {
        writeln!(f, "\t\telements = {{")?;
        for element in elements {
            writeln!(f, "\t\t\t{},", element_text(element))?;
        }
        writeln!(f, "\t\t}}")?;
    }
    writeln!(f, "\t}}")
}

fn element_text(element: &Value) -> String {
    match element {
        Value::Array(pair) => {
            let parts: Vec<String> = pair.iter().map(element_text).collect();
            parts.join(" : ")
        }
        Value::Object(object) if object.contains_key("elem") => {
            let elem = &object["elem"];
            let mut text = value(&elem["val"]);
            if let Some(seconds) = elem.get("timeout") {
                text += &format!(" timeout {seconds}s");
            }
            if let Some(seconds) = elem.get("expires") {
                text += &format!(" expires {seconds}s");
            }
            if let Some(comment) = elem.get("comment") {
                text += &format!(" comment {comment}");
            }
            text
        }
        other => value(other),
    }
}

fn rule_text(rule: &Value) -> String {
    let statements = rule["expr"].as_array().into_iter().flatten();
    let mut text: Vec<String> = statements.map(statement).collect();
    if let Some(comment) = rule.get("comment") {
        text.push(format!("comment {comment}"));
    }
    text.join(" ")
}

/// The one key of an object, and what it holds.
fn only(object: &Value) -> Option<(&str, &Value)> {
    let (key, inner) = object.as_object()?.iter().next()?;
    Some((key, inner))
}

fn statement(statement: &Value) -> String {
    let Some((kind, inner)) = only(statement) else {
        return value(statement);
    };
    match kind {
        "match" => {
            let (left, right) = (value(&inner["left"]), value(&inner["right"]));
            // A name of a link is quoted.
            let named = matches!(inner["left"]["meta"]["key"].as_str(), Some("iifname" | "oifname"));
            let right = if named { format!("\"{right}\"") } else { right };
            match inner["op"].as_str() {
                // Between numbers that are masked and others `nft` writes it.
                Some("==") if inner["left"].get("&").is_some() => format!("{left} == {right}"),
                Some("==" | "in") => format!("{left} {right}"),
                Some(op) => format!("{left} {op} {right}"),
                None => format!("{left} {right}"),
            }
        }
        "mangle" => format!("{} set {}", value(&inner["key"]), value(&inner["value"])),
        "vmap" => format!("{} vmap {}", value(&inner["key"]), word(&inner["data"])),
        "jump" | "goto" => format!("{kind} {}", word(&inner["target"])),
        "dnat" | "snat" => {
            let mut text = format!("{kind} {} to {}", word(&inner["family"]), value(&inner["addr"]));
            if let Some(port) = inner.get("port") {
                text += &format!(":{}", value(port));
            }
            text
        }
        "masquerade" => match inner.get("flags") {
            Some(flags) => format!("masquerade {}", word(flags)),
            None => kind.to_string(),
        },
        "reject" => match inner["type"].as_str() {
            Some("tcp reset") => "reject with tcp reset".to_string(),
            _ => kind.to_string(),
        },
        "counter" => format!("counter packets {} bytes {}", inner["packets"], inner["bytes"]),
        "map" | "set" if inner.get("op").is_some() => {
            let data = inner
                .get("data")
                .map_or_else(String::new, |data| format!(" : {}", value(data)));
            let elem = element_text(&inner["elem"]);
            format!("{} {} {{ {elem}{data} }}", word(&inner["op"]), word(&inner[kind]))
        }
        "xt" => format!("({} expression)", word(&inner["name"])),
        // accept, drop, return, redirect
        _ => kind.to_string(),
    }
}

fn value(expression: &Value) -> String {
    let Some((kind, inner)) = only(expression) else {
        return word(expression);
    };
    match kind {
        "payload" if inner.get("base").is_some() => {
            format!("@{},{},{}", word(&inner["base"]), inner["offset"], inner["len"])
        }
        "payload" => format!("{} {}", word(&inner["protocol"]), word(&inner["field"])),
        "meta" => match inner["key"].as_str() {
            Some(key @ ("iif" | "oif" | "iifname" | "oifname")) => key.to_string(),
            _ => format!("meta {}", word(&inner["key"])),
        },
        "ct" => match inner.get("dir") {
            Some(direction) => format!("ct {} {}", word(direction), word(&inner["key"])),
            None => format!("ct {}", word(&inner["key"])),
        },
        "fib" => {
            let flags: Vec<String> = inner["flags"]
                .as_array()
                .into_iter()
                .flatten()
                .map(word)
                .collect();
            format!("fib {} {}", flags.join(" . "), word(&inner["result"]))
        }
        "numgen" => format!(
            "numgen {} mod {}{}",
            word(&inner["mode"]),
            inner["mod"],
            offset(inner)
        ),
        "jhash" => {
            let seed = inner
                .get("seed")
                .and_then(Value::as_u64)
                .map_or_else(String::new, |seed| format!(" seed 0x{seed:x}"));
            format!(
                "jhash {} mod {}{seed}{}",
                value(&inner["expr"]),
                inner["mod"],
                offset(inner)
            )
        }
        "concat" => {
            let fields: Vec<String> = inner.as_array().into_iter().flatten().map(value).collect();
            fields.join(" . ")
        }
        "map" => format!("{} map {}", value(&inner["key"]), word(&inner["data"])),
        "&" => format!("{} & {}", value(&inner[0]), value(&inner[1])),
        "prefix" => format!("{}/{}", word(&inner["addr"]), inner["len"]),
        "range" => {
            let ends: Vec<String> = inner.as_array().into_iter().flatten().map(value).collect();
            ends.join("-")
        }
        _ => statement(expression),
    }
}

fn offset(of: &Value) -> String {
    match of["offset"].as_u64() {
        None | Some(0) => String::new(),
        Some(offset) => format!(" offset {offset}"),
    }
}

/// A word or number without quotes.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
