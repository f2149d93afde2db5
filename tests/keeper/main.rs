//! The keeper against the real kernel. Needs root; nothing is mocked.

mod death;
mod join;
mod protocol;
mod spawn;
mod support;
mod upgrade;
