//! The order of the locks of this crate, as data that primes the validator.
//!
//! * No lock of this crate is held while a notifier is called: it takes its own, and may hang. To
//!   the validator, a callback takes them all.
//! * None is held while managed memory is touched: the fault would take it again. To the validator,
//!   a fault takes them all.
//! * `mm.reclaim.workspace` is the outermost lock of reclaim; who waits for it holds no other.
//! * The rest nests as [`ORDER`] says, and is held for short, bounded work.
//!
//! Linux counterpart: the lock tree at the head of `mm/rmap.c`.

use lockdep::LockOrder;
use lockdep::lock_order::{event, map, short, sleeping};

/// Each class with the classes that may be taken while it is held; see [`crate::gfp`] for the maps.
pub static ORDER: LockOrder = LockOrder::new(&[
    map(
        "mm.touch",
        &[
            "fs_reclaim",
            "mmu_notifier.start",
            "mm.file.buffers",
            "mm.file.buffers.freed",
            "mm.frames.freed",
            "mm.page_wait.done",
            "mm.pressure",
            "mm.write_back.idle",
            "mm.compact.idle",
        ],
    ),
    map(
        "fs_reclaim",
        &[
            "mmu_notifier.start",
            "mm.write_back.idle",
            "mm.compact.idle",
        ],
    ),
    map(
        "mmu_notifier.start",
        &[
            "mm.reclaim.workspace",
            "mm.watch",
            "mm.oom",
            "mm.oom.drought",
            "mm.vmas",
            "mm.on_kill",
            "mm.on_cancel",
            "mm.discardable",
            "mm.mlock",
            "mm.reclaim.idle",
            "mm.reclaim.stall",
            "mm.memcg.known",
            "mm.memcg.born",
            "mm.pin_holders",
            "mm.shrinkers",
            "mm.shrinker",
            "mm.reclaim.refused",
            "mm.reclaim.parked",
            "mm.reclaim.stuck",
            "mm.events",
            "mmu_notifier.current",
            "mmu_notifier.misuse",
            "mmu_notifier.published",
        ],
    ),
    sleeping(
        "mm.reclaim.workspace",
        &[
            "mm.memcg.vmas",
            "mm.frames",
            "mm.page_wait",
            "zswap.class",
            "zswap.pool",
            "zswap.block",
            "zswap.decoder",
            "mm.write_back.idle",
            "mm.compact.idle",
            "mm.events",
        ],
    ),
    sleeping("mm.oom", &["mm.events", "mm.memcg.mms", "mm.oom.drought"]),
    sleeping("mm.events", &[]),
    sleeping("mm.oom.drought", &[]),
    sleeping("mm.memcg.vmas", &["mm.reclaim.hands", "mm.reclaim.retired"]),
    sleeping("mm.memcg.mms", &["mm.memcg.children"]),
    sleeping("mm.memcg.children", &[]),
    sleeping("mm.memcg.known", &[]),
    sleeping("mm.memcg.born", &[]),
    sleeping("mm.vmas", &[]),
    sleeping("mm.pin_holders", &[]),
    sleeping("mm.on_kill", &[]),
    sleeping("mm.on_cancel", &[]),
    sleeping("mm.discardable", &[]),
    sleeping("mm.mlock", &["mm.page_wait"]),
    sleeping("mm.reclaim.hands", &["mm.memcg.children"]),
    sleeping("mm.reclaim.idle", &[]),
    sleeping("mm.reclaim.refused", &[]),
    sleeping("mm.reclaim.parked", &[]),
    sleeping("mm.reclaim.retired", &[]),
    sleeping("mm.reclaim.stall", &[]),
    sleeping("mm.file.buffers", &[]),
    sleeping("mm.write_back.idle", &[]),
    sleeping("mm.compact.idle", &[]),
    sleeping("mm.shrinkers", &[]),
    sleeping("mm.shrinker", &[]),
    short("mm.pressure"),
    sleeping("mm.reclaim.stuck", &[]),
    sleeping("mm.frames", &[]),
    sleeping("mm.watch", &["mm.watch.seat"]),
    short("mm.watch.seat"),
    sleeping("mm.page_wait", &[]),
    sleeping(
        "mmu_notifier.kinds",
        &[
            "mmu_notifier.change",
            "mmu_notifier.current",
            "mmu_notifier.wait",
        ],
    ),
    sleeping("mmu_notifier.change", &["mmu_notifier.current"]),
    short("mmu_notifier.current"),
    sleeping("mmu_notifier.misuse", &[]),
    short("mmu_notifier.published"),
    sleeping("mmu_notifier.wait", &[]),
    sleeping("zswap.class", &["zswap.pool", "zswap.block"]),
    sleeping("zswap.pool", &["zswap.block"]),
    sleeping("zswap.block", &[]),
    sleeping("zswap.decoder", &[]),
    // What is waited for, with nothing held but the lock that belongs to it.
    event("mm.frames.freed"),
    event("mm.oom.wake"),
    event("mm.oom.reaper"),
    event("mm.page_wait.done"),
    event("mm.reclaim.refused.pushed"),
    event("mm.reclaim.wake"),
    event("mm.shrinker.idle"),
    event("mm.file.buffers.freed"),
    event("mm.write_back.wake"),
    event("mm.compact.wake"),
    event("mm.watch.called"),
    event("mm.watch.vacated"),
    event("mmu_notifier.idle"),
    event("mmu_notifier.unreachable"),
    event("mmu_notifier.wake"),
]);

#[cfg(test)]
mod tests {
    use super::ORDER;
    use lockdep::lock_order::Entry;

    #[test]
    fn the_order_has_no_cycle() {
        assert_eq!(ORDER.cycle(), None);
    }

    #[test]
    fn what_stands_under_a_class_is_a_class_itself() {
        let names: Vec<_> = ORDER.entries().iter().map(Entry::name).collect();
        for entry in ORDER.entries() {
            for taken in entry.then() {
                assert!(names.contains(taken), "{taken} is not listed");
            }
        }
    }
}
