//! svcnet-cni
