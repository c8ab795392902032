//! The memory of a run, as its checkers keep it.
//!
//! A page is a few bytes in a frame. When a frame leaves its page, the bytes go on in another one,
//! if they are kept; the old frame stays for as long as somebody has pinned it. Then it is freed,
//! and filled with poison.

use super::Invariant;
use crate::checker::{Breach, Closing, Contents, Found, PinId, Pins, Span, Ticket, Translations};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::{BusAddr, Caught, Checks, StaleDma};
use pinless_mm::primary_mmu::Access;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a page that there are. Each user has one of its own.
pub(super) const NR_BYTES: usize = 8;

/// Fetches of one page in a row, while nothing happens to it, after which the device is stuck.
const FRUITLESS_MAX: u32 = 6;

/// The same while a bracket over another page stays open: nothing at all happens then.
const FRUITLESS_BESIDE_MAX: u32 = 4;

/// What is known of a run. One task runs at a time, so the lock is always free, and taking it is
/// no step of the run.
pub(super) struct Books {
    inside: Mutex<Inside>,
    checks: Checks,
}

struct Inside {
    pages: Vec<Page>,
    translations: Translations,
    contents: Contents,
    pins: Pins,
    open: Vec<(u64, PageRun)>,
    /// A bracket over these stays open: others need not wait for its end.
    stays_open: Option<PageRun>,
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
    is_freed: bool,
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
    /// Nobody looks at the translation, only at what is in the frame.
    Unchecked,
}

impl Books {
    pub(super) fn new(nr_pages: u32, checks: Checks) -> Self {
        let frame = Frame {
            born: 0,
            bytes: [0; NR_BYTES],
            saved: [0; NR_BYTES],
            is_dirty: false,
            is_freed: false,
        };
        let page = |_| Page {
            frames: vec![frame.clone()],
            nr_fruitless: 0,
        };
        let inside = Inside {
            pages: (0..nr_pages).map(page).collect(),
            translations: Translations::new(nr_pages),
            contents: Contents::new(),
            pins: Pins::new(),
            open: Vec::new(),
            stays_open: None,
            now: 1,
            is_released: false,
            is_settled: false,
        };
        Self {
            inside: Mutex::new(inside),
            checks,
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
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
        let is_beside = inside.stays_open.is_some_and(|run| !run.contains(page));
        let is_open = !inside.open.is_empty() && !is_beside;
        let of = &mut inside.pages[page as usize];
        of.frame_mut().is_dirty |= access == Access::Write;
        of.nr_fruitless = if is_open { 0 } else { of.nr_fruitless + 1 };
        let nr = of.nr_fruitless;
        let found = match (is_beside, nr) {
            (true, FRUITLESS_BESIDE_MAX) => Err(fruitless(Invariant::P8, page, nr)),
            (false, FRUITLESS_MAX) => Err(fruitless(Invariant::P4, page, nr)),
            _ => Ok(()),
        };
        Some((inside.translations.fetched(page, access), found))
    }

    /// A device begins an access.
    pub(super) fn access_began(&self, at: BusAddr, access: Access) -> Result<Allowed, Breach> {
        let mut inside = self.inside();
        inside.pages[at.page as usize].nr_fruitless = 0;
        if self.checks != Checks::Generation {
            return Ok(Allowed::Unchecked);
        }
        let is_pinned = inside.is_pinned(at);
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

    /// A bracket over these is open for long, or was.
    pub(super) fn stays_open(&self, run: Option<PageRun>) {
        self.inside().stays_open = run;
    }

    /// Pages that are pinned, each counted once for each pin.
    pub(super) fn nr_pinned(&self) -> usize {
        self.inside().pins.nr()
    }

    /// The bytes of an access; it ends with this.
    pub(super) fn access(
        &self,
        at: BusAddr,
        access: Access,
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
        let frame = inside.pages[at.page as usize].frame_of(at.generation);
        act(&mut frame.bytes);
        match (self.checks, access) {
            (Checks::Poison, Access::Read) => frame.unpoisoned(at.page),
            // Who writes sees nothing: that is found in the end.
            _ => Ok(()),
        }
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
            let is_pinned = inside.pins.is_pinned(page, born);
            let of = &mut inside.pages[page as usize];
            let is_old = of.frame_mut().born != born;
            let frame = of.frame_of(born);
            frame.is_dirty |= access == Access::Write;
            if is_old && !is_pinned {
                frame.free();
            }
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
            if !is_pinned {
                of.frame_mut().free();
            }
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
        match self.checks {
            Checks::Off => Ok(()),
            _ => inside.contents.read(found, Span { from, to }),
        }
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

    /// Whether all pins are gone, and nobody has written to what was freed.
    pub(super) fn finish(&self) -> Result<(), Breach> {
        let inside = self.inside();
        inside.pins.finish()?;
        let frames = || inside.pages.iter().flat_map(|of| &of.frames);
        match self.checks {
            Checks::Poison => frames().try_for_each(Frame::unwritten),
            Checks::Generation | Checks::Off => Ok(()),
        }
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
            is_freed: false,
        }
    }

    /// What a freed frame is filled with: no byte that a user writes.
    const fn poison(&self) -> u8 {
        0x80 | self.born as u8
    }

    fn free(&mut self) {
        self.is_freed = true;
        self.bytes = [self.poison(); NR_BYTES];
    }

    /// Whether who reads finds a page, not what was freed.
    fn unpoisoned(&self, page: PageIndex) -> Result<(), Breach> {
        if !self.bytes.contains(&self.poison()) {
            return Ok(());
        }
        let what = format!("the device found poison at page {page}, whose frame was freed");
        Err(Breach::of(Invariant::R4, what))
    }

    /// Whether what was freed is as it was left.
    fn unwritten(&self) -> Result<(), Breach> {
        if !self.is_freed || self.bytes == [self.poison(); NR_BYTES] {
            return Ok(());
        }
        let what = "the device wrote to a frame that was freed";
        Err(Breach::of(Invariant::R4, what))
    }
}

/// A page was looked up in vain again and again.
fn fruitless(invariant: Invariant, page: PageIndex, times: u32) -> Breach {
    let why = match invariant {
        Invariant::P8 => "for a bracket over another page",
        _ => "though no bracket is open",
    };
    let what = format!("page {page} was asked for {times} times, and thrown away each time, {why}");
    Breach::of(invariant, what)
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
        let books = Books::new(1, Checks::Generation);
        assert_eq!(ask(&books, |books| books.answered(0)), 0);
        assert_eq!(ask(&books, |_| ()), 1);
    }

    /// Uses a page after it was taken away, and ends.
    fn use_late(checks: Checks, access: Access) -> Result<(), Breach> {
        let books = Books::new(1, checks);
        let (at, found) = books.fetch(0, Access::Write).expect("it is not released");
        found?;
        let run = PageRun::single(0);
        books.start_returned(run, Closing::Alone);
        books.change(run, Change::Move);
        let allowed = books.access_began(at, access)?;
        let act = |bytes: &mut [u8; NR_BYTES]| match access {
            Access::Write => bytes[0] = 1,
            Access::Read => {}
        };
        books.access(at, access, allowed, act)?;
        books.finish()
    }

    #[test]
    fn each_level_convicts_by_what_it_looks_at() {
        for access in [Access::Read, Access::Write] {
            let generation = use_late(Checks::Generation, access).expect_err("it is stale");
            assert_eq!(
                generation.invariant,
                Some(Invariant::R1),
                "and says since when"
            );
            let poison = use_late(Checks::Poison, access).expect_err("it finds poison");
            assert_eq!(poison.invariant, Some(Invariant::R4));
            assert_eq!(use_late(Checks::Off, access), Ok(()), "nobody looks");
        }
    }
}
