//! svcnet-overlay
