//! One mapping: its pages, their state words and generations.

use super::Mm;
use super::prefetch::Trend;
use crate::addr::{PAGE_SIZE, PageIndex, PageRun, Vaddr};
use crate::bus::Checks;
use crate::limits::WINDOW_PAGES;
use crate::memcg::Memcg;
use crate::memcg::stat::Stat;
use crate::mmu_notifier::Event;
use crate::page::{PageTable, State, Word};
use crate::primary_mmu::PrimaryMmu;
use crate::swap::{Owner, Stored};
use crate::wait::PageWaiters;
use bytemuck::allocation::try_zeroed_slice_box;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use lockdep::sync::Mutex;
use std::sync::Arc;

/// Names one mapping among all of a memory cgroup, in the order in which they were made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VmaId(pub u64);

/// How many pages of a window are where; a hint that spares the hands of reclaim empty windows.
#[derive(Debug, Default)]
struct Window {
    /// Mapped, and not locked.
    mapped: AtomicU8,
    detached: AtomicU8,
    /// A device refused it, and is going to be asked again by a thread that waits.
    is_refused: AtomicBool,
}

/// How far the end of a mapping has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Life {
    /// In use.
    Alive,
    /// The devices are being told. Programs may still use it, and it may become alive again;
    /// devices get no new translations.
    Unmapping,
    /// Every device was told. Nothing is filled, pinned or translated any more.
    Told,
}

/// A mapping of an [`Mm`].
pub struct Vma {
    id: VmaId,
    mm: Arc<Mm>,
    primary: Arc<dyn PrimaryMmu>,
    is_shared: bool,
    pub(crate) pages: PageTable,
    generations: Box<[AtomicU32]>,
    /// How far the accesses of devices are checked.
    pub(super) checks: Checks,
    windows: Box<[Window]>,
    pub(crate) waiters: PageWaiters,
    /// What the program can do without when memory runs out.
    discardable: Mutex<Vec<PageRun>>,
    /// What [`Vma::mlock`] holds; a range may be there more than once.
    pub(super) locked: Mutex<Vec<PageRun>>,
    pub(super) nr_locked: AtomicU64,
    life: AtomicU8,
    pub(super) trend: Trend,
}

impl fmt::Debug for Vma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vma")
            .field("id", &self.id)
            .field("mm", &self.mm.name())
            .field("base", &self.base())
            .field("nr_pages", &self.nr_pages())
            .finish_non_exhaustive()
    }
}

impl Vma {
    /// Nothing where there is no memory for the books.
    pub(super) fn new(id: VmaId, mm: Arc<Mm>, primary: Arc<dyn PrimaryMmu>) -> Option<Self> {
        let nr_pages = primary.nr_pages();
        let nr_windows = nr_pages.div_ceil(WINDOW_PAGES);
        Some(Self {
            id,
            checks: mm.memcg().limits().bus_checks,
            mm,
            pages: PageTable::new(nr_pages)?,
            generations: try_zeroed_slice_box(nr_pages as usize).ok()?,
            windows: (0..nr_windows).map(|_| Window::default()).collect(),
            waiters: PageWaiters::new(),
            discardable: Mutex::new("mm.discardable", Vec::new()),
            locked: Mutex::new("mm.mlock", Vec::new()),
            nr_locked: AtomicU64::new(0),
            life: AtomicU8::new(Life::Alive as u8),
            trend: Trend::new(),
            is_shared: primary.is_shared(),
            primary,
        })
    }

    /// Its number.
    pub fn id(&self) -> VmaId {
        self.id
    }

    /// The address space it belongs to.
    pub fn mm(&self) -> &Arc<Mm> {
        &self.mm
    }

    /// The address of its first page.
    pub fn base(&self) -> Vaddr {
        self.primary.base()
    }

    /// How many pages it has.
    pub fn nr_pages(&self) -> u32 {
        self.primary.nr_pages()
    }

    /// All of its pages.
    pub fn all(&self) -> PageRun {
        PageRun::new(0, self.nr_pages())
    }

    /// The state of a page, for reports and tests: it may change at once.
    pub fn page_state(&self, page: PageIndex) -> State {
        self.pages.load(page).state()
    }

    /// Whether it was unmapped: every device was told, and nothing comes back.
    pub fn is_dead(&self) -> bool {
        self.life() == Life::Told
    }

    pub(super) fn life(&self) -> Life {
        // SeqCst: see `PageTable::load`; pairs with the changes below.
        match self.life.load(Ordering::SeqCst) {
            life if life == Life::Alive as u8 => Life::Alive,
            life if life == Life::Unmapping as u8 => Life::Unmapping,
            _ => Life::Told,
        }
    }

    /// Begins an unmapping; false when somebody else has begun one.
    pub(super) fn begin_unmapping(&self) -> bool {
        let (alive, unmapping) = (Life::Alive as u8, Life::Unmapping as u8);
        // SeqCst: pairs with `life`.
        let begun =
            self.life
                .compare_exchange(alive, unmapping, Ordering::SeqCst, Ordering::SeqCst);
        begun.is_ok()
    }

    /// Goes on or back with an unmapping. For the one who began it.
    pub(super) fn set_life(&self, life: Life) {
        // SeqCst: pairs with `life`.
        self.life.store(life as u8, Ordering::SeqCst);
    }

    /// Bytes that the library itself keeps for this mapping, once each of its pages was used.
    pub fn metadata_bytes(&self) -> usize {
        size_of::<Self>() + books_bytes(self.nr_pages()) + size_of_val(&*self.windows)
    }

    pub(crate) fn memcg(&self) -> &Memcg {
        self.mm.memcg()
    }

    pub(crate) fn stat(&self) -> &Stat {
        &self.memcg().stat
    }

    pub(crate) fn primary(&self) -> &dyn PrimaryMmu {
        &*self.primary
    }

    /// The address of `page`.
    pub fn address(&self, page: PageIndex) -> Vaddr {
        Vaddr(self.base().0 + u64::from(page) * PAGE_SIZE as u64)
    }

    /// Whom a stored copy of `page` belongs to.
    pub(crate) fn owner(&self, page: PageIndex) -> Owner {
        // Mappings are numbered one by one; four billion of them do not live at the same time.
        Owner::new(self.id.0 as u32, page)
    }

    /// The generation of the frame of `page`.
    pub(crate) fn generation(&self, page: PageIndex) -> u32 {
        // Acquire: pairs with the Release in `bump_generation`.
        self.generations[page as usize].load(Ordering::Acquire)
    }

    /// The frame of `page` is about to leave its address. Called by the owner of the page, after
    /// the devices were told and before the machine changes anything.
    pub(crate) fn bump_generation(&self, page: PageIndex) {
        // AcqRel: Release pairs with `generation`; Acquire keeps the change of the page after it.
        self.generations[page as usize].fetch_add(1, Ordering::AcqRel);
    }

    /// Tells those who walk the page table that the entries of `run`, which the caller owns, were
    /// changed. The thread is watched meanwhile, whosever it is.
    pub(crate) fn flush_tlb_users(&self, run: PageRun, event: Event) {
        if !self.mm().notifiers().has_tlb_users() {
            return;
        }
        let _sitting = self.memcg().watch.sit_as_program();
        let (start, end) = (self.address(run.first), self.address(run.end()));
        self.mm().notifiers().flush_tlb_users(start, end, event);
    }

    /// Puts `next` in place of `seen`, the word of `page`: whether it was still that.
    pub(crate) fn try_change(&self, page: PageIndex, seen: Word, next: Word) -> bool {
        Self::page_point(page);
        self.pages.try_change(page, seen, next).is_ok()
    }

    /// Here a scheduler may let others go first: whatever was looked at before may have changed.
    fn page_point(page: PageIndex) {
        lockdep::scheduler::scheduler_point("mm.page", page as usize);
    }

    /// Takes ownership of `page`, found as `seen`.
    pub(crate) fn try_own(&self, page: PageIndex, seen: Word) -> Option<Owned> {
        Self::page_point(page);
        let was = self.pages.try_own(page, seen).ok()?;
        Some(Owned { page, was })
    }

    /// Ends an ownership: `next` is what everybody sees now.
    pub(crate) fn publish(&self, owned: Owned, next: Word) {
        let Owned { page, was } = owned;
        self.count_places(page, was, next);
        if self.pages.publish(page, next) {
            self.waiters.wake(page);
        }
    }

    /// Ends an ownership that changed nothing.
    pub(crate) fn restore(&self, owned: Owned) {
        let was = owned.was;
        self.publish(owned, was);
    }

    fn count_places(&self, page: PageIndex, was: Word, next: Word) {
        let window = &self.windows[(page / WINDOW_PAGES) as usize];
        for (counter, before, after) in [
            (&window.mapped, was.is_evictable(), next.is_evictable()),
            (&window.detached, was.is_detached(), next.is_detached()),
        ] {
            match (before, after) {
                (false, true) => drop(counter.fetch_add(1, Ordering::Relaxed)),
                (true, false) => drop(counter.fetch_sub(1, Ordering::Relaxed)),
                _ => {}
            }
        }
        count_change(&self.nr_locked, (was.is_locked(), next.is_locked()));
        if self.is_shared {
            let rss = &*self.mm.rss;
            count_change(&rss.shmem, (was.holds_frame(), next.holds_frame()));
            count_change(&rss.shmem_standby, (was.is_detached(), next.is_detached()));
        }
        if was.is_detached() != next.is_detached() {
            for level in self.memcg().levels() {
                level.domain.count_standby(next.is_detached());
            }
        }
        self.count_active(was, next);
    }

    fn count_active(&self, was: Word, next: Word) {
        if was.is_active() != next.is_active() {
            for level in self.memcg().levels() {
                level.domain.count_active(next.is_active());
            }
        }
    }

    /// Changes the marks of a page that nobody owns, found as `seen`; false when it has changed
    /// since.
    pub(crate) fn remark(&self, page: PageIndex, seen: Word, next: Word) -> bool {
        let is_changed = self.try_change(page, seen, next);
        if is_changed {
            self.count_active(seen, next);
        }
        is_changed
    }

    /// How many pages of the window are mapped and not locked; a hint.
    pub(crate) fn nr_evictable_in(&self, window: u32) -> u8 {
        self.windows[window as usize].mapped.load(Ordering::Relaxed)
    }

    /// How many pages of the window are in their slots; a hint.
    pub(crate) fn nr_detached_in(&self, window: u32) -> u8 {
        self.windows[window as usize]
            .detached
            .load(Ordering::Relaxed)
    }

    /// Notes that the window of `page` waits for a device; false when it did already.
    pub(crate) fn begin_refused(&self, page: PageIndex) -> bool {
        let window = &self.windows[(page / WINDOW_PAGES) as usize];
        !window.is_refused.swap(true, Ordering::Relaxed)
    }

    /// The window of `page` no longer waits for a device.
    pub(crate) fn end_refused(&self, page: PageIndex) {
        let window = &self.windows[(page / WINDOW_PAGES) as usize];
        window.is_refused.store(false, Ordering::Relaxed);
    }

    /// Whether the window waits for a device; a hint that spares it the same question again.
    pub(crate) fn is_refused(&self, window: u32) -> bool {
        self.windows[window as usize]
            .is_refused
            .load(Ordering::Relaxed)
    }

    pub(crate) fn nr_windows(&self) -> u32 {
        self.windows.len() as u32
    }

    /// The pages of a window.
    pub(crate) fn window(&self, window: u32) -> PageRun {
        let first = window * WINDOW_PAGES;
        PageRun::new(first, WINDOW_PAGES.min(self.nr_pages() - first))
    }

    /// The program can do without the contents of `run`. Allocates.
    pub(super) fn add_discardable(&self, run: PageRun) {
        self.discardable.lock().push(run);
    }

    /// The program needs the contents of `run` again. Allocates; waits for pages that are being
    /// moved.
    pub(super) fn keep(&self, run: PageRun) {
        let mut discardable = self.discardable.lock();
        let parts = discardable.iter().flat_map(|of| without(*of, run));
        *discardable = parts.collect();
        drop(discardable);
        for page in run.pages() {
            let _ = self.load_settled(page);
        }
    }

    /// The ranges that the program can do without, by their place in a list that may change.
    pub(crate) fn discardable_at(&self, index: usize) -> Option<PageRun> {
        self.discardable.lock().get(index).copied()
    }

    /// Whether the program can do without an owned page. If it can, whoever calls [`Vma::keep`]
    /// after this finds the page owned, and waits.
    pub(super) fn is_discardable(&self, page: PageIndex) -> bool {
        let discardable = self.discardable.lock();
        discardable.iter().any(|run| run.contains(page))
    }

    /// Gives a stored copy back.
    pub(crate) fn free_copy(&self, copy: Option<Stored>) {
        if let Some(stored) = copy {
            self.memcg().free_stored(stored);
        }
    }

    /// Gives `n` frames of this mapping back to the memory cgroup.
    pub(crate) fn uncharge(&self, n: u64) {
        self.mm.rss.frames.fetch_sub(n, Ordering::Relaxed);
        self.memcg().uncharge_frames(n);
    }
}

/// Counts what was, or was not, and is now, or is not.
fn count_change(counter: &AtomicU64, (was, is): (bool, bool)) {
    match (was, is) {
        (false, true) => drop(counter.fetch_add(1, Ordering::Relaxed)),
        (true, false) => drop(counter.fetch_sub(1, Ordering::Relaxed)),
        _ => {}
    }
}

/// Bytes of the words and generations of so many pages. The system gives them as they are used.
pub(super) const fn books_bytes(nr_pages: u32) -> usize {
    nr_pages as usize * (size_of::<Word>() + size_of::<AtomicU32>())
}

/// What is left of `run` without the pages of `other`: what is before it, and what is after.
fn without(run: PageRun, other: PageRun) -> impl Iterator<Item = PageRun> {
    let before = (run.first, other.first.clamp(run.first, run.end()));
    let after = (other.end().clamp(run.first, run.end()), run.end());
    let parts = [before, after]
        .into_iter()
        .filter(|(first, end)| first < end);
    parts.map(|(first, end)| PageRun::new(first, end - first))
}

/// A page that this thread owns: its word says `Moving` until it is published.
#[derive(Debug)]
#[must_use = "a page that is not published stays locked for ever"]
pub(crate) struct Owned {
    pub(crate) page: PageIndex,
    /// The word that was found.
    pub(crate) was: Word,
}
