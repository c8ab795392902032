//! Zapping: frames and stored copies go back, contents are given up.
//!
//! Linux counterpart: `zap_page_range`, `unmap_vmas`.

use super::Vma;
use super::vma::Owned;
use crate::addr::{PageIndex, PageRun};
use crate::limits::REAP_CHUNK_PAGES;
use crate::memcg::stat::count;
use crate::mmu_notifier::{Event, Invalidation};
use crate::page::{State, Word};
use crate::primary_mmu::{Detached, MmuError};
use core::sync::atomic::Ordering;

/// How often a zap looks at a page that somebody else is moving before it leaves it out.
const PATIENCE: u32 = 3;

/// What a zap did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ZapOutcome {
    /// Frames given back.
    pub(crate) frames: u64,
    /// Stored copies given back, of pages without a frame.
    pub(crate) swapped: u64,
    /// Pages left alone because they are pinned.
    pub(crate) pinned: u64,
    /// Pages left alone because they are moving, or because a device joined too late to be told.
    pub(crate) busy: u64,
}

impl core::ops::AddAssign for ZapOutcome {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.swapped += other.swapped;
        self.pinned += other.pinned;
        self.busy += other.busy;
    }
}

/// Why a zap may take what it finds.
#[derive(Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// The mapping is gone: nobody gets a new translation.
    Gone,
    /// The address space was killed, which is the same. For the reaper, which waits for nobody: a
    /// page that moves is left out.
    Reap,
    /// Everybody was told by this bracket, as long as nobody has subscribed since it began.
    Told(&'a Invalidation),
    /// The same, for pages that the program can do without at that moment.
    Discard(&'a Invalidation),
}

impl Scope<'_> {
    /// What happens to the pages.
    fn event(self) -> Event {
        match self {
            Self::Gone | Self::Reap => Event::Unmap,
            Self::Told(_) | Self::Discard(_) => Event::Clear,
        }
    }
}

impl Vma {
    /// The word of `page` when no machine operation is under way on it. A fault is resolved for
    /// the one who faulted a moment before its word says so; whoever acts on behalf of a program
    /// waits for that moment.
    pub(crate) fn load_settled(&self, page: PageIndex) -> Word {
        loop {
            let seen = self.pages.load(page);
            if seen.state() != State::Moving {
                return seen;
            }
            self.waiters.wait(&self.pages, page);
        }
    }

    /// Whether any page of `run` has something to give back.
    pub(crate) fn has_contents(&self, run: PageRun) -> bool {
        run.pages()
            .any(|page| self.pages.load(page).state() != State::Empty)
    }

    /// Zaps what is in `run`, all of which the devices were told of. Pages that are pinned or were
    /// used since are left alone.
    pub(crate) fn zap_told(&self, run: PageRun, scope: Scope<'_>) -> ZapOutcome {
        let mut outcome = ZapOutcome::default();
        let mut first = run.first;
        while first < run.end() {
            let chunk = PageRun::new(first, REAP_CHUNK_PAGES.min(run.end() - first));
            // Words that were never written take no memory, nor now.
            if self.has_contents(chunk) {
                outcome += self.zap_chunk(chunk, scope);
            }
            first = chunk.end();
        }
        outcome
    }

    fn zap_chunk(&self, chunk: PageRun, scope: Scope<'_>) -> ZapOutcome {
        let mut outcome = ZapOutcome::default();
        let mut batch = Batch::new();
        for page in chunk.pages() {
            match self.own_to_zap(page, scope) {
                Ok(owned) => batch.push(owned),
                Err(why) => {
                    outcome += why;
                    outcome += self.zap_batch(&mut batch, scope);
                }
            }
        }
        outcome += self.zap_batch(&mut batch, scope);
        outcome
    }

    fn own_to_zap(&self, page: PageIndex, scope: Scope<'_>) -> Result<Owned, ZapOutcome> {
        for _ in 0..PATIENCE {
            let seen = self.pages.load(page);
            // A lock protects from advice, not from the end of its owner.
            let is_kept = seen.is_locked() && scope.event() == Event::Clear;
            if seen.pins() > 0 || is_kept {
                return Err(ZapOutcome {
                    pinned: 1,
                    ..Default::default()
                });
            }
            if seen.state() == State::Moving {
                match scope {
                    Scope::Reap => self.waiters.spin(&self.pages, page),
                    _ => self.waiters.wait(&self.pages, page),
                }
            } else if let Some(owned) = self.try_own(page, seen) {
                if self.may_go(page, scope) {
                    return Ok(owned);
                }
                self.restore(owned);
                break;
            }
        }
        Err(ZapOutcome {
            busy: 1,
            ..Default::default()
        })
    }

    /// Whether every device that may use an owned page was told. One that subscribes after this
    /// finds the page owned, and waits.
    fn may_go(&self, page: PageIndex, scope: Scope<'_>) -> bool {
        let is_current = |bracket| self.mm().notifiers().is_current(bracket);
        match scope {
            Scope::Gone | Scope::Reap => true,
            Scope::Told(bracket) => is_current(bracket),
            Scope::Discard(bracket) => is_current(bracket) && self.is_discardable(page),
        }
    }

    /// Counts an answer that says that something else changed the mapping.
    fn note_foreign(&self, answer: Result<(), MmuError>) {
        if answer.is_err() {
            count(&self.stat().foreign_changes);
        }
    }

    /// Whoever walks the page table must forget an entry before its frame is given back, and the
    /// machine takes both at once: so if there is anybody, mapped pages go into their slots first.
    /// Returns whether any did; one that is held by something else stays where it is.
    fn put_aside_for_tlb_users(&self, run: PageRun, words: &[Word], scope: Scope<'_>) -> bool {
        let is_any_mapped = words.iter().any(|was| was.is_mapped());
        if !is_any_mapped || !self.mm().notifiers().has_tlb_users() {
            return false;
        }
        let mut outcome = [Detached::Hole; REAP_CHUNK_PAGES as usize];
        // An error is told by the zap that follows.
        let _ = self.primary().detach(run, &mut outcome[..words.len()]);
        self.flush_tlb_users(run, scope.event());
        outcome.contains(&Detached::Done)
    }

    /// Zaps neighbouring pages that this thread owns.
    fn zap_batch(&self, batch: &mut Batch, scope: Scope<'_>) -> ZapOutcome {
        let mut outcome = ZapOutcome::default();
        let Some(run) = batch.run() else {
            return outcome;
        };
        let words = &batch.words[..batch.nr];
        for (page, was) in run.pages().zip(words) {
            if was.is_mapped() {
                self.bump_generation(page);
            }
        }
        let is_any_aside = self.put_aside_for_tlb_users(run, words, scope);
        // An error means that the range was changed behind our back; what it held is not ours any
        // more.
        if words
            .iter()
            .any(|was| was.is_mapped() || was.state() == State::Poisoned)
        {
            self.note_foreign(self.primary().zap(run));
        }
        if is_any_aside || words.iter().any(|was| was.is_detached()) {
            self.note_foreign(self.primary().free_detached(run));
        }
        for (page, &was) in run.pages().zip(words) {
            self.publish(Owned { page, was }, Word::EMPTY);
            self.free_copy(was.copy());
            outcome.frames += u64::from(was.is_mapped() || was.is_detached());
            outcome.swapped += u64::from(was.state() == State::Swapped);
        }
        self.mm()
            .rss
            .swapped
            .fetch_sub(outcome.swapped, Ordering::Relaxed);
        self.uncharge(outcome.frames);
        batch.nr = 0;
        outcome
    }
}

/// Neighbouring owned pages.
struct Batch {
    first: PageIndex,
    nr: usize,
    words: [Word; REAP_CHUNK_PAGES as usize],
}

impl Batch {
    fn new() -> Self {
        Self {
            first: 0,
            nr: 0,
            words: [Word::EMPTY; REAP_CHUNK_PAGES as usize],
        }
    }

    fn push(&mut self, owned: Owned) {
        if self.nr == 0 {
            self.first = owned.page;
        }
        assert_eq!(
            self.first + self.nr as u32,
            owned.page,
            "a batch has no gaps"
        );
        self.words[self.nr] = owned.was;
        self.nr += 1;
    }

    fn run(&self) -> Option<PageRun> {
        (self.nr > 0).then(|| PageRun::new(self.first, self.nr as u32))
    }
}
