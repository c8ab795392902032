//! io_uring over managed memory: what goes wrong without the registry, and that it does not with
//! it. On the real kernel, with real memory; skipped, with the reason, where either is forbidden.

mod by_hand;
mod field;
mod in_flight;
mod quiet;
mod revoke;
mod single;
mod stress;
mod teardown;
