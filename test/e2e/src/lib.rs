//! The lab as a test fixture.
