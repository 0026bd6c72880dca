//! Golden answers by section of the Kubernetes DNS specification, and the property that a zone that followed changes
//! equals one built at once.

mod cluster;
mod incremental;
mod spec;
