//! G10, G13, G16: what is read is what was last written, or an error.
//!
//! An access has a beginning and an end, and takes effect somewhere between. So a byte may be what
//! it was at any moment of a read, and two values are possible while a write is under way. A page
//! that is lost, or gone, must not be read at all.

use super::Breach;
use crate::conformance::Invariant;
use std::collections::BTreeMap;

/// The contents of one mapping, as far as they are known: by page and byte.
#[derive(Debug, Default)]
pub struct Contents {
    cells: BTreeMap<(u32, usize), Cell>,
    /// When the contents of a page went the last time.
    discards: BTreeMap<u32, u64>,
    /// Pages that can only be read with an error from some moment on.
    gone: BTreeMap<u32, (u64, Known)>,
}

#[derive(Debug, Default)]
struct Cell {
    /// Values, each with the time in which it was there.
    values: Vec<Value>,
    last_discard: u64,
}

#[derive(Clone, Copy, Debug)]
struct Value {
    value: u8,
    from: u64,
    until: u64,
}

/// When an access began and ended, in any unit that rises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Before its effect.
    pub from: u64,
    /// After it.
    pub to: u64,
}

/// What a read found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The page.
    pub page: u32,
    /// The byte of it.
    pub byte: usize,
    /// Its value.
    pub value: u8,
}

/// What is known of a page that must not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// Its contents were lost by the store.
    Lost,
    /// It was unmapped, or its address space was killed.
    Gone,
}

impl Contents {
    /// Every byte is zero.
    pub fn new() -> Self {
        Self::default()
    }

    fn cell(&mut self, page: u32, byte: usize) -> &mut Cell {
        let last_discard = self.discards.get(&page).copied().unwrap_or(0);
        self.cells.entry((page, byte)).or_insert_with(|| Cell {
            values: vec![Value {
                value: 0,
                from: 0,
                until: u64::MAX,
            }],
            last_discard,
        })
    }

    /// A byte was written. A discard that came meanwhile may have taken it away again.
    pub fn wrote(&mut self, written: Found, span: Span) {
        let cell = self.cell(written.page, written.byte);
        if cell.last_discard < span.from {
            for value in &mut cell.values {
                value.until = value.until.min(span.to);
            }
        }
        cell.values.push(Value {
            value: written.value,
            from: span.from,
            until: u64::MAX,
        });
    }

    /// The contents of the page went at this moment: every byte is zero.
    pub fn discarded(&mut self, page: u32, at: u64) {
        self.discards.insert(page, at);
        let bytes: Vec<usize> = self
            .cells
            .keys()
            .filter(|key| key.0 == page)
            .map(|key| key.1)
            .collect();
        for byte in bytes {
            let cell = self.cell(page, byte);
            cell.last_discard = at;
            for value in &mut cell.values {
                value.until = value.until.min(at);
            }
            cell.values.push(Value {
                value: 0,
                from: at,
                until: u64::MAX,
            });
        }
    }

    /// From this moment on the page can only be read with an error.
    pub fn gone(&mut self, page: u32, at: u64, known: Known) {
        self.gone.entry(page).or_insert((at, known));
    }

    /// A byte was read.
    ///
    /// # Errors
    ///
    /// [`Breach`] if it was never that during the read.
    pub fn read(&mut self, found: Found, span: Span) -> Result<(), Breach> {
        let Found { page, byte, value } = found;
        match self.gone.get(&page) {
            Some(&(at, Known::Lost)) if at <= span.from => {
                let what = format!("page {page} was read after its contents were lost");
                return Err(Breach::against("G13", what));
            }
            Some(&(at, Known::Gone)) if at <= span.from => {
                let what = format!("page {page} was read after it had gone");
                return Err(Breach::against("G16", what));
            }
            _ => {}
        }
        let cell = self.cell(page, byte);
        let was = |one: &&Value| one.from <= span.to && one.until >= span.from;
        let possible: Vec<u8> = cell
            .values
            .iter()
            .filter(was)
            .map(|one| one.value)
            .collect();
        if possible.contains(&value) {
            return Ok(());
        }
        let last_write = cell
            .values
            .iter()
            .rev()
            .find(|one| one.from != cell.last_discard);
        let is_lost = last_write.is_some_and(|one| one.from > cell.last_discard);
        let (invariant, why) = match is_lost {
            true => (Invariant::R7, "a write was lost"),
            false => (
                Invariant::R6,
                "what was there before a change was seen after it",
            ),
        };
        let what = format!("byte {byte} of page {page} is {value}, could be {possible:?}: {why}");
        Err(Breach::of(invariant, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(value: u8) -> Found {
        Found {
            page: 1,
            byte: 0,
            value,
        }
    }

    const fn span(from: u64, to: u64) -> Span {
        Span { from, to }
    }

    #[test]
    fn what_is_read_was_there() {
        let mut contents = Contents::new();
        contents.read(at(0), span(1, 2)).expect("zero at first");
        contents.wrote(at(5), span(10, 20));
        contents.read(at(0), span(9, 12)).expect("perhaps not yet");
        contents.read(at(5), span(11, 12)).expect("perhaps already");
        contents.read(at(5), span(21, 22)).expect("the last");
        let lost = contents
            .read(at(0), span(21, 22))
            .expect_err("it was written");
        assert_eq!(lost.invariant, Some(Invariant::R7));
        contents.discarded(1, 30);
        contents.read(at(5), span(29, 31)).expect("perhaps before");
        let old = contents
            .read(at(5), span(31, 32))
            .expect_err("it was discarded");
        assert_eq!(old.invariant, Some(Invariant::R6));
    }

    #[test]
    fn a_discard_beside_a_write_may_win_or_lose() {
        let mut contents = Contents::new();
        contents.discarded(1, 15);
        contents.wrote(at(5), span(10, 20));
        contents
            .read(at(0), span(21, 22))
            .expect("the discard came last");
        contents
            .read(at(5), span(21, 22))
            .expect("the write came last");
    }

    #[test]
    fn nothing_is_read_of_what_is_gone() {
        for (known, guarantee) in [(Known::Lost, "G13"), (Known::Gone, "G16")] {
            let mut contents = Contents::new();
            contents.gone(1, 10, known);
            contents.read(at(0), span(9, 11)).expect("perhaps before");
            let breach = contents.read(at(0), span(11, 12)).expect_err("gone");
            assert_eq!(breach.guarantee, guarantee);
        }
    }
}
