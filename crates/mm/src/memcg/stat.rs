//! What a memory cgroup counts, under the kernel's names where it has one.

use crate::histogram::{Histogram, Summary};
use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters that only grow.
        #[derive(Debug, Default)]
        pub(crate) struct Stat {
            $(pub(crate) $name: AtomicU64,)*
            pub(crate) soft_fault_ns: Histogram,
            pub(crate) hard_fault_ns: Histogram,
        }

        /// The counters of a [`Memcg`](crate::Memcg) at one moment.
        #[derive(Clone, Debug, Default)]
        #[non_exhaustive]
        pub struct StatSnapshot {
            $($(#[$doc])* pub $name: u64,)*
            /// Soft faults: the contents were still in a slot.
            pub soft_fault: Summary,
            /// Hard faults: the contents came from the store.
            pub hard_fault: Summary,
        }

        impl Stat {
            pub(crate) fn snapshot(&self) -> StatSnapshot {
                StatSnapshot {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                    soft_fault: self.soft_fault_ns.summary(),
                    hard_fault: self.hard_fault_ns.summary(),
                }
            }

            /// Adds what another one counted.
            pub(crate) fn absorb(&self, other: &Self) {
                $(add(&self.$name, other.$name.load(Ordering::Relaxed));)*
                self.soft_fault_ns.absorb(&other.soft_fault_ns);
                self.hard_fault_ns.absorb(&other.hard_fault_ns);
            }
        }

        impl StatSnapshot {
            /// Every counter with its name.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

stats! {
    /// Faults on pages that were never touched.
    pgfault_zero,
    /// Faults that found the page in its slot (the kernel's swap-cache hits).
    pgfault_soft,
    /// Faults that read the store.
    pgmajfault,
    /// Pages that were read from the store before they were asked for.
    prefetched,
    /// Pages that came back from the file: of the faults that read the store, and of those that
    /// were read before they were asked for.
    pswpin,
    /// Write faults on write-protected pages.
    pgfault_wp,
    /// Faults that waited for a frame.
    pgfault_waited,
    /// Faults that ended without a frame.
    pgfault_noframe,
    /// Faults that ended because the address space was killed.
    pgfault_killed,
    /// Pages moved from their address into their slot.
    pgdeactivate,
    /// Pages whose frame was given back by reclaim.
    pgsteal,
    /// Of those frames, the ones that held another page at once.
    pgreuse,
    /// Pages that came back from the store and of which it is known when they were evicted.
    workingset_refault,
    /// Of those, pages that would have stayed had inactive ones gone in their place.
    workingset_activate,
    /// Pages that were compressed into the store.
    zswpout,
    /// Pages that went from there to the file.
    zswpwb,
    /// Pages that were compressed once more, densely, after they had been away for long.
    zswprecomp,
    /// Bytes by which these have become smaller.
    zswprecomp_bytes,
    /// Stored pages that were moved, for a block of the store to become empty.
    zswpcompact,
    /// Pages that were moved within the file, for clusters to come free.
    file_compact,
    /// Times that the file had no cluster free.
    file_full,
    /// Pages that went back to their clean stored copy.
    clean_drop,
    /// Pages that the machine refused to move because of a kernel pin.
    pgbusy,
    /// Evictions given up because the page was used meanwhile.
    pgrescued,
    /// Windows that a notifier refused in non-blockable mode.
    reclaim_refused,
    /// Blockable brackets that hit their deadline.
    reclaim_stuck,
    /// Stores refused because the compressed store is full.
    store_full,
    /// Clean stored copies given back to make room.
    copies_shed,
    /// Pages whose contents were lost.
    pages_lost,
    /// Pages that were filled or removed by something other than this library.
    foreign_changes,
    /// Device accesses through a translation that was no longer valid.
    stale_dma,
    /// Faults of engine threads.
    stale_dma_traps,
    /// Passes of reclaim that freed nothing.
    stalls,
    /// Address spaces of this memory cgroup that were killed: for a shortage at any level, or
    /// because somebody wanted it.
    oom_kill,
    /// OOM kills of a whole group, each counted once.
    oom_group_kill,
    /// Passes that took pages of a memory cgroup that `low` protects.
    event_low,
    /// Frames that were taken above `high`.
    event_high,
    /// Times that somebody waited because a bound was reached.
    event_max,
    /// Times that memory had run out here: once for each victim, with its group, and for each time
    /// that programs were made to give up enough.
    event_oom,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds `n`.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
