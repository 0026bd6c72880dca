//! svcnet-controller
