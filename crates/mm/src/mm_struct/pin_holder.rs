//! Who pins: names for pins, and how many pages each of them has.
//!
//! A holder counts for as long as it has a handle or a pin. Its count is part of what
//! [`Mm::nr_pins`] counts; what is left of that was pinned in nobody's name.

use super::Mm;
use crate::mmu_notifier::MmId;
use core::cmp::Reverse;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use lockdep::sync::RwLock;
use std::sync::{Arc, Weak};

/// In whose name pages of an address space are pinned; from [`Mm::pin_holder`]. Clones are the same
/// holder.
#[derive(Clone, Debug)]
pub struct PinHolder {
    counted: Arc<Counted>,
}

/// What the handles of a holder share.
#[derive(Debug)]
struct Counted {
    mm: MmId,
    name: Arc<str>,
    nr_pins: AtomicU64,
}

/// A holder, and how much it had at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinnedBy {
    /// Its name.
    pub holder: Arc<str>,
    /// Its pins, in pages; a page that it pinned twice counts twice.
    pub pages: u64,
}

impl PinnedBy {
    /// Brings holders into the order in which they are told of: most pages first, then by name.
    pub(crate) fn sort(holders: &mut [Self]) {
        holders.sort_by(|a, b| (Reverse(a.pages), &a.holder).cmp(&(Reverse(b.pages), &b.holder)));
    }
}

impl fmt::Display for PinnedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} pages)", self.holder, self.pages)
    }
}

impl PinHolder {
    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.counted.name
    }

    /// Its pins, in pages; a page that it pinned twice counts twice.
    pub fn nr_pins(&self) -> u64 {
        self.counted.nr_pins.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, nr_pages: u64) {
        self.counted.nr_pins.fetch_add(nr_pages, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, nr_pages: u64) {
        self.counted.nr_pins.fetch_sub(nr_pages, Ordering::Relaxed);
    }

    #[track_caller]
    pub(super) fn assert_of(&self, mm: MmId) {
        let (name, own) = (self.name(), self.counted.mm);
        assert!(own == mm, "{name} holds pins of another address space");
    }
}

/// The holders of an address space.
pub(super) struct PinHolders {
    /// Weak: who has neither a handle nor a pin is no holder any more.
    known: RwLock<Vec<Weak<Counted>>>,
}

impl PinHolders {
    pub(super) fn new() -> Self {
        Self {
            known: RwLock::new("mm.pin_holders", Vec::new()),
        }
    }
}

impl Mm {
    /// The holder of this name, in whose name pages can be pinned; see
    /// [`Vma::pin_for`](super::Vma::pin_for). A device gives the name that it subscribed under.
    /// Whoever asks for the same name, while there is a handle or a pin of it, gets the same
    /// holder.
    ///
    /// May allocate: ask once, when the device is attached, and keep the answer.
    pub fn pin_holder(&self, name: &str) -> PinHolder {
        let mut known = self.pin_holders.known.write();
        known.retain(|holder| holder.strong_count() > 0);
        let mut alive = known.iter().filter_map(Weak::upgrade);
        let found = alive.find(|counted| *counted.name == *name);
        let counted = found.unwrap_or_else(|| {
            let counted = Arc::new(Counted {
                mm: self.id(),
                name: Arc::from(name),
                nr_pins: AtomicU64::new(0),
            });
            known.push(Arc::downgrade(&counted));
            counted
        });
        PinHolder { counted }
    }

    /// Who has pins on its pages by name, most pages first. The rest of [`Mm::nr_pins`] is guards,
    /// and whoever else pins without a name.
    pub fn pin_holders(&self) -> Vec<PinnedBy> {
        let mut holders = Vec::new();
        self.visit_pin_holders(&self.pin_holders.known.read(), &mut |holder, pages| {
            let holder = Arc::clone(holder);
            holders.push(PinnedBy { holder, pages });
        });
        PinnedBy::sort(&mut holders);
        holders
    }

    /// Calls `visit` for each name that has pages, in no order; false when somebody is changing the
    /// list. Neither allocates nor waits.
    pub(crate) fn try_visit_pin_holders(&self, visit: &mut dyn FnMut(&Arc<str>, u64)) -> bool {
        let known = self.pin_holders.known.try_read();
        known
            .map(|known| self.visit_pin_holders(&known, visit))
            .is_some()
    }

    fn visit_pin_holders(&self, known: &[Weak<Counted>], visit: &mut dyn FnMut(&Arc<str>, u64)) {
        for counted in known.iter().filter_map(Weak::upgrade) {
            let pages = counted.nr_pins.load(Ordering::Relaxed);
            if pages > 0 {
                visit(&counted.name, pages);
            }
        }
    }
}
