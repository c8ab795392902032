//! What is pinned in a memory cgroup, and by whom.

use super::Memcg;
use crate::mm_struct::{Mm, PinnedBy};
use std::sync::{Arc, Weak};

impl Memcg {
    /// Pins on pages of this memory cgroup and of all below it, also on those of an address space
    /// that was torn down since: they stay charged until they are let go. A page that is pinned
    /// twice counts twice. Allocates.
    pub fn nr_pins(&self) -> u64 {
        let mut nr_pins = 0;
        self.for_each_alive(&mut |mm| nr_pins += mm.nr_pins());
        nr_pins
    }

    /// Who has these pins by name, most pages first; holders of the same name in several address
    /// spaces are told of as one. The rest of [`Memcg::nr_pins`] is guards, and whoever else pins
    /// without a name. Allocates.
    pub fn pin_holders(&self) -> Vec<PinnedBy> {
        let mut holders: Vec<PinnedBy> = Vec::new();
        self.for_each_alive(&mut |mm| {
            for found in mm.pin_holders() {
                match holders
                    .iter_mut()
                    .find(|known| known.holder == found.holder)
                {
                    Some(known) => known.pages += found.pages,
                    None => holders.push(found),
                }
            }
        });
        PinnedBy::sort(&mut holders);
        holders
    }

    /// From now on `mm` is visited by [`for_each_alive`](Self::for_each_alive).
    pub(crate) fn note_born(&self, mm: &Arc<Mm>) {
        let mut born = self.born.write();
        if born.len() == born.capacity() {
            born.retain(|mm| mm.strong_count() > 0);
            // As much again, so that each of them is looked at a few times only.
            let nr_alive = born.len();
            born.reserve(nr_alive.max(4));
        }
        born.push(Arc::downgrade(mm));
    }

    /// Calls `visit` for each address space of this level and below that anybody has a share in:
    /// who has a pin has one in what it pins.
    pub(super) fn for_each_alive(&self, visit: &mut dyn FnMut(&Mm)) {
        // Copies: the last share in an address space, or in a child, may end here.
        let born = self.born.read().clone();
        born.iter()
            .filter_map(Weak::upgrade)
            .for_each(|mm| visit(&mm));
        let known = self.known.read().clone();
        for child in known.iter().filter_map(Weak::upgrade) {
            child.for_each_alive(visit);
        }
    }
}
