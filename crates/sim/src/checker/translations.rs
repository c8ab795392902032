//! G1 and G2: which translations of a mapping may be used.
//!
//! Each page has a generation that rises whenever a start over it has returned, and again when its
//! frame has gone. A translation carries the generation at which it was fetched, so one look tells
//! whether a start has returned since. A write protection ends translations for writing alone.

use super::Breach;
use crate::conformance::Invariant;
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::BusAddr;
use pinless_mm::primary_mmu::Access;

/// The translations of one mapping.
#[derive(Debug)]
pub struct Translations {
    pages: Vec<Page>,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    generation: u32,
    /// Translations from before cannot be read through.
    readable_from: u32,
    /// Nor written through.
    writable_from: u32,
    /// The newest generation that an access was made with.
    used: Option<u32>,
    /// The newest generation that was looked up.
    looked_up: Option<u32>,
    /// Since translations ended the last time, one was looked up again that had not been used.
    was_dropped: bool,
    /// How translations ended the last time.
    closing: Closing,
    /// The frame of that time is gone.
    is_freed: bool,
}

/// Why translations end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closing {
    /// A start has returned.
    Alone,
    /// A start has returned that was called while another one was open over the page.
    Beside,
    /// A write protection: reading goes on.
    Protected,
    /// A start has returned over several pages, which were looked up before: none may be forgotten.
    Copies,
    /// For a change by which the driver is held to this.
    As(Invariant),
    /// The same for a write protection: reading goes on.
    ProtectedAs(Invariant),
}

/// An access that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an access is judged at its end too"]
pub struct Ticket {
    at: BusAddr,
    access: Access,
}

impl Translations {
    /// A mapping of this many pages, with no translation.
    pub fn new(nr_pages: u32) -> Self {
        let page = Page {
            generation: 1,
            readable_from: 1,
            writable_from: 1,
            used: None,
            looked_up: None,
            was_dropped: false,
            closing: Closing::Alone,
            is_freed: false,
        };
        Self {
            pages: vec![page; nr_pages as usize],
        }
    }

    /// A translation of `page` as it is now.
    pub fn fetched(&mut self, page: PageIndex, access: Access) -> BusAddr {
        let of = &mut self.pages[page as usize];
        let before = of.looked_up.replace(of.generation);
        of.was_dropped |= before > of.used && before < Some(of.generation);
        BusAddr {
            page,
            generation: of.generation,
            access,
        }
    }

    /// The translations of `run` that there are must not be used from here on.
    pub fn closed(&mut self, run: PageRun, closing: Closing) {
        for page in run.pages() {
            let page = &mut self.pages[page as usize];
            page.generation += 1;
            page.writable_from = page.generation;
            if !matches!(closing, Closing::Protected | Closing::ProtectedAs(_)) {
                page.readable_from = page.generation;
            }
            page.closing = closing;
            page.was_dropped = false;
            page.is_freed = false;
        }
    }

    /// The frame of `page` is gone: also translations are bad that were fetched since the start.
    pub fn freed(&mut self, page: PageIndex) {
        let page = &mut self.pages[page as usize];
        page.generation += 1;
        page.readable_from = page.generation;
        page.writable_from = page.generation;
        page.is_freed = true;
    }

    /// Whether a translation may be used as it is now.
    pub fn is_good(&self, at: BusAddr, access: Access) -> bool {
        let page = &self.pages[at.page as usize];
        match access {
            Access::Read => at.generation >= page.readable_from,
            Access::Write => at.access == access && at.generation >= page.writable_from,
        }
    }

    /// The generation of the page's frame now.
    pub fn generation(&self, page: PageIndex) -> u32 {
        self.pages[page as usize].generation
    }

    /// A device begins to use a translation.
    ///
    /// # Errors
    ///
    /// [`Breach`] if it must not.
    pub fn access_began(&mut self, at: BusAddr, access: Access) -> Result<Ticket, Breach> {
        self.judge(at, access, "used a translation")?;
        let page = &mut self.pages[at.page as usize];
        page.used = page.used.max(Some(at.generation));
        Ok(Ticket { at, access })
    }

    /// A device has used a translation.
    ///
    /// # Errors
    ///
    /// [`Breach`] if it should have ended before.
    pub fn access_ended(&self, ticket: Ticket) -> Result<(), Breach> {
        self.judge(ticket.at, ticket.access, "was still using a translation")
    }

    /// A device begins to use a translation of a frame that it has pinned, when nothing is under
    /// way that began before the last start.
    ///
    /// # Errors
    ///
    /// [`Breach`] if the frame has left its page: a start has asked for the translation to go.
    pub fn pinned_use(&self, at: BusAddr) -> Result<(), Breach> {
        let page = &self.pages[at.page as usize];
        if !page.is_freed || at.generation >= page.readable_from {
            return Ok(());
        }
        let was_used = page.used.is_some_and(|used| used >= at.generation);
        let (invariant, since) = match was_used {
            true => (Invariant::R6, "that it used before a start had returned"),
            false => (
                Invariant::R1,
                "that it looked up before a start and installed after it",
            ),
        };
        let (nr, used, now) = (at.page, at.generation, page.generation);
        let what = format!(
            "the device began to use a pinned frame of page {nr} {since}, though the page has \
             another one (generation {used}, the page has {now})"
        );
        Err(Breach::of(invariant, what))
    }

    /// Whether the device has heard of the start that ended the translation of `page`.
    fn has_dropped_another(&self, page: PageIndex) -> bool {
        let mut all = (0..).zip(&self.pages);
        all.any(|(nr, of)| nr != page && of.was_dropped && of.closing == Closing::Copies)
    }

    fn judge(&self, at: BusAddr, access: Access, did: &str) -> Result<(), Breach> {
        if self.is_good(at, access) {
            return Ok(());
        }
        let page = &self.pages[at.page as usize];
        let was_used = page.used.is_some_and(|used| used >= at.generation);
        let (invariant, since) = match page.closing {
            _ if access == Access::Write && at.access == Access::Read => {
                (Invariant::R7, "which is for reading only, to write")
            }
            Closing::As(invariant) => (invariant, "after a change that it was told of"),
            Closing::ProtectedAs(invariant) if !page.is_freed => {
                (invariant, "to write after a protection that it was told of")
            }
            Closing::Protected if !page.is_freed => {
                (Invariant::R7, "to write after a write protection")
            }
            Closing::Beside => (
                Invariant::R3,
                "after a start had returned that was called beside another one",
            ),
            Closing::Copies if !was_used && self.has_dropped_another(at.page) => (
                Invariant::R5,
                "after a start for which it dropped that of another page, looked up as early",
            ),
            _ if !was_used => (
                Invariant::R1,
                "for the first time after a start had returned that came after it was fetched",
            ),
            _ if page.is_freed => (Invariant::R4, "whose frame was freed"),
            _ => (Invariant::R2, "after a start had returned"),
        };
        let (nr, used, now) = (at.page, at.generation, page.generation);
        let what = format!(
            "the device {did} of page {nr} {since} (generation {used}, the page has {now})"
        );
        Err(Breach::of(invariant, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(nr: u32) -> PageRun {
        PageRun::single(nr)
    }

    /// Fetches, uses if asked to, lets something happen, and uses again.
    #[track_caller]
    fn check(
        used_before: bool,
        access: Access,
        happens: impl FnOnce(&mut Translations),
        expected: Option<Invariant>,
    ) {
        let mut translations = Translations::new(2);
        let at = translations.fetched(0, access);
        if used_before {
            let ticket = translations.access_began(at, access).expect("fresh");
            translations.access_ended(ticket).expect("fresh");
        }
        happens(&mut translations);
        let found = translations.access_began(at, access).err();
        assert_eq!(found.and_then(|breach| breach.invariant), expected);
        let fresh = translations.fetched(0, access);
        let ticket = translations.access_began(fresh, access).expect("fresh");
        translations.access_ended(ticket).expect("fresh");
    }

    #[test]
    fn each_stale_use_has_its_name() {
        use Access::{Read, Write};
        use Invariant::{E3, P10, R1, R2, R3, R4, R7};
        check(true, Write, |_| {}, None);
        check(true, Write, |t| t.closed(page(1), Closing::Alone), None);
        check(true, Read, |t| t.closed(page(0), Closing::Protected), None);
        check(
            true,
            Read,
            |t| t.closed(page(0), Closing::ProtectedAs(E3)),
            None,
        );
        check(true, Read, |t| t.closed(page(0), Closing::Alone), Some(R2));
        check(false, Read, |t| t.closed(page(0), Closing::Alone), Some(R1));
        check(true, Read, |t| t.closed(page(0), Closing::Beside), Some(R3));
        check(true, Read, |t| t.freed(0), Some(R4));
        check(
            true,
            Write,
            |t| t.closed(page(0), Closing::Protected),
            Some(R7),
        );
        check(
            true,
            Write,
            |t| t.closed(page(0), Closing::ProtectedAs(E3)),
            Some(E3),
        );
        check(
            true,
            Read,
            |t| t.closed(page(0), Closing::As(P10)),
            Some(P10),
        );
    }

    #[test]
    fn what_was_pinned_late_is_not_what_was_kept() {
        for (was_used, expected) in [(false, Invariant::R1), (true, Invariant::R6)] {
            let mut translations = Translations::new(1);
            let at = translations.fetched(0, Access::Read);
            if was_used {
                let _ticket = translations.access_began(at, Access::Read).expect("fresh");
            }
            translations.closed(page(0), Closing::Alone);
            assert_eq!(translations.pinned_use(at), Ok(()), "its frame stays");
            translations.freed(0);
            let breach = translations.pinned_use(at).expect_err("another frame");
            assert_eq!(breach.invariant, Some(expected));
        }
    }

    #[test]
    fn a_copy_is_forgotten_only_where_another_is_dropped() {
        for (other_dropped, expected) in [(false, Invariant::R1), (true, Invariant::R5)] {
            let mut translations = Translations::new(2);
            let at = [0, 1].map(|page| translations.fetched(page, Access::Read));
            translations.closed(PageRun::new(0, 2), Closing::Copies);
            if other_dropped {
                let _again = translations.fetched(0, Access::Read);
            }
            let breach = translations.access_began(at[1], Access::Read);
            assert_eq!(breach.expect_err("stale").invariant, Some(expected));
        }
    }

    #[test]
    fn an_access_is_judged_at_its_end_too() {
        let mut translations = Translations::new(1);
        let at = translations.fetched(0, Access::Read);
        let ticket = translations.access_began(at, Access::Read).expect("fresh");
        translations.closed(page(0), Closing::Alone);
        let breach = translations.access_ended(ticket).expect_err("too late");
        assert_eq!(breach.invariant, Some(Invariant::R2));
        let wrong = translations.fetched(0, Access::Read);
        let breach = translations.access_began(wrong, Access::Write);
        assert_eq!(
            breach.expect_err("read-only").invariant,
            Some(Invariant::R7)
        );
    }
}
