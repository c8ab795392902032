//! The order of the locks of this crate, as data that primes the validator.
//!
//! None is held while managed memory is touched: a fault would have to wait for its own thread.

use lockdep::LockOrder;
use lockdep::lock_order::{event, map, short, sleeping};

/// Each class with the classes that may be taken while it is held.
pub static ORDER: LockOrder = LockOrder::new(&[
    map(
        "mm.touch",
        &[
            "host.served",
            "host.shard",
            "host.registry",
            "host.sigbus",
            "host.fork",
            "host.io_uring.state",
            "host.io_uring.index",
            "host.swap_file.lane",
        ],
    ),
    sleeping("host.served", &[]),
    sleeping("host.shard", &[]),
    sleeping("host.registry", &[]),
    sleeping("host.sigbus", &[]),
    sleeping("host.fork", &[]),
    sleeping("host.kvm.slots", &[]),
    sleeping("host.io_uring.state", &["host.io_uring.index"]),
    short("host.io_uring.index"),
    sleeping("host.swap_file.lane", &[]),
    event("host.served.let_go"),
    event("host.registry.left"),
    event("host.registry.readers"),
    event("host.io_uring.completed"),
    event("host.io_uring.unwatched"),
    event("host.io_uring.slot"),
]);

/// Primes the validator: before the first lock of this crate is used.
pub(crate) fn prime() {
    pinless_mm::lock_order::ORDER.prime();
    ORDER.prime();
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_order_has_no_cycle() {
        assert_eq!(super::ORDER.cycle(), None);
    }
}
