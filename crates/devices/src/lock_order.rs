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
            "devices.template.table",
            "devices.in_flight",
            "devices.vcpu.tlb",
            "devices.kvm.mmu",
            "devices.gru.chip",
            "devices.hmm.gate",
            "devices.amdgpu.held",
            "devices.amdgpu.held_across",
            "devices.amdgpu.notifier",
            "devices.radeon.buffers",
            "devices.i915.tree",
            "devices.i915.pages",
            "devices.kfd.evictions",
            "devices.kfd.process",
            "devices.pin_cache",
            "devices.grants",
            "devices.scif.rma",
            "devices.resv.fences",
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
    short("devices.vcpu.tlb"),
    short("devices.kvm.mmu"),
    short("devices.gru.chip"),
    sleeping(
        "devices.hmm.gate",
        &[
            "devices.hmm.table",
            "devices.hmm.rounds",
            "devices.in_flight",
        ],
    ),
    short("devices.hmm.table"),
    short("devices.hmm.rounds"),
    map(
        "devices.amdgpu.held_across",
        &["devices.resv.ticket", "devices.amdgpu.buffers"],
    ),
    short("devices.amdgpu.held"),
    sleeping(
        "devices.amdgpu.buffers",
        &["devices.ring", "devices.resv.fences"],
    ),
    sleeping(
        "devices.amdgpu.notifier",
        &["devices.ring", "devices.resv.fences"],
    ),
    sleeping(
        "devices.radeon.buffers",
        &[
            "devices.radeon.rounds",
            "devices.ring",
            "devices.resv.fences",
        ],
    ),
    short("devices.radeon.rounds"),
    sleeping("devices.i915.struct_mutex", &["devices.resv.ticket"]),
    sleeping("devices.registrations", &[]),
    short("devices.i915.tree"),
    short("devices.i915.pages"),
    sleeping("devices.resv.ticket", &["devices.resv"]),
    sleeping(
        "devices.resv",
        &[
            "devices.resv.owner",
            "devices.resv.fences",
            "devices.ring",
            "devices.amdgpu.buffers",
            "devices.amdgpu.notifier",
            "devices.radeon.buffers",
            "devices.i915.tree",
            "devices.i915.pages",
        ],
    ),
    sleeping("devices.resv.owner", &[]),
    short("devices.resv.fences"),
    short("devices.ring"),
    sleeping(
        "devices.ring.losing",
        &["devices.ring", "devices.dma_fence.callbacks"],
    ),
    short("devices.job"),
    short("devices.dma_fence.callbacks"),
    sleeping("devices.kfd.evictions", &["devices.kfd.process"]),
    short("devices.kfd.process"),
    short("devices.kfd.request"),
    short("devices.pin_cache"),
    short("devices.pin_cache.pinned"),
    sleeping(
        "devices.grants",
        &["devices.grants.rounds", "devices.in_flight"],
    ),
    short("devices.grants.rounds"),
    sleeping("devices.hfi1.hung", &[]),
    sleeping("devices.scif.rma", &[]),
    sleeping("devices.scif.last", &["devices.ring"]),
    short("devices.scif.card"),
    sleeping("devices.scif.under_way", &[]),
    sleeping("devices.scif.lent", &[]),
    sleeping("devices.scif.ports", &[]),
    sleeping("devices.scif.backlog", &[]),
    sleeping("devices.scif.link", &[]),
    event("devices.doorbell"),
    event("devices.dma_fence"),
    event("devices.ring.hung"),
    event("devices.resv.freed"),
    event("devices.kfd.preempted"),
    event("devices.kfd.done"),
    event("devices.kfd.hung"),
    event("devices.i915.unbound"),
    event("devices.i915.acquired"),
    event("devices.gntdev.io"),
    event("devices.gntdev.hung"),
    event("devices.hfi1.packet"),
    event("devices.scif.answer"),
    event("devices.scif.asked"),
    event("devices.scif.changed"),
    event("devices.hmm.access"),
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
