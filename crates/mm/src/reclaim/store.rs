//! The back hand: frames of detached pages come free.

use super::Effort;
use super::detach::PageSet;
use super::reuse::Spare;
use crate::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun};
use crate::limits::WINDOW_PAGES;
use crate::memcg::stat::{add, count};
use crate::mm_struct::{Owned, Vma};
use crate::page::{State, Word};
use crate::swap::{NoRoom, Scratch, Stored};
use core::sync::atomic::Ordering;

/// What storing takes, one page after the other.
pub(crate) struct Workspace {
    /// The page as it was when it was owned.
    contents: Box<PageBuf>,
    scratch: Scratch,
}

impl Workspace {
    pub(super) fn new() -> Self {
        Self {
            contents: Box::new([0; PAGE_SIZE]),
            scratch: Scratch::new(),
        }
    }
}

/// What is known of the pages of a window whose frames may go.
struct Ready {
    pages: PageSet,
    /// What was stored for them; `None` where the copy that the page has is good.
    stored: [Option<Stored>; WINDOW_PAGES as usize],
    /// The generation of the frame that was stored. A page that was rescued, changed, detached
    /// again and is being stored by somebody else looks the same but for this.
    generations: [u32; WINDOW_PAGES as usize],
}

/// The same of one page.
struct Prepared {
    stored: Option<Stored>,
    generation: u32,
}

impl Vma {
    /// Gives back the frames of the pages of a window that stand by. Returns how many.
    pub(crate) fn store_window(&self, run: PageRun, space: &mut Workspace, effort: Effort) -> u64 {
        let ready = self.prepare_window(run, space, effort);
        self.free_ready(run, &ready)
    }

    /// The same, and keeps up to `nr` of the frames for other pages.
    pub(super) fn store_window_for<'a, const N: usize>(
        &'a self,
        mut spare: Spare<'a, N>,
        (run, nr): (PageRun, u32),
        (space, effort): (&mut Workspace, Effort),
    ) -> Option<Spare<'a, N>> {
        let mut ready = self.prepare_window(run, space, effort);
        for (index, page) in (0..).zip(run.pages()) {
            if !ready.pages.contains(index) || !spare.has_room(nr) {
                continue;
            }
            ready.pages.remove(index);
            let stored = ready.stored[index as usize];
            match self.own_to_free(page, index as usize, true, &ready) {
                Some(owned) => spare.push(owned, stored),
                None => self.free_copy(stored),
            }
        }
        self.free_ready(run, &ready);
        spare.if_any()
    }

    /// Makes sure that the contents of the pages of a window that stand by are in the store.
    fn prepare_window(&self, run: PageRun, space: &mut Workspace, effort: Effort) -> Ready {
        let mut ready = Ready {
            pages: PageSet::default(),
            stored: [None; WINDOW_PAGES as usize],
            generations: [0; WINDOW_PAGES as usize],
        };
        for (index, page) in (0..).zip(run.pages()) {
            if let Some(prepared) = self.prepare(page, space, effort) {
                ready.pages.insert(index);
                ready.stored[index as usize] = prepared.stored;
                ready.generations[index as usize] = prepared.generation;
            }
        }
        ready
    }

    /// Makes sure that the contents of a page that stands by are in the store. The page can be
    /// rescued until [`Vma::free_ready`].
    fn prepare(&self, page: PageIndex, space: &mut Workspace, effort: Effort) -> Option<Prepared> {
        let Workspace { contents, scratch } = space;
        let seen = self.pages.load(page);
        if seen.state() != State::Standby {
            return None;
        }
        if !seen.is_dirty() && seen.copy().is_some() {
            let (stored, generation) = (None, self.generation(page));
            return Some(Prepared { stored, generation });
        }
        let memcg = self.memcg();
        if let Some(refused) = seen.no_room()
            && !memcg.has_room_for(refused)
            && !memcg.shed(refused, effort)
        {
            return None;
        }
        // The copy is taken while nobody can move the page away, compressed after that.
        let owned = self.try_own(page, seen)?;
        // Read while it is owned: the word alone does not tell this detach from an earlier one, and
        // who publishes `Storing` must be the one who finds his own generation again.
        let generation = self.generation(page);
        self.primary().read_detached(page, contents);
        self.publish(owned, seen.with_state(State::Storing));
        let mut stored = memcg.store(self.owner(page), contents, scratch);
        if stored.is_err_and(|refused| memcg.shed(refused, effort)) {
            stored = memcg.store(self.owner(page), contents, scratch);
        }
        match stored {
            Ok(stored) => Some(Prepared {
                stored: Some(stored),
                generation,
            }),
            Err(refused) => {
                count(&self.stat().store_full);
                self.give_up(page, generation, refused);
                None
            }
        }
    }

    /// A page that could not be stored stands by again, if it was not rescued; and if it is what
    /// was to be stored, it remembers what there was no room for.
    fn give_up(&self, page: PageIndex, generation: u32, refused: NoRoom) {
        let seen = self.pages.load(page);
        if seen.state() != State::Storing {
            return;
        }
        let Some(owned) = self.try_own(page, seen) else {
            return;
        };
        let was = owned.was;
        if self.generation(page) == generation {
            self.publish(owned, was.with_state(State::Standby).with_no_room(refused));
        } else {
            // Somebody else is storing other contents.
            self.restore(owned);
        }
    }

    /// Frees the slots of the pages that still stand by, in runs.
    fn free_ready(&self, window: PageRun, ready: &Ready) -> u64 {
        if ready.pages.is_empty() {
            return 0;
        }
        let mut freed = 0;
        let mut batch: (PageIndex, u32) = (0, 0);
        let mut words = [(Word::EMPTY, false); WINDOW_PAGES as usize];
        for page in ready.pages.hull(window.first).pages() {
            let index = page - window.first;
            let is_ready = ready.pages.contains(index);
            let owned = self.own_to_free(page, index as usize, is_ready, ready);
            if is_ready && owned.is_none() {
                // Rescued. What was stored for it is not needed.
                self.free_copy(ready.stored[index as usize]);
            }
            match owned {
                Some(owned) => {
                    if batch.1 == 0 {
                        batch.0 = page;
                    }
                    words[batch.1 as usize] = (owned.was, is_ready);
                    batch.1 += 1;
                }
                None => {
                    freed += self.free_batch(batch, &words, window, ready);
                    batch.1 = 0;
                }
            }
        }
        freed += self.free_batch(batch, &words, window, ready);
        add(&self.stat().pgsteal, freed);
        freed
    }

    /// Owns a page whose frame may go, or a page between two such whose slot is empty: it must
    /// stay so while one machine operation goes over the whole run.
    fn own_to_free(
        &self,
        page: PageIndex,
        index: usize,
        is_ready: bool,
        ready: &Ready,
    ) -> Option<Owned> {
        let seen = self.pages.load(page);
        let is_fit = match (seen.state(), ready.stored[index]) {
            (State::Storing, Some(_)) => is_ready,
            (State::Standby, None) => is_ready && !seen.is_dirty() && seen.copy().is_some(),
            (State::Empty | State::Swapped, _) => !is_ready,
            _ => false,
        };
        let owned = if is_fit {
            self.try_own(page, seen)
        } else {
            None
        }?;
        if is_ready && self.generation(page) != ready.generations[index] {
            self.restore(owned);
            return None;
        }
        Some(owned)
    }

    fn free_batch(
        &self,
        (first, nr): (PageIndex, u32),
        words: &[(Word, bool); WINDOW_PAGES as usize],
        window: PageRun,
        ready: &Ready,
    ) -> u64 {
        if nr == 0 {
            return 0;
        }
        let run = PageRun::new(first, nr);
        let is_freed = self.primary().free_detached(run).is_ok();
        if !is_freed {
            // Something else changed the slots. What was stored is as good as what is there.
            count(&self.stat().foreign_changes);
        }
        let nr_ready = words[..nr as usize]
            .iter()
            .filter(|(_, is_ready)| *is_ready);
        let freed = nr_ready.count() as u64;
        // Before the pages are seen as swapped: a fault takes them away again.
        self.mm().rss.swapped.fetch_add(freed, Ordering::Relaxed);
        let shadow = self.memcg().note_evicted(freed);
        for (page, &(was, is_ready)) in run.pages().zip(words) {
            let owned = Owned { page, was };
            if !is_ready {
                self.restore(owned);
                continue;
            }
            let stored = ready.stored[(page - window.first) as usize];
            self.publish(owned, self.note_stored(was, stored, shadow));
            if stored.is_some() {
                self.free_copy(was.copy());
            }
        }
        self.uncharge(freed);
        freed
    }

    /// What a page found as `was` becomes whose frame goes; `stored` is what was stored for it, if
    /// its old copy is not good.
    pub(super) fn note_stored(&self, was: Word, stored: Option<Stored>, shadow: u16) -> Word {
        let next = was.swapped().with_shadow(shadow);
        match stored {
            Some(stored) => {
                count(&self.stat().zswpout);
                next.with_copy(stored)
            }
            None => {
                count(&self.stat().clean_drop);
                next
            }
        }
    }
}
