//! A device that mirrors a mapping: it looks up what it lacks, and keeps it until it is told.
//!
//! The plainest right user of an interval subscription; the cases of `intervals` are run with it.
//!
//! Linux counterpart: lib/test_hmm.c

use crate::addr::{PageIndex, PageRun, Vaddr};
use crate::bus::{Bus, BusAddr};
use crate::fault::FaultError;
use crate::mm_struct::Vma;
use crate::mmu_notifier::{
    Ability, Blockable, Context, EndContext, IntervalNotifier, IntervalSubscription, Notifier,
    Owner, Range,
};
use crate::primary_mmu::Access;
use core::ops;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::{Fence, Mutex, ShortLock};
use std::sync::Arc;

/// A translation for each page, where there is one.
type Table = Vec<Option<BusAddr>>;

/// The part of a mirror that is told.
pub(super) struct Mirror {
    base: Vaddr,
    owner: Option<Owner>,
    ability: Ability,
    table: Mutex<Table>,
    /// Accesses that are under way without the table, each with a fence that signals when it is
    /// over: of one that drops later.
    under_way: ShortLock<Vec<(PageIndex, Fence)>>,
    nr_starts: AtomicU64,
    nr_ends: AtomicU64,
    nr_released: AtomicU64,
}

/// A mirror at work.
pub(super) struct Mirrored {
    pub(super) vma: Arc<Vma>,
    pub(super) subscription: IntervalSubscription<Mirror>,
    nr_lookups: AtomicU64,
    nr_retries: AtomicU64,
}

/// What a mirror counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counts {
    pub(super) lookups: u64,
    pub(super) retries: u64,
    pub(super) starts: u64,
}

impl Notifier for Mirror {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        // An access holds the table to its end, so none is under way once it is taken; but of one
        // that drops later, which begins it with the table.
        let mut table = cx.lock(&self.table)?;
        let pages = match self.ability {
            Ability::DropAll => 0..table.len(),
            Ability::DropRange | Ability::DropLater => self.pages_of(range, table.len()),
        };
        self.settle(&pages, cx)?;
        self.nr_starts.fetch_add(1, Ordering::Relaxed);
        table[pages].fill(None);
        Ok(())
    }

    fn end(&self, _range: &Range, _cx: &EndContext<'_>) {
        self.nr_ends.fetch_add(1, Ordering::Relaxed);
    }

    fn release(&self, cx: &Blockable<'_>) {
        let Ok(mut table) = cx.lock(&self.table);
        let Ok(()) = self.settle(&(0..table.len()), cx);
        table.fill(None);
        self.nr_released.fetch_add(1, Ordering::Relaxed);
    }

    fn owner(&self) -> Option<Owner> {
        self.owner
    }

    fn ability(&self) -> Ability {
        self.ability
    }
}

impl IntervalNotifier for Mirror {
    type Lock = Mutex<Table>;

    fn lock(&self) -> &Mutex<Table> {
        &self.table
    }
}

/// An access that is under way; over when this is dropped.
struct UnderWay(Fence);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.signal();
    }
}

impl Mirror {
    /// The caller has the table, from which it took the translation of `page`.
    fn begin(&self, page: PageIndex) -> UnderWay {
        let over = Fence::new("suite.mirror.over");
        let mut under_way = self.under_way.lock();
        under_way.retain(|(_, over)| !over.is_signalled());
        under_way.push((page, over.clone()));
        UnderWay(over)
    }

    /// Has the accesses to `pages` waited for that are under way. The caller has the table, so none
    /// begins meanwhile.
    fn settle<C: Context>(&self, pages: &ops::Range<usize>, cx: &C) -> Result<(), C::Refusal> {
        let nth = |at: usize| cx.short(&self.under_way).get(at).cloned();
        let mut each = (0..).map_while(nth);
        each.try_for_each(|(page, over)| {
            if pages.contains(&(page as usize)) {
                cx.settle(&over)?;
            }
            Ok(())
        })
    }

    fn pages_of(&self, range: &Range, nr_pages: usize) -> ops::Range<usize> {
        let size = crate::addr::PAGE_SIZE as u64;
        let first = range.start.0.saturating_sub(self.base.0) / size;
        let end = range.end.0.saturating_sub(self.base.0).div_ceil(size);
        (first as usize).min(nr_pages)..(end as usize).min(nr_pages)
    }

    /// How often it was told to release.
    pub(super) fn nr_released(&self) -> u64 {
        self.nr_released.load(Ordering::Relaxed)
    }

    /// Starts without their ends.
    pub(super) fn nr_open(&self) -> u64 {
        self.nr_starts.load(Ordering::Relaxed) - self.nr_ends.load(Ordering::Relaxed)
    }

    /// Pages that are translated.
    pub(super) fn nr_held(&self) -> usize {
        self.table.lock().iter().flatten().count()
    }
}

impl Mirrored {
    /// Mirrors `run` of the mapping.
    pub(super) fn attach(
        vma: &Arc<Vma>,
        run: PageRun,
        name: &str,
        owner: Option<Owner>,
    ) -> Arc<Self> {
        Self::attach_able(vma, run, name, owner, Ability::DropRange)
    }

    /// The same with a device that can do no more than this when it is told.
    pub(super) fn attach_able(
        vma: &Arc<Vma>,
        run: PageRun,
        name: &str,
        owner: Option<Owner>,
        ability: Ability,
    ) -> Arc<Self> {
        let mirror = Arc::new(Mirror {
            base: vma.base(),
            owner,
            ability,
            under_way: ShortLock::new("suite.mirror.under_way", Vec::new()),
            table: Mutex::new("suite.mirror", vec![None; vma.nr_pages() as usize]),
            nr_starts: AtomicU64::new(0),
            nr_ends: AtomicU64::new(0),
            nr_released: AtomicU64::new(0),
        });
        let (start, end) = (vma.address(run.first), vma.address(run.end()));
        let subscription = vma
            .mm()
            .notifiers()
            .subscribe_interval(name, start, end, mirror)
            .expect("a living address space, and pages");
        Arc::new(Self {
            vma: Arc::clone(vma),
            subscription,
            nr_lookups: AtomicU64::new(0),
            nr_retries: AtomicU64::new(0),
        })
    }

    /// Drops what it translated and ends the subscription; gives the device back.
    pub(super) fn detach(self: Arc<Self>) -> Arc<Mirror> {
        let mirrored = Arc::into_inner(self).expect("nobody else uses the device");
        mirrored.subscription.lock().fill(None);
        mirrored.subscription.remove()
    }

    pub(super) fn mirror(&self) -> &Mirror {
        self.subscription.notifier()
    }

    pub(super) fn counts(&self) -> Counts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            lookups: get(&self.nr_lookups),
            retries: get(&self.nr_retries),
            starts: get(&self.mirror().nr_starts),
        }
    }

    pub(super) fn read(&self, page: PageIndex, into: &mut [u8]) -> Result<(), FaultError> {
        self.access(
            page,
            Access::Read,
            || (),
            |at| {
                let read = self.vma.read(at, 0, into);
                read.expect("what is translated is there");
            },
        )
    }

    pub(super) fn write(&self, page: PageIndex, from: &[u8]) -> Result<(), FaultError> {
        self.access(
            page,
            Access::Write,
            || (),
            |at| {
                let written = self.vma.write(at, 0, from);
                written.expect("what is translated is there");
            },
        )
    }

    /// Uses a page; looks it up first if it is not translated for that. `meanwhile` is called
    /// after each lookup, before it is judged.
    pub(super) fn access(
        &self,
        page: PageIndex,
        access: Access,
        mut meanwhile: impl FnMut(),
        mut operation: impl FnMut(BusAddr),
    ) -> Result<(), FaultError> {
        loop {
            let table = self.subscription.lock();
            let found = table[page as usize];
            if let Some(at) = found.filter(|at| access == Access::Read || at.access == access) {
                if self.mirror().ability == Ability::DropLater {
                    let _under_way = self.mirror().begin(page);
                    drop(table);
                    lockdep::sync::sleep("suite.mirror.under_way", Duration::from_micros(5));
                    operation(at);
                } else {
                    operation(at);
                }
                return Ok(());
            }
            drop(table);
            self.nr_lookups.fetch_add(1, Ordering::Relaxed);
            let seen = self.subscription.read_begin();
            let mut at = [BusAddr {
                page,
                generation: 0,
                access,
            }];
            self.vma
                .fault_range(PageRun::single(page), access, &mut at)?;
            meanwhile();
            let mut table = self.subscription.lock();
            if self.subscription.read_retry(seen, &table) {
                self.nr_retries.fetch_add(1, Ordering::Relaxed);
            } else {
                table[page as usize] = Some(at[0]);
            }
        }
    }
}
