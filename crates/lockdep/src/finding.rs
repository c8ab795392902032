//! What the rules find, as numbers: no text is made, and nothing allocated, where it is found.
//!
//! A finding is a few KiB, with all orders of a cycle and all that its thread holds. Locks are
//! taken on small stacks too, such as that of a signal handler, so findings lie in boxes that are
//! made at the start, and only these are handed around.

use crate::core::{Use, step_of};
use crate::graph::{Hop, NR_GATES, Step};
use crate::report::Kind;
use crate::sync::raw::RawLock;
use crate::task::Held;
use crate::word::ClassId;

/// How many steps of a cycle a report shows.
pub(crate) const NR_HOPS_MAX: usize = 24;
/// How many held locks a report shows.
const NR_HELD_MAX: usize = 24;

/// How many findings there can be at one time: those that wait, and those of threads at work.
const NR_BOXES: usize = 48;

/// Boxes that nobody uses.
#[expect(clippy::vec_box, reason = "the boxes themselves are handed out")]
static SPARE: RawLock<Vec<Box<Finding>>> = RawLock::new(Vec::new());

/// Makes the boxes, so that later calls do not allocate.
pub(crate) fn start() {
    let mut spare = SPARE.lock();
    if spare.capacity() == 0 {
        spare.reserve_exact(NR_BOXES);
        spare.resize_with(NR_BOXES, || Box::new(Finding::EMPTY));
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    /// What was about to happen.
    pub(crate) act: Step,
    pub(crate) thread: u32,
    /// What it is in conflict with, if that is held by the same thread.
    pub(crate) against: Option<Step>,
    hops: [Option<HopSeen>; NR_HOPS_MAX],
    pub(crate) nr_hops: usize,
    /// For usage: taken in a level, and held where that level can come.
    pub(crate) uses: [Option<Use>; 2],
    held: [Option<Step>; NR_HELD_MAX],
    nr_held: usize,
    /// Whether the cycle has two orders that a common lock or time keeps apart.
    pub(crate) apart: Option<Apart>,
    /// What else there is to say.
    pub(crate) note: &'static str,
}

/// An order of a cycle, how often it was seen, and the classes that were held beside it.
pub(crate) type HopSeen = (Hop, u32, [u32; NR_GATES]);

/// Why two orders of a cycle cannot meet, as far as was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Apart {
    /// Both were always seen under a lock of this class, held alone.
    Gate(ClassId),
    /// Readers meet readers of this class, and nobody was seen to write.
    Readers(ClassId),
    /// One thread was seen to wait for an event, and at another time to end the wait.
    OneThread(ClassId),
    /// Each waits before it ends the next one's wait, and all these waits were seen to end: the
    /// sides of the same objects would have locked up in every run.
    Turns,
    /// The thread of the one had ended before that of the other was first seen.
    Time,
}

impl Finding {
    const EMPTY: Self = Self {
        kind: Kind::Limit,
        act: Step::NOBODY,
        thread: 0,
        against: None,
        hops: [None; NR_HOPS_MAX],
        nr_hops: 0,
        uses: [None; 2],
        held: [None; NR_HELD_MAX],
        nr_held: 0,
        apart: None,
        note: "",
    };

    /// Begins anew, in place. What lies beyond the counts is of an earlier finding.
    fn begin(&mut self, kind: Kind, act: Step, thread: u32) {
        self.kind = kind;
        self.act = act;
        self.thread = thread;
        self.against = None;
        self.nr_hops = 0;
        self.uses = [None; 2];
        self.nr_held = 0;
        self.apart = None;
        self.note = "";
    }

    pub(crate) fn hops(&self) -> impl Iterator<Item = HopSeen> + '_ {
        self.hops.iter().take(self.nr_hops).flatten().copied()
    }

    /// What the thread held, the last taken first.
    pub(crate) fn held(&self) -> impl Iterator<Item = Step> + '_ {
        self.held.iter().take(self.nr_held).flatten().copied()
    }
}

/// A finding that is being made, or is handed on; empty where there was no box left for it.
#[derive(Debug)]
pub(crate) struct Draft(Option<Box<Finding>>);

impl Draft {
    /// What `thread`, which holds what is on `stack`, was about to do.
    pub(crate) fn new(kind: Kind, act: Step, thread: u32, stack: &[Held]) -> Self {
        let mut spare = SPARE.lock().pop();
        if let Some(finding) = &mut spare {
            finding.begin(kind, act, thread);
            finding.nr_held = stack.len();
            for (slot, held) in finding.held.iter_mut().zip(stack.iter().rev()) {
                *slot = Some(step_of(held));
            }
        }
        Self(spare)
    }

    pub(crate) fn get(&self) -> Option<&Finding> {
        self.0.as_deref()
    }

    fn with(mut self, change: impl FnOnce(&mut Finding)) -> Self {
        if let Some(finding) = &mut self.0 {
            change(finding);
        }
        self
    }

    pub(crate) fn act(self, act: Step) -> Self {
        self.with(|finding| finding.act = act)
    }

    pub(crate) fn against(self, against: Option<Step>) -> Self {
        self.with(|finding| finding.against = against)
    }

    pub(crate) fn uses(self, uses: [Option<Use>; 2]) -> Self {
        self.with(|finding| finding.uses = uses)
    }

    pub(crate) fn apart(self, apart: Option<Apart>) -> Self {
        self.with(|finding| finding.apart = apart)
    }

    pub(crate) fn note(self, note: &'static str) -> Self {
        self.with(|finding| finding.note = note)
    }

    /// Adds an order that is part of the conflict; beyond the room there is, it is only counted.
    pub(crate) fn hop(self, hop: HopSeen) -> Self {
        self.with(|finding| {
            if let Some(slot) = finding.hops.get_mut(finding.nr_hops) {
                *slot = Some(hop);
            }
            finding.nr_hops += 1;
        })
    }

    /// Whether nothing is known that speaks against it.
    pub(crate) fn is_likely(&self) -> bool {
        self.get().is_some_and(|finding| finding.apart.is_none())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(finding) = self.0.take() {
            SPARE.lock().push(finding);
        }
    }
}

/// Findings of one event; of more than fit, those that are unlikely are dropped first.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    found: [Option<Draft>; 2],
}

impl Findings {
    pub(crate) fn add(&mut self, draft: Draft) {
        if draft.get().is_none() {
            return;
        }
        let free = self.found.iter().position(Option::is_none);
        let is_doubtful = |slot: &Option<Draft>| slot.as_ref().is_some_and(|f| !f.is_likely());
        let room = || self.found.iter().position(is_doubtful);
        let place = free.or_else(|| room().filter(|_| draft.is_likely()));
        if let Some(place) = place {
            self.found[place] = Some(draft);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found[0].is_none()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.found.iter().flatten().filter_map(Draft::get)
    }

    /// What the first of them is, in a line.
    pub(crate) fn headline(&self) -> &'static str {
        self.iter()
            .next()
            .map_or("", |finding| finding.kind.headline())
    }
}
