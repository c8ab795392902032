//! The order of the locks of this crate, as data that primes the validator.
//!
//! A device takes its locks in callbacks of notifiers, so it may hold none of them where it asks
//! for memory: no lock of the list comes before a map of `mm`.

use lockdep::LockOrder;
use lockdep::lock_order::{event, map, short, sleeping};

/// Each class with the classes that may be taken while it is held.
pub static ORDER: LockOrder = LockOrder::new(&[
    map(
        "mmu_notifier.start",
        &[
            "devices.odp.card",
            "devices.odp.host",
            "devices.template.table",
            "devices.template.rounds",
            "devices.in_flight",
        ],
    ),
    sleeping(
        "devices.odp.card",
        &["devices.odp.host", "devices.in_flight"],
    ),
    short("devices.odp.host"),
    sleeping(
        "devices.template.table",
        &["devices.template.rounds", "devices.in_flight"],
    ),
    short("devices.template.rounds"),
    short("devices.in_flight"),
    event("devices.odp.work"),
    event("devices.odp.mapped"),
    event("devices.fifo.invalidated"),
    event("devices.template.access"),
    event("devices.template.released"),
    event("devices.retry"),
]);

/// Primes the validator: before the first lock of a device is used.
pub(crate) fn prime() {
    ORDER.prime();
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_order_has_no_cycle() {
        assert_eq!(super::ORDER.cycle(), None);
    }
}
