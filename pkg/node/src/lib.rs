//! svcnet-node
