//! The rules, applied when a chain is met for the first time.
//!
//! Everything here depends only on the chain: classes, modes, flags and contexts. What depends on
//! instances (nest locks, orders of instances) is looked at on every acquisition, in [`instance`].
//!
//! Linux counterpart: validate_chain() and mark_usage() in kernel/locking/lockdep.c.

use crate::core::{Core, Thread, Use, step_of};
use crate::finding::{Apart, Draft, Finding, Findings, HopSeen};
use crate::graph::{
    Direction, Hop, Kinds, NR_GATES, Place, Provenance, Recorded, State, Step, Walk,
};
use crate::registry::{self, Attributes, Checking, LockType, WaitType};
use crate::report::Kind;
use crate::task::Held;
use crate::testing::Inject;
use crate::usage::{Usage, UsageBit};
use crate::validator::Validator;
use crate::word::{ClassId, Context, Word};

/// An acquisition that is looked at: `core.stack` has what the thread holds below it.
pub(crate) struct Check<'a> {
    pub(crate) core: &'a mut Core,
    pub(crate) new: Step,
    pub(crate) thread: u32,
    pub(crate) findings: &'a mut Findings,
}

const HAS_WRITER: u8 = 1;
const AWAITS_WRITER: u8 = 2;

/// Whether a lock of the stack has recorded its own orders.
///
/// One that was tolerated under a nest lock beside its own class has not.
fn records_orders(stack: &[Held], at: usize) -> bool {
    let word = stack[at].word;
    let is_beside_own = |held: &Held| held.word.class() == word.class();
    !(word.has(Word::NESTED) && stack[..at].iter().any(is_beside_own))
}

impl Check<'_> {
    /// Applies all rules; what is found goes into the findings.
    pub(crate) fn run(&mut self) {
        self.check_wait_type();
        let checking = registry::attributes(self.new.word.class()).checking;
        if self.new.word.has(Word::UNCHECKED) || checking != Checking::Full {
            return;
        }
        self.mark_writer();
        let usage = Usage::of_acquire(self.new.word);
        let step = self.new;
        usage.bits().for_each(|bit| self.mark(step, bit));
        if !self.new.word.has(Word::TRY) {
            self.check_orders();
        }
    }

    fn finding(&self, kind: Kind) -> Draft {
        Draft::new(kind, self.new, self.thread, &self.core.stack)
    }

    /// Whether a lock that waits like this may be taken here.
    fn check_wait_type(&mut self) {
        let word = self.new.word;
        let attributes = registry::attributes(word.class());
        let outer = attributes.outer;
        if word.has(Word::TRY) || outer == WaitType::Unchecked {
            return;
        }
        let mut limit = context_limit(word.context());
        let mut by = None;
        for held in &self.core.stack {
            if held.word.context().level() != word.context().level() {
                continue;
            }
            let Attributes {
                inner, lock_type, ..
            } = registry::attributes(held.word.class());
            let overrides = lock_type == LockType::WaitOverride;
            if inner != WaitType::Unchecked && (inner < limit || overrides) {
                limit = inner;
                by = Some(step_of(held));
            }
        }
        if outer > limit {
            let finding = self.finding(Kind::WaitContext);
            self.findings.add(finding.against(by));
        }
    }

    /// Sets a usage bit and looks for what contradicts it.
    pub(crate) fn mark(&mut self, step: Step, bit: UsageBit) {
        let class = step.word.class();
        let used = Use { class, bit, step };
        if !self.core.mark(used) {
            return;
        }
        let opposites = bit.opposites();
        let same = self.core.usage(class);
        if let Some(other) = same.bits().find(|&other| opposites.has(other)) {
            let finding = self.finding(Kind::InconsistentUsage).act(step);
            let uses = [Some(used), self.core.find_use(class, other)];
            self.findings.add(finding.uses(uses));
            return;
        }
        let opposites = bit.opposites_afar();
        if self.core.usage_any.meets(opposites) {
            self.check_inversion(used, opposites);
        }
    }

    /// Looks along the orders for a class whose use contradicts a new use.
    fn check_inversion(&mut self, used: Use, opposites: Usage) {
        let mode = used.step.word.mode();
        let (direction, is_restricted) = if used.bit.is_enabled {
            (Direction::Backward, mode.is_read())
        } else {
            (Direction::Forward, used.step.word.is_recursive())
        };
        let start = State {
            class: used.class,
            is_restricted,
        };
        // The class itself was looked at before.
        let Some(end) = self.find_use(start, direction, opposites, Some(used.class)) else {
            return;
        };
        self.core.graph.path(end, direction, &mut self.core.hops);
        let seen = self.core.usage(end.class).seen_from(end.is_restricted);
        let other = seen.bits().find(|&bit| opposites.has(bit));
        let finding = self.finding(Kind::IrqInversion).act(used.step);
        let other = other.and_then(|bit| self.core.find_use(end.class, bit));
        let finding = self.add_path(finding, &self.core.hops);
        self.findings.add(finding.uses([Some(used), other]));
    }

    /// A class along strong paths that was used in one of these ways, other than `but`.
    fn find_use(
        &mut self,
        start: State,
        direction: Direction,
        wanted: Usage,
        but: Option<ClassId>,
    ) -> Option<State> {
        let Core { graph, usage, .. } = &mut *self.core;
        let walk = Walk {
            direction,
            skips: skips_usage,
            only_reads: |_| false,
        };
        graph.find_strong(start, walk, |state| {
            but != Some(state.class)
                && Usage::from_raw(usage[state.class.index() as usize])
                    .seen_from(state.is_restricted)
                    .meets(wanted)
        })
    }

    fn add_path(&self, finding: Draft, path: &[Hop]) -> Draft {
        path.iter().fold(finding, |finding, &hop| {
            let edge = self.core.graph.edge(hop.edge);
            finding.hop((hop, edge.nr_seen, edge.gates))
        })
    }

    /// The same class again, and the orders from what is held.
    fn check_orders(&mut self) {
        let new = self.new.word;
        let same = |held: &&Held| held.word.class() == new.class();
        if let Some(held) = self.core.stack.iter().find(same).copied() {
            if self.is_recursion(&held) {
                let finding = self.finding(Kind::Recursive);
                self.findings.add(finding.against(Some(step_of(&held))));
                return;
            }
            if new.has(Word::NESTED) && !self.core.is_strict {
                return;
            }
        }
        for at in (0..self.core.stack.len()).rev() {
            let held = self.core.stack[at];
            if held.word.context().level() != new.context().level() {
                break;
            }
            if !is_checked(&held) {
                continue;
            }
            let is_missed = self.core.injected == Inject::MissReaders && held.word.mode().is_read();
            if held.word.class() != new.class() && !is_missed {
                self.add_order(at);
            }
            let is_complete = records_orders(&self.core.stack, at);
            // What is below a reader may have no strong path through it, if it is recursive or if
            // nobody writes; what is below one that was tried, or tolerated, has no order to it.
            if is_complete && !held.word.has(Word::TRY) && !held.word.mode().is_read() {
                break;
            }
        }
    }

    /// Whether a held lock of the class of the new one means a deadlock, as far as classes say.
    fn is_recursion(&self, first: &Held) -> bool {
        let new = self.new.word;
        let same = |held: &&Held| held.word.class() == new.class();
        let all_read = || {
            self.core
                .stack
                .iter()
                .filter(same)
                .all(|h| h.word.mode().is_read())
        };
        let is_ordered = || registry::attributes(new.class()).order.is_some();
        // Both are decided by instances, in `instance`.
        !(new.has(Word::NESTED) || is_ordered())
            && is_checked(first)
            && !(new.is_recursive() && all_read())
    }

    /// Records one order, and looks whether it closes a cycle.
    fn add_order(&mut self, at: usize) {
        let held = self.core.stack[at];
        let place = Place {
            held: step_of(&held),
            taken: self.new,
            thread: self.thread,
            provenance: Provenance::Observed,
        };
        let gates = self.gates(at);
        self.record(place, gates);
    }

    /// Records an order from any source; findings if it is new and closes a cycle.
    pub(crate) fn record(&mut self, place: Place, gates: [u32; NR_GATES]) {
        let (held, taken) = (place.held.word, place.taken.word);
        let kinds = Kinds::of(held.mode(), taken.mode());
        if self.core.graph.has(held.class(), taken.class(), kinds) {
            // A cycle that was unlikely may be so no longer.
            if self.core.graph.record(place, gates) == Recorded::Loosened && self.core.has_doubts {
                self.check_cycle(place, gates);
            }
            return;
        }
        self.check_cycle(place, gates);
        self.check_levels(place);
        if self.core.graph.record(place, gates) == Recorded::Full {
            let finding = self.finding(Kind::Limit);
            self.findings.add(finding.note("orders"));
        }
    }

    /// Classes held alone beside the pair: whoever holds them too cannot run this at the same time.
    fn gates(&self, at: usize) -> [u32; NR_GATES] {
        let mut gates = [0; NR_GATES];
        let others = self.core.stack.iter().enumerate();
        let alone = others
            .filter(|&(other, held)| other != at && !held.word.mode().is_read())
            .filter(|(_, held)| is_checked(held) && !is_map(held.word.class()));
        for (slot, (_, held)) in gates.iter_mut().zip(alone) {
            *slot = held.word.class().index();
        }
        gates
    }

    /// Looks whether an order closes a cycle.
    pub(crate) fn check_cycle(&mut self, place: Place, gates: [u32; NR_GATES]) {
        let (held, taken) = (place.held.word, place.taken.word);
        let graph = &mut self.core.graph;
        if !graph.may_reach(taken.class(), held.class()) {
            return;
        }
        // A cycle that needs no writer nobody has seen goes before one that does.
        let Some(end) = self
            .find_way_back(place, true)
            .or_else(|| self.find_way_back(place, false))
        else {
            return;
        };
        let graph = &self.core.graph;
        graph.path(end, Direction::Forward, &mut self.core.hops);
        let mut finding = self.cycle(place, gates, &self.core.hops);
        if !finding.is_likely() {
            // The shortest is unlikely: there may be a longer one that is not.
            finding = self.find_likely(place, gates).unwrap_or(finding);
        }
        if let Some(found) = finding.get() {
            self.note_doubts(found);
        }
        self.findings.add(finding);
    }

    /// Remembers what may refute what speaks against a cycle.
    fn note_doubts(&mut self, finding: &Finding) {
        if let Some(Apart::Readers(class)) = finding.apart {
            self.core.writers[class.index() as usize] |= AWAITS_WRITER;
        }
        self.core.has_doubts |= finding.apart.is_some()
            || finding.hops().any(|(hop, ..)| {
                let Place { held, taken, .. } = hop.place;
                let is_timed = held.word.has(Word::TIMED) || taken.word.has(Word::TIMED);
                is_timed || hop.place.provenance != Provenance::Observed
            });
    }

    /// The cycle of a path and the order that closes it, with what speaks against it.
    fn cycle(&self, place: Place, gates: [u32; NR_GATES], path: &[Hop]) -> Draft {
        let finding = self.finding(Kind::Circular);
        let finding = finding.act(place.taken).against(Some(place.held));
        let finding = self.add_path(finding, path);
        let finding = finding.hop((Hop { edge: 0, place }, 1, gates));
        let apart = finding.get().and_then(|found| {
            let readers = self.without_writer(found).map(Apart::Readers);
            readers.or_else(|| self.apart(found))
        });
        finding.apart(apart)
    }

    /// A cycle that nothing speaks against, if one is found in a few steps.
    fn find_likely(&mut self, place: Place, gates: [u32; NR_GATES]) -> Option<Draft> {
        let (held, taken) = (place.held.word, place.taken.word);
        let start = State {
            class: taken.class(),
            is_restricted: taken.is_recursive(),
        };
        let closes = |state: State| !(held.mode().is_read() && state.is_restricted);
        let mut hops = std::mem::take(&mut self.core.hops);
        let mut trail = std::mem::take(&mut self.core.trail);
        let mut found = None;
        let accepts = |path: &[Hop]| {
            let finding = self.cycle(place, gates, path);
            found = Some(finding).filter(Draft::is_likely);
            found.is_some()
        };
        let end = (held.class(), closes);
        let scratch = (&mut hops, &mut trail);
        self.core.graph.try_paths(start, end, scratch, accepts);
        self.core.hops = hops;
        self.core.trail = trail;
        found
    }

    /// A strong path from what is taken to what is held; `by_seen_writers` takes classes of which
    /// nobody was seen to write at their word.
    fn find_way_back(&mut self, place: Place, by_seen_writers: bool) -> Option<State> {
        let (held, taken) = (place.held.word, place.taken.word);
        let Core { graph, writers, .. } = &mut *self.core;
        let only_reads =
            |class: ClassId| by_seen_writers && writers[class.index() as usize] & HAS_WRITER == 0;
        let taken_reads = taken.mode().is_read() && only_reads(taken.class());
        let start = State {
            class: taken.class(),
            is_restricted: taken.is_recursive() || taken_reads,
        };
        let closes = |state: State| {
            state.class == held.class() && !(held.mode().is_read() && state.is_restricted)
        };
        let walk = Walk {
            direction: Direction::Forward,
            skips: |_| false,
            only_reads,
        };
        graph.find_strong(start, walk, closes)
    }

    /// The first writer of a class makes readers block each other: cycles are looked at again.
    fn mark_writer(&mut self) {
        let class = self.new.word.class();
        let seen = &mut self.core.writers[class.index() as usize];
        if self.new.word.mode().is_read() || *seen & HAS_WRITER != 0 {
            return;
        }
        let is_awaited = *seen & AWAITS_WRITER != 0;
        *seen = HAS_WRITER;
        if is_awaited {
            let mut number = 0;
            while let Some((place, gates)) = self.core.graph.next_read(class, &mut number) {
                self.check_cycle(place, gates);
            }
        }
    }

    /// A class whose readers wait for each other in this cycle, though nobody was seen to write.
    fn without_writer(&self, finding: &Finding) -> Option<ClassId> {
        let hops = || finding.hops().map(|(hop, ..)| hop.place);
        let next = hops().skip(1).chain(hops());
        let mut meetings = hops().zip(next).filter(|(one, next)| {
            let (taken, held) = (one.taken.word, next.held.word);
            taken.mode().is_read() && held.mode().is_read()
        });
        let class = meetings.find_map(|(one, _)| {
            let class = one.taken.word.class();
            (self.core.writers[class.index() as usize] & HAS_WRITER == 0).then_some(class)
        });
        class.filter(|_| finding.nr_hops == hops().count())
    }

    /// Whether the orders of a cycle were never seen to be possible at one time.
    ///
    /// By a gate only if all of them have it: neighbours may be the work of one thread, which its
    /// own locks do not keep out.
    fn apart(&self, finding: &Finding) -> Option<Apart> {
        // Who ends a wait is not kept out by what the waiter holds: it never gets there.
        let infers = |(hop, ..): HopSeen| hop.place.provenance == Provenance::Inferred;
        if finding.nr_hops > finding.hops().count() {
            return None;
        }
        let waits = |(hop, ..): HopSeen| hop.place.taken.word.has(Word::WAIT);
        if finding.hops().all(|hop| infers(hop) && waits(hop)) {
            return Some(Apart::Turns);
        }
        if finding.hops().any(infers) {
            return self.one_thread(finding).map(Apart::OneThread);
        }
        let (_, _, gates) = finding.hops().next()?;
        let is_common = |gate: &u32| finding.hops().all(|(_, _, others)| others.contains(gate));
        if let Some(gate) = gates.into_iter().filter(|&gate| gate != 0).find(is_common) {
            return Some(Apart::Gate(ClassId::from_index(gate)));
        }
        let one_thread = |hop: &Hop| hop.edge == 0 || !self.core.graph.edge(hop.edge).is_common;
        let hops = || finding.hops().map(|(hop, ..)| hop).filter(one_thread);
        let never_met =
            |one: Hop| hops().any(|other| self.never_met(one.place.thread, other.place.thread));
        hops().any(never_met).then_some(Apart::Time)
    }

    /// An event for which only the thread was seen to wait that ended the wait another time.
    fn one_thread(&self, finding: &Finding) -> Option<ClassId> {
        let hops = || finding.hops().map(|(hop, ..)| hop);
        let is_common = |hop: &Hop| hop.edge != 0 && self.core.graph.edge(hop.edge).is_common;
        let next = hops().skip(1).chain(hops());
        let mut meetings = hops().zip(next).filter(|(wait, end)| {
            wait.place.taken.word.has(Word::WAIT)
                && end.place.provenance == Provenance::Inferred
                && !end.place.held.word.has(Word::WAIT)
        });
        let alone = meetings.find(|(wait, end)| {
            let thread = self.core.thread(wait.place.thread);
            // Tasks of one name are not one.
            wait.place.thread == end.place.thread
                && !thread.is_some_and(Thread::is_task)
                && !is_common(wait)
                && !is_common(end)
        });
        alone.map(|(wait, _)| wait.place.taken.word.class())
    }

    fn never_met(&self, one: u32, other: u32) -> bool {
        let (Some(one), Some(other)) = (self.core.thread(one), self.core.thread(other)) else {
            return false;
        };
        one.ended < other.began || other.ended < one.began
    }

    /// Whether a new order joins a class taken in a level to one held where it can come.
    fn check_levels(&mut self, place: Place) {
        let any = self.core.usage_any;
        if !any
            .bits()
            .any(|bit| !bit.is_enabled && any.meets(bit.opposites_afar()))
        {
            return;
        }
        let (held, taken) = (place.held.word, place.taken.word);
        let back = State {
            class: held.class(),
            is_restricted: held.mode().is_read(),
        };
        let ahead = State {
            class: taken.class(),
            is_restricted: taken.is_recursive(),
        };
        for bit in any.used().bits() {
            let wanted = Usage::default().with(bit);
            let Some(safe) = self.find_use(back, Direction::Backward, wanted, None) else {
                continue;
            };
            let opposites = bit.opposites_afar();
            let Some(end) = self.find_use(ahead, Direction::Forward, opposites, None) else {
                continue;
            };
            let graph = &self.core.graph;
            graph.path(end, Direction::Forward, &mut self.core.hops);
            let seen = self.core.usage(end.class).seen_from(end.is_restricted);
            let other = seen.bits().find(|&other| opposites.has(other));
            let uses = [
                self.core.find_use(safe.class, bit),
                other.and_then(|other| self.core.find_use(end.class, other)),
            ];
            let finding = self.finding(Kind::IrqOrder).against(Some(place.held));
            let finding = finding.hop((Hop { edge: 0, place }, 1, [0; NR_GATES]));
            let finding = self.add_path(finding, &self.core.hops);
            self.findings.add(finding.uses(uses));
            return;
        }
    }
}

impl Validator {
    /// From here on, a lock that a nest lock tolerates beside its own class records its orders too.
    ///
    /// Whatever is taken between two locks of one class then makes a circle with them, which is
    /// unlikely as long as all happens under the nest lock, and an error once it does not. Call it
    /// before anything is seen.
    pub fn be_strict_in_nests(&self) {
        self.unwatched(|inner| inner.core.lock().is_strict = true);
    }
}

fn skips_usage(class: ClassId) -> bool {
    class.index() >= ClassId::NR_SUBCLASSES
        && registry::attributes(class).lock_type != LockType::Normal
}

pub(crate) fn is_map(class: ClassId) -> bool {
    registry::attributes(class).outer == WaitType::Unchecked
}

/// Whether orders with a held lock count.
pub(crate) fn is_checked(held: &Held) -> bool {
    !held.word.has(Word::UNCHECKED)
        && registry::attributes(held.word.class()).checking == Checking::Full
}

/// What the context alone allows.
fn context_limit(context: Context) -> WaitType {
    let by_level = if context.has(Context::HARD) {
        if context.has(Context::THREADED) {
            WaitType::Config
        } else {
            WaitType::Spin
        }
    } else if context.has(Context::SOFT | Context::NON_BLOCK) {
        WaitType::Config
    } else {
        WaitType::Sleep
    };
    match context.limit() {
        1 => by_level.min(WaitType::Free),
        2 => by_level.min(WaitType::Spin),
        3 => by_level.min(WaitType::Config),
        _ => by_level,
    }
}

/// The rules about instances, which no chain can know: looked at on every acquisition.
pub(crate) fn instance(
    stack: &[Held],
    new: &Held,
    nest: Option<usize>,
    order: Option<registry::OrderFn>,
) -> Option<Kind> {
    let nest_at = nest.map(|nest| stack.iter().position(|held| held.instance == nest));
    if nest_at == Some(None) {
        return Some(Kind::NestNotHeld);
    }
    let same = stack
        .iter()
        .enumerate()
        .filter(|(_, held)| held.word.class() == new.word.class() && is_checked(held));
    for (at, held) in same {
        let is_read = new.word.is_recursive() && held.word.mode().is_read();
        let is_ordered = order.is_some_and(|order| order(held.instance, new.instance).is_lt());
        let is_nested = nest_at.flatten().is_some_and(|nest_at| nest_at <= at);
        if !is_read && !is_ordered && !is_nested {
            return Some(Kind::Recursive);
        }
        // The nest lock serialises whoever takes several.
        if is_nested && !is_read && !is_ordered {
            return None;
        }
    }
    None
}
