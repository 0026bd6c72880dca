//! svcnet-proxy
