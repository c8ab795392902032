//! G11: a pinned page keeps its frame, and pins balance.

use super::Breach;
use crate::conformance::Invariant;
use std::collections::BTreeMap;

/// Names one pin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PinId(u64);

/// The pins of one mapping.
#[derive(Debug, Default)]
pub struct Pins {
    next: u64,
    /// The frames under each pin: page, and generation of its frame.
    live: BTreeMap<PinId, Vec<(u32, u32)>>,
}

impl Pins {
    /// No pin.
    pub fn new() -> Self {
        Self::default()
    }

    /// Frames were pinned: pages, each with the generation of its frame.
    pub fn pinned(&mut self, frames: Vec<(u32, u32)>) -> PinId {
        let id = PinId(self.next);
        self.next += 1;
        self.live.insert(id, frames);
        id
    }

    /// A pin was let go of: its frames.
    ///
    /// # Errors
    ///
    /// [`Breach`] if it was let go of before.
    pub fn unpinned(&mut self, pin: PinId) -> Result<Vec<(u32, u32)>, Breach> {
        let gone = || Breach::of(Invariant::R8, format!("{pin:?} was let go of twice"));
        self.live.remove(&pin).ok_or_else(gone)
    }

    /// Whether the frame of this generation is pinned.
    pub fn is_pinned(&self, page: u32, generation: u32) -> bool {
        let mut all = self.live.values().flatten();
        all.any(|&frame| frame == (page, generation))
    }

    /// Frames that are pinned, each counted once for each pin.
    pub fn nr(&self) -> usize {
        self.live.values().map(Vec::len).sum()
    }

    /// The page was moved, or its frame was given to somebody else, by whoever may not do that.
    ///
    /// # Errors
    ///
    /// [`Breach`] if the frame is pinned.
    pub fn moved(&self, page: u32, generation: u32) -> Result<(), Breach> {
        if self.is_pinned(page, generation) {
            return Err(Breach::against(
                "G11",
                format!("page {page} moved while it was pinned"),
            ));
        }
        Ok(())
    }

    /// Nobody uses the mapping any more.
    ///
    /// # Errors
    ///
    /// [`Breach`] if a pin is left.
    pub fn finish(&self) -> Result<(), Breach> {
        let Some((_, frames)) = self.live.first_key_value() else {
            return Ok(());
        };
        let (nr, first) = (self.nr(), frames.first().map_or(0, |frame| frame.0));
        let what = format!("{nr} pages are still pinned at the end, page {first} is one");
        Err(Breach::of(Invariant::R8, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_balance_and_hold() {
        let mut pins = Pins::new();
        let pin = pins.pinned(vec![(3, 1), (4, 1)]);
        assert!(pins.is_pinned(3, 1) && !pins.is_pinned(3, 2));
        assert_eq!(pins.moved(3, 1).expect_err("pinned").guarantee, "G11");
        pins.moved(3, 2).expect("another frame");
        let leak = pins.finish().expect_err("one is left");
        assert_eq!(leak.invariant, Some(Invariant::R8));
        assert_eq!(pins.unpinned(pin), Ok(vec![(3, 1), (4, 1)]));
        pins.finish().expect("none is left");
        assert!(pins.unpinned(pin).is_err(), "twice");
    }
}
