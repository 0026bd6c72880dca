//! svcnet-dns
