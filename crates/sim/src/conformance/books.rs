//! The memory of a run, as its checkers keep it.
//!
//! A page is a few bytes in a frame. When a frame leaves its page, the bytes go on in another one,
//! if they are kept; the old frame stays for as long as somebody has pinned it.

use super::Invariant;
use crate::checker::{Breach, Closing, Contents, Found, PinId, Pins, Span, Ticket, Translations};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::{BusAddr, Caught, StaleDma};
use pinless_mm::primary_mmu::Access;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a page that there are. Each user has one of its own.
pub(super) const NR_BYTES: usize = 8;

/// Fetches of one page in a row, while nothing happens to it, after which the device is stuck.
const FRUITLESS_MAX: u32 = 6;

/// What is known of a run. One task runs at a time, so the lock is always free, and taking it is
/// no step of the run.
pub(super) struct Books(Mutex<Inside>);

struct Inside {
    pages: Vec<Page>,
    translations: Translations,
    contents: Contents,
    pins: Pins,
    open: Vec<(u64, PageRun)>,
    /// Rises with each thing that happens.
    now: u64,
    is_released: bool,
    /// Nothing is under way: no access began before the last start.
    is_settled: bool,
}

struct Page {
    /// The last one is where the page is now.
    frames: Vec<Frame>,
    /// Fetches since a bracket began, the page was used, or an access to it came back.
    nr_fruitless: u32,
}

#[derive(Clone)]
struct Frame {
    /// Translations from this generation on are of this frame.
    born: u32,
    bytes: [u8; NR_BYTES],
    /// What the store has of it.
    saved: [u8; NR_BYTES],
    is_dirty: bool,
}

/// What becomes of the pages of a bracket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// The contents go, pinned or not.
    Discard,
    /// The page leaves its frame and keeps its contents, unless it is pinned.
    Move,
    /// The page may not be written until it is faulted again, and counts as clean.
    Protect,
}

/// An access of a device that the books allow.
pub(super) enum Allowed {
    /// Through a translation that is good; judged again at the end.
    Fresh(Ticket),
    /// To a frame that the device keeps pinned.
    Pinned,
}

impl Books {
    pub(super) fn new(nr_pages: u32) -> Self {
        let frame = Frame {
            born: 0,
            bytes: [0; NR_BYTES],
            saved: [0; NR_BYTES],
            is_dirty: false,
        };
        let page = |_| Page {
            frames: vec![frame.clone()],
            nr_fruitless: 0,
        };
        Self(Mutex::new(Inside {
            pages: (0..nr_pages).map(page).collect(),
            translations: Translations::new(nr_pages),
            contents: Contents::new(),
            pins: Pins::new(),
            open: Vec::new(),
            now: 1,
            is_released: false,
            is_settled: false,
        }))
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A moment of its own.
    pub(super) fn now(&self) -> u64 {
        self.inside().tick()
    }

    pub(super) fn nr_pages(&self) -> u32 {
        self.inside().pages.len() as u32
    }

    /// A translation of the page, with what is to be said about the asking; `None` if the memory
    /// is gone.
    pub(super) fn fetch(
        &self,
        page: PageIndex,
        access: Access,
    ) -> Option<(BusAddr, Result<(), Breach>)> {
        let mut inside = self.inside();
        if inside.is_released {
            return None;
        }
        let is_open = !inside.open.is_empty();
        let of = &mut inside.pages[page as usize];
        of.frame_mut().is_dirty |= access == Access::Write;
        of.nr_fruitless = if is_open { 0 } else { of.nr_fruitless + 1 };
        let is_stuck = of.nr_fruitless == FRUITLESS_MAX;
        let what = || {
            format!(
                "page {page} was asked for {FRUITLESS_MAX} times, and thrown away each time, \
                 though no bracket is open"
            )
        };
        let found = match is_stuck {
            true => Err(Breach::of(Invariant::P4, what())),
            false => Ok(()),
        };
        Some((inside.translations.fetched(page, access), found))
    }

    /// A device begins an access.
    pub(super) fn access_began(&self, at: BusAddr, access: Access) -> Result<Allowed, Breach> {
        let mut inside = self.inside();
        let is_pinned = inside.is_pinned(at);
        inside.pages[at.page as usize].nr_fruitless = 0;
        match inside.translations.access_began(at, access) {
            Ok(ticket) => Ok(Allowed::Fresh(ticket)),
            Err(_) if is_pinned && may(at, access) => match inside.is_settled {
                true => inside.translations.pinned_use(at).map(|()| Allowed::Pinned),
                // One that was under way when the start came may end in its old frame.
                false => Ok(Allowed::Pinned),
            },
            Err(breach) => Err(breach),
        }
    }

    /// An access to the page has come back to its user, with whatever answer. What it had looked up
    /// was not in vain: who is told that the device has stopped asks no more.
    pub(super) fn answered(&self, page: PageIndex) {
        self.inside().pages[page as usize].nr_fruitless = 0;
    }

    /// Nothing is under way any more; a page that is pinned too late or too long shows from here.
    pub(super) fn settled(&self) {
        self.inside().is_settled = true;
    }

    /// Pages that are pinned, each counted once for each pin.
    pub(super) fn nr_pinned(&self) -> usize {
        self.inside().pins.nr()
    }

    /// The bytes of an access; it ends with this.
    pub(super) fn access(
        &self,
        at: BusAddr,
        allowed: Allowed,
        act: impl FnOnce(&mut [u8; NR_BYTES]),
    ) -> Result<(), Breach> {
        let mut inside = self.inside();
        let is_pinned = inside.is_pinned(at);
        if let Allowed::Fresh(ticket) = allowed
            && !is_pinned
        {
            inside.translations.access_ended(ticket)?;
        }
        act(&mut inside.pages[at.page as usize].frame_of(at.generation).bytes);
        Ok(())
    }

    /// What the bus answers to a use that is stale.
    pub(super) fn stale(&self, used: BusAddr, access: Access) -> StaleDma {
        let is_read_only = access == Access::Write && used.access == Access::Read;
        StaleDma {
            used,
            found: self.inside().translations.generation(used.page),
            caught: if is_read_only {
                Caught::ReadOnly
            } else {
                Caught::Before
            },
        }
    }

    pub(super) fn pinned(&self, run: PageRun, access: Access) -> Option<PinId> {
        let mut inside = self.inside();
        if inside.is_released {
            return None;
        }
        let frames = run.pages().map(|page| {
            let frame = inside.pages[page as usize].frame_mut();
            frame.is_dirty |= access == Access::Write;
            (page, frame.born)
        });
        let frames = frames.collect();
        Some(inside.pins.pinned(frames))
    }

    /// Pages are let go of. What was pinned for writing may have been written to the last moment.
    pub(super) fn unpinned(&self, pin: PinId, access: Access) -> Result<(), Breach> {
        let mut inside = self.inside();
        for (page, born) in inside.pins.unpinned(pin)? {
            let frame = inside.pages[page as usize].frame_of(born);
            frame.is_dirty |= access == Access::Write;
        }
        Ok(())
    }

    /// A start is about to be called; says whether another bracket is open: the work of this one
    /// may have been begun by that one, whatever its range.
    pub(super) fn start_called(&self, run: PageRun) -> (u64, bool) {
        let mut inside = self.inside();
        let id = inside.tick();
        let is_beside = !inside.open.is_empty();
        inside.open.push((id, run));
        inside.pages.iter_mut().for_each(|of| of.nr_fruitless = 0);
        (id, is_beside)
    }

    /// A start has returned, and was not refused.
    pub(super) fn start_returned(&self, run: PageRun, closing: Closing) {
        let mut inside = self.inside();
        inside.tick();
        inside.translations.closed(run, closing);
    }

    /// A bracket is over, or was never opened.
    pub(super) fn ended(&self, id: u64) {
        let mut inside = self.inside();
        inside.tick();
        inside.open.retain(|(open, _)| *open != id);
    }

    /// The change of a bracket.
    pub(super) fn change(&self, run: PageRun, change: Change) {
        let mut inside = self.inside();
        for page in run.pages() {
            let at = inside.tick();
            let inside = &mut *inside;
            let of = &mut inside.pages[page as usize];
            let is_pinned = inside.pins.is_pinned(page, of.frame_mut().born);
            match change {
                Change::Move if is_pinned => continue,
                Change::Protect => {
                    let frame = of.frame_mut();
                    frame.saved = frame.bytes;
                    frame.is_dirty = false;
                    continue;
                }
                Change::Move | Change::Discard => inside.translations.freed(page),
            }
            let born = inside.translations.generation(page);
            let next = of.frame_mut().clone().successor(born, change);
            of.frames.push(next);
            if change == Change::Discard {
                inside.contents.discarded(page, at);
            }
        }
    }

    /// The memory is gone: nothing is translated any more, and nothing may be used.
    pub(super) fn released(&self) {
        let mut inside = self.inside();
        inside.is_released = true;
        let all = PageRun::new(0, inside.pages.len() as u32);
        inside.translations.closed(all, Closing::As(Invariant::P10));
    }

    pub(super) fn wrote(&self, written: Found, from: u64) {
        let mut inside = self.inside();
        let to = inside.tick();
        inside.contents.wrote(written, Span { from, to });
    }

    pub(super) fn read(&self, found: Found, from: u64) -> Result<(), Breach> {
        let mut inside = self.inside();
        let to = inside.tick();
        inside.contents.read(found, Span { from, to })
    }

    /// Frames that left their pages and are still pinned.
    pub(super) fn nr_doomed(&self) -> usize {
        let inside = self.inside();
        let pages = inside.pages.iter().enumerate();
        pages
            .flat_map(|(page, of)| {
                let old = &of.frames[..of.frames.len() - 1];
                old.iter().map(move |frame| (page as u32, frame.born))
            })
            .filter(|&(page, born)| inside.pins.is_pinned(page, born))
            .count()
    }

    /// Whether all pins are gone.
    pub(super) fn finish(&self) -> Result<(), Breach> {
        self.inside().pins.finish()
    }
}

impl Inside {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn is_pinned(&mut self, at: BusAddr) -> bool {
        let born = self.pages[at.page as usize].frame_of(at.generation).born;
        self.pins.is_pinned(at.page, born)
    }
}

impl Page {
    fn frame_mut(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("a page has a frame")
    }

    fn frame_of(&mut self, generation: u32) -> &mut Frame {
        let after = self
            .frames
            .partition_point(|frame| frame.born <= generation);
        &mut self.frames[after - 1]
    }
}

impl Frame {
    /// The frame that the page is in after a change.
    fn successor(self, born: u32, change: Change) -> Self {
        let bytes = match change {
            Change::Discard => [0; NR_BYTES],
            // What nobody said was written is not saved.
            _ if self.is_dirty => self.bytes,
            _ => self.saved,
        };
        Self {
            born,
            bytes,
            saved: bytes,
            is_dirty: false,
        }
    }
}

fn may(at: BusAddr, access: Access) -> bool {
    access == Access::Read || at.access == Access::Write
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for a page as often as nobody does who is not stuck; how many of the answers say so.
    fn ask(books: &Books, then: impl Fn(&Books)) -> usize {
        let ask = |_| {
            let (_, found) = books.fetch(0, Access::Read).expect("it is not released");
            then(books);
            found.is_err()
        };
        (0..2 * FRUITLESS_MAX)
            .map(ask)
            .filter(|is_stuck| *is_stuck)
            .count()
    }

    #[test]
    fn only_lookups_that_lead_to_no_answer_are_in_vain() {
        let books = Books::new(1);
        assert_eq!(ask(&books, |books| books.answered(0)), 0);
        assert_eq!(ask(&books, |_| ()), 1);
    }
}
