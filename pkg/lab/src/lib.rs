//! Clusters of network namespaces on one machine, and processes as pods.
//!
//! A lab is a layer-2 segment (a bridge in a namespace of its own) with nodes and a client on it. Nothing of it touches
//! the host's own network, and nothing runs between commands but the nodes' and pods' own processes: what a lab is
//! stands in files under `/run/svcnet/labs/NAME`, each written by one owner, so that commands need no lock.
//!
//! | module | what |
//! |---|---|
//! | [`names`] | labs and members, their namespaces and addresses |
//! | [`plan`] | what a lab consists of, as data |
//! | [`state`] | where it stands on disk |
//! | [`process`] | processes that outlive the command that started them |
//! | [`segment`] | namespaces, cables, the bridge |
//! | [`up`], [`down`], [`node`], [`pods`], [`list`], [`exec`] | the commands |
//! | [`pod`] | `svcnet pod run`: a process as a pod, in a lab or not |

pub mod down;
pub mod exec;
pub mod list;
pub mod names;
pub mod node;
pub mod plan;
pub mod pod;
pub mod pods;
pub mod process;
pub mod segment;
pub mod state;
pub mod up;
