//! Services made to work on a node: what kube-proxy does.
//!
//! [`view`] holds what the cluster says, small; [`desired`] computes frontends from it; a [`Backend`] makes the kernel
//! hold them. [`Engine`] ties the three together and [`Proxy`] runs it on watches. There are three
//! backends: [`Nftables`], [`ipvs::Ipvs`] and [`Userspace`]; `mode` chooses among them and goes over from one to another.
//!
//! A Service with several wishes for one address is resolved here and nowhere else: see [`desired`] for policies,
//! terminating endpoints and masquerading, and `engine.rs` for frontends that two Services want.

mod admission;
mod backend;
mod config;
pub mod desired;
mod engine;
#[cfg(test)]
mod fake;
mod health;
mod idle;
pub mod inspect;
pub mod ipvs;
mod local;
mod mode;
mod model;
pub mod nftables;
mod node_ports;
mod notices;
mod pools;
mod run;
mod scheduler;
mod sysctls;
pub mod userspace;
pub mod view;
pub mod weights;

pub use admission::{Admission, Admitted};
pub use backend::{Backend, Error as BackendError, Mode, Report, UnknownMode};
pub use config::Config;
pub use desired::Settings;
pub use engine::{Engine, Update};
pub use local::Lack;
pub use mode::{CONDITION, CONFIG_MAP, cleanup};
pub use model::{Endpoint, Fate, Frontend, FrontendKey, Masquerade, Protocol};
pub use nftables::Nftables;
pub use node_ports::{BadNodePortAddresses, NodePortAddresses};
pub use run::{Error, Proxy};
pub use scheduler::{Scheduler, UnknownScheduler};
pub use sysctls::{Error as SysctlsError, Sysctls};
pub use userspace::Userspace;
