//! svcnet-lab
