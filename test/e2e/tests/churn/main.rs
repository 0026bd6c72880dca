//! A lab whose objects never come to rest: endpoints come, drain and go under clients that never pause, and an agent is
//! killed again and again. The counts are small here; `test/soak` runs the same with large ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod api;
mod endpoints;
mod kill;
mod load;

/// How often something is to be done: as the environment says, or as often as the everyday run can bear.
fn count(variable: &str, usual: usize) -> usize {
    let given = std::env::var(variable).ok();
    given.map_or(usual, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number"))
    })
}
