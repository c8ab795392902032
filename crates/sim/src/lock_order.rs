//! The order of the locks of this crate, as data that primes the validator.
//!
//! The machine's own are short: they are taken wherever mm calls the machine, and nothing is taken
//! under them.

use lockdep::LockOrder;
use lockdep::lock_order::{event, map, short, sleeping};

/// Each class with the classes that may be taken while it is held.
pub static ORDER: LockOrder = LockOrder::new(&[
    map(
        "mm.touch",
        &[
            "sim.faults",
            "sim.file",
            "sim.file.device",
            "sim.frames",
            "sim.operations",
            "sim.page",
        ],
    ),
    short("sim.faults"),
    short("sim.file"),
    event("sim.file.device"),
    short("sim.frames"),
    short("sim.operations"),
    short("sim.page"),
    // Of the conformance kit.
    map("sim.kit.mappings", &[]),
    short("sim.kit.noted"),
    short("sim.kit.spy"),
    sleeping("sim.kit.detach", &[]),
    event("sim.kit.done"),
    // Of the search for a schedule that fails, outside of runs.
    sleeping("sim.search", &[]),
    sleeping("sim.trials", &[]),
]);

/// Primes the validator: before the first lock of the machine is used.
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
