//! One module for each command.

pub(crate) mod conform;
pub(crate) mod run;
pub(crate) mod teardown;
pub(crate) mod torture;
