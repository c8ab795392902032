//! The order of the locks of this crate, as data.
//!
//! * No lock of this crate is held while a notifier is called: it takes its own, and may hang.
//! * None is held while managed memory is touched: the fault would take it again.
//! * `mm.reclaim.scratch` is the outermost lock of reclaim; who waits for it holds no other.
//! * The rest nests as [`ORDER`] says, and is held for short, bounded work.
//!
//! Linux counterpart: the lock tree at the head of `mm/rmap.c`.

/// Each class with the classes that may be taken while it is held.
pub const ORDER: &[(&str, &[&str])] = &[
    (
        "mm.reclaim.scratch",
        &[
            "mm.memcg.vmas",
            "mm.frames",
            "mm.page_wait",
            "zswap.class",
            "zswap.pool",
            "zswap.block",
        ],
    ),
    ("mm.oom", &["mm.memcg.mms"]),
    ("mm.memcg.vmas", &["mm.reclaim.hands", "mm.reclaim.retired"]),
    ("mm.memcg.mms", &[]),
    ("mm.vmas", &[]),
    ("mm.on_kill", &[]),
    ("mm.mlock", &["mm.page_wait"]),
    ("mm.reclaim.hands", &[]),
    ("mm.reclaim.idle", &[]),
    ("mm.reclaim.refused", &[]),
    ("mm.reclaim.parked", &[]),
    ("mm.reclaim.retired", &[]),
    ("mm.reclaim.stuck", &[]),
    ("mm.frames", &[]),
    ("mm.page_wait", &[]),
    (
        "mmu_notifier.kinds",
        &[
            "mmu_notifier.change",
            "mmu_notifier.current",
            "mmu_notifier.wait",
        ],
    ),
    ("mmu_notifier.change", &["mmu_notifier.current"]),
    ("mmu_notifier.current", &[]),
    ("mmu_notifier.misuse", &[]),
    ("mmu_notifier.wait", &[]),
    ("zswap.class", &["zswap.pool", "zswap.block"]),
    ("zswap.pool", &["zswap.block"]),
    ("zswap.block", &[]),
];

/// What is waited for, with nothing held but the lock that belongs to it.
pub const WAITS: &[&str] = &[
    "mm.frames.freed",
    "mm.oom.wake",
    "mm.page_wait.done",
    "mm.reclaim.refused.pushed",
    "mm.reclaim.wake",
    "mmu_notifier.idle",
    "mmu_notifier.unreachable",
];

#[cfg(test)]
mod tests {
    use super::ORDER;

    #[test]
    fn the_order_is_complete_and_has_no_cycle() {
        let after = |class: &str| {
            let found = ORDER.iter().find(|(outer, _)| *outer == class);
            found.unwrap_or_else(|| panic!("{class} is not listed")).1
        };
        for (outer, _) in ORDER {
            let mut reached = vec![*outer];
            let mut next = 0;
            while next < reached.len() {
                for &class in after(reached[next]) {
                    assert!(class != *outer, "{outer} comes after itself");
                    if !reached.contains(&class) {
                        reached.push(class);
                    }
                }
                next += 1;
            }
        }
    }
}
