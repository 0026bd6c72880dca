//! svcnet-announcer
