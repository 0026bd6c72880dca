//! What every role runs on.
