//! The answer: steps, and how it ends.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use crate::reason::NotReached;

/// What a step is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Who connects.
    Source,
    /// Who is meant, and what DNS says.
    Name,
    /// The address and port that the connection goes to.
    Frontend,
    /// Who may come, and which endpoints are allowed.
    Policy,
    /// The endpoints, and those that can not be used.
    Endpoint,
    /// Whether the kernel holds the frontend.
    Kernel,
    /// The way to an endpoint: route, link, neighbour.
    Route,
    /// The address that the endpoint sees.
    Seen,
    /// Connections that exist.
    Now,
    /// A connection that was tried.
    Probe,
}

impl What {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Name => "name",
            Self::Frontend => "frontend",
            Self::Policy => "policy",
            Self::Endpoint => "endpoint",
            Self::Kernel => "kernel",
            Self::Route => "route",
            Self::Seen => "seen",
            Self::Now => "now",
            Self::Probe => "probe",
        }
    }
}

/// How a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// As it should be.
    Ok,
    /// Here it ends.
    No,
    /// It could not be looked at.
    Unseen,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What it is about.
    pub step: What,
    /// How it stands.
    pub mark: Mark,
    /// What was found.
    pub text: String,
}

impl Step {
    /// As it should be.
    pub fn ok(step: What, text: impl Into<String>) -> Self {
        Self {
            step,
            mark: Mark::Ok,
            text: text.into(),
        }
    }

    /// Here it ends.
    pub fn no(step: What, reason: &NotReached) -> Self {
        Self {
            step,
            mark: Mark::No,
            text: reason.to_string(),
        }
    }

    /// It could not be looked at.
    pub fn unseen(step: What, why: impl Into<String>) -> Self {
        Self {
            step,
            mark: Mark::Unseen,
            text: why.into(),
        }
    }
}

/// Where a connection can end up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address and port.
    pub at: SocketAddr,
    /// The pod, if it is one: `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its node, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            // The namespace is the Service's, which was said.
            Some(pod) => write!(f, "{}", pod.rsplit('/').next().unwrap_or(pod))?,
            None => self.at.fmt(f)?,
        }
        self.node.as_ref().map_or(Ok(()), |node| write!(f, " on {node}"))
    }
}

/// An endpoint that is not reached although connections are sent there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub endpoint: Endpoint,
    /// Why.
    pub reason: NotReached,
}

/// How it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// At one of these; connections to the others are lost.
    Reaches {
        /// Where it arrives.
        endpoints: Vec<Endpoint>,
        /// Where it does not.
        broken: Vec<Broken>,
    },
    /// At something that is none of the cluster's Services and pods.
    Leads(String),
    /// Nowhere.
    NotReached(NotReached),
}

impl Outcome {
    /// Whether every connection arrives.
    pub fn is_well(&self) -> bool {
        match self {
            Self::Reaches { broken, .. } => broken.is_empty(),
            Self::Leads(_) => true,
            Self::NotReached(_) => false,
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Who connects.
    pub from: String,
    /// To what.
    pub to: String,
    /// Step by step.
    pub steps: Vec<Step>,
    /// How it ends.
    pub outcome: Outcome,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "from  {}\nto    {}\n", self.from, self.to)?;
        for step in &self.steps {
            let mark = match step.mark {
                Mark::Ok => "ok",
                Mark::No => "NO",
                Mark::Unseen => "--",
            };
            writeln!(f, "  {mark}  {:8}  {}", step.step.word(), step.text)?;
        }
        writeln!(f)?;
        match &self.outcome {
            Outcome::Reaches { endpoints, broken } => write_reached(f, endpoints, broken),
            Outcome::Leads(to) => writeln!(f, "leads to {to}"),
            Outcome::NotReached(reason) => {
                writeln!(f, "not reached: {reason}")?;
                write_hint(f, reason)
            }
        }
    }
}

fn write_reached(f: &mut fmt::Formatter<'_>, endpoints: &[Endpoint], broken: &[Broken]) -> fmt::Result {
    /// Endpoints that are named one by one.
    const NAMED_MAX: usize = 4;
    let total = endpoints.len() + broken.len();
    let named: Vec<String> = endpoints
        .iter()
        .take(NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    f.write_str("reaches ")?;
    f.write_str(&named.join(" or "))?;
    if endpoints.len() > NAMED_MAX {
        write!(f, " or {} others", endpoints.len() - NAMED_MAX)?;
    }
    if total > 1 {
        write!(f, " (one of {total})")?;
    }
    writeln!(f)?;
    for Broken { endpoint, reason } in broken {
        writeln!(f, "but not {endpoint}: {reason}")?;
        write_hint(f, reason)?;
    }
    Ok(())
}

fn write_hint(f: &mut fmt::Formatter<'_>, reason: &NotReached) -> fmt::Result {
    match reason.hint() {
        Some(hint) => writeln!(f, "hint: {hint}"),
        None => Ok(()),
    }
}

impl Serialize for Explanation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Lost<'a> {
            endpoint: &'a Endpoint,
            reason: &'a NotReached,
            text: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            hint: Option<String>,
        }
        let mut out = serializer.serialize_struct("Explanation", 9)?;
        out.serialize_field("from", &self.from)?;
        out.serialize_field("to", &self.to)?;
        out.serialize_field("reached", &self.outcome.is_well())?;
        out.serialize_field("steps", &self.steps)?;
        match &self.outcome {
            Outcome::Reaches { endpoints, broken } => {
                out.serialize_field("endpoints", endpoints)?;
                let broken: Vec<Lost<'_>> = broken
                    .iter()
                    .map(|Broken { endpoint, reason }| Lost {
                        endpoint,
                        reason,
                        text: reason.to_string(),
                        hint: reason.hint(),
                    })
                    .collect();
                out.serialize_field("broken", &broken)?;
            }
            Outcome::Leads(to) => out.serialize_field("leadsTo", to)?,
            Outcome::NotReached(reason) => {
                out.serialize_field("reason", reason)?;
                out.serialize_field("text", &reason.to_string())?;
                if let Some(hint) = reason.hint() {
                    out.serialize_field("hint", &hint)?;
                }
            }
        }
        out.end()
    }
}
