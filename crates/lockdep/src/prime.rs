//! Orders stated in advance: data that primes the validator.
//!
//! A primed order closes cycles like one that was seen, but reports say that it was declared. When
//! it is seen later, it counts as seen.

use crate::check::Check;
use crate::core::declared;
use crate::graph::{NR_GATES, Place, Provenance};
use crate::registry::{self, Attributes, KeyName};
use crate::task::Site;
use crate::validator::{Inner, Validator};
use crate::word::{ClassId, Context, Mode, Word};

/// States that locks of the class `taken` may be taken while one of `held` is held.
///
/// Found cycles are reported as the order is stated.
pub fn order((held, held_as): (ClassId, Mode), (taken, taken_as): (ClassId, Mode)) {
    crate::event::work(|inner, task, findings| {
        let word = |class, mode| Word::new(class, mode, 0, Context::default());
        let place = declared(word(held, held_as), word(taken, taken_as));
        let mut core = inner.lock_core();
        let thread = Inner::thread(task, &mut core);
        core.stack.clear();
        Check {
            core: &mut core,
            new: place.taken,
            thread,
            findings,
        }
        .record(place, [0; NR_GATES]);
    });
}

/// The class of a name wherever it is built, for orders of classes that are known by name.
///
/// Locks of this name that are used for the first time after this are of this class.
pub fn named(name: &'static str, attributes: Attributes) -> ClassId {
    let key = KeyName::Static(name);
    registry::find(&key)
        .unwrap_or_else(|| registry::register(key, registry::Name::Static(name), &attributes))
}

/// All classes of this plain name that were met so far.
#[must_use]
pub fn classes_named(name: &str) -> Vec<ClassId> {
    registry::find_named(name)
}

/// An order that the validator knows, by plain names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownOrder {
    /// What was held.
    pub held: String,
    /// What was taken under it.
    pub taken: String,
    /// How it is known: the best of its kinds.
    pub provenance: Provenance,
    /// In how many situations it was seen.
    pub nr_seen: u32,
    /// Where the one was held, and where the other was taken, as seen first.
    pub at: [Site; 2],
}

/// An order as it lies under the lock, without text.
type RawOrder = (ClassId, ClassId, Option<Place>, u32);

impl Validator {
    /// All orders that the validator knows, for comparing with a list and for pictures.
    #[must_use]
    pub fn orders(&self) -> Vec<KnownOrder> {
        // Room is made without the lock: an allocator may wait for the validator.
        let mut raw: Vec<RawOrder> = Vec::new();
        loop {
            let is_complete = self.unwatched(|inner| {
                let core = inner.lock_core();
                raw.clear();
                let mut live = core.graph.live();
                let room = raw.capacity();
                raw.extend(live.by_ref().take(room).map(|(_, edge)| {
                    let places = core.graph.places(edge);
                    let best = places.max_by_key(|place| place.provenance == Provenance::Observed);
                    (edge.from, edge.to, best.copied(), edge.nr_seen)
                }));
                live.next().is_none()
            });
            if is_complete {
                break;
            }
            let room = raw.capacity().max(64) * 2;
            raw.clear();
            raw.reserve(room);
        }
        let known = |(held, taken, place, nr_seen): RawOrder| KnownOrder {
            held: registry::display_name(held),
            taken: registry::display_name(taken),
            provenance: place.map_or(Provenance::Declared, |place| place.provenance),
            nr_seen,
            at: place.map_or([Site::Unknown; 2], |p| [p.held.site, p.taken.site]),
        };
        raw.into_iter().map(known).collect()
    }

    /// How much the validator has seen.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.unwatched(|inner| {
            let core = inner.lock_core();
            Stats {
                nr_orders: core.graph.nr_edges(),
                nr_chains: inner.nr_chains(),
                nr_misses: core.nr_misses,
                nr_threads: core.threads.len(),
            }
        })
    }
}

/// Counts of what a validator knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Pairs of classes with an order.
    pub nr_orders: usize,
    /// Different stacks of locks, since chains were last forgotten.
    pub nr_chains: u32,
    /// Acquisitions that no table knew, and that the rules were applied to.
    pub nr_misses: u64,
    /// Threads that did something for the first time.
    pub nr_threads: usize,
}
