//! What one thread of control holds: the stack of its locks, its context, its known chains.
//!
//! The state lies in a thread-local without destructor, so it is reached by address and needs no
//! first use: also in signal handlers and in an allocator. It belongs to whoever runs on the thread
//! and can be exchanged, for executors that switch tasks; see [`TaskState`].

use std::cell::Cell;
use std::panic::Location;

use crate::chain::{self, ChainId};
use crate::context::Sections;
use crate::hooks::Hooks;
use crate::spill;
use crate::wait;
use crate::word::{Context, Word};

/// Where in the program something was done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Site {
    /// A place in Rust code.
    Place(&'static Location<'static>),
    /// An instruction of foreign code.
    Address(usize),
    /// Nobody said.
    #[default]
    Unknown,
}

impl Site {
    /// The place of the call.
    #[track_caller]
    #[inline(always)]
    pub fn caller() -> Self {
        Self::Place(Location::caller())
    }
}

/// A lock that is held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// The address that stands for the lock.
    pub(crate) instance: usize,
    pub(crate) site: Site,
    pub(crate) word: Word,
    /// The chain below this entry.
    pub(crate) before: ChainId,
    pub(crate) counts: Counts,
}

/// What is rarely other than [`Counts::ONE`]: one word, compared at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Counts(u64);

impl Counts {
    const MERGED: u64 = 1 << 16;
    const PIN_SHIFT: u32 = 32;
    /// One acquisition, not pinned.
    pub(crate) const ONE: Self = Self(1);

    /// How many acquisitions under a nest lock are in the entry.
    pub(crate) const fn nr_refs(self) -> u16 {
        self.0 as u16
    }

    /// Whether other instances were merged into it: it is released by class then.
    pub(crate) const fn is_merged(self) -> bool {
        self.0 & Self::MERGED != 0
    }

    /// One more acquisition; `None` when that cannot be counted.
    pub(crate) const fn merged(self) -> Option<Self> {
        if self.nr_refs() == u16::MAX {
            return None;
        }
        Some(Self((self.0 + 1) | Self::MERGED))
    }

    /// One acquisition less, of several.
    pub(crate) const fn released(self) -> Self {
        Self(self.0 - 1)
    }

    /// The sum of the cookies that pin it; 0 if none does.
    pub(crate) const fn pin(self) -> u32 {
        (self.0 >> Self::PIN_SHIFT) as u32
    }

    pub(crate) const fn with_pin(self, pin: u32) -> Self {
        Self(self.0 as u32 as u64 | (pin as u64) << Self::PIN_SHIFT)
    }
}

impl Held {
    pub(crate) const fn new(instance: usize, word: Word, site: Site) -> Self {
        Self {
            instance,
            site,
            word,
            before: 0,
            counts: Counts::ONE,
        }
    }
}

/// How many held locks lie in the thread-local itself; the others are [`spill`]ed.
///
/// Miri looks at each cell of a thread's state whenever a function is handed it.
pub(crate) const NR_INLINE: u32 = if cfg!(miri) { 4 } else { 64 };
/// One more than there are inline locks, rounded up to what a mask makes of a number.
const NR_CHAINS: u32 = NR_INLINE * 2;
const NR_KNOWN: usize = if cfg!(miri) { 8 } else { 256 };
/// How many acquisitions a signaller is remembered by.
pub(crate) const NR_RECENT: u32 = 32;
/// How many of them have one [tag](Task::tag): less than would push the first of them out.
const NR_RECENT_TAGGED: u32 = NR_RECENT / 2;

/// An acquisition of the past.
#[derive(Clone, Copy)]
pub(crate) struct Recent {
    pub(crate) word: Word,
    pub(crate) site: Site,
    /// The generation of waits at the time.
    pub(crate) generation: u32,
}

impl Recent {
    const NOTHING: Self = Self {
        word: Word::NONE,
        site: Site::Unknown,
        generation: 0,
    };
}

/// Where a held lock lies: field by field, so that what was just stored is loaded at the same
/// width, which processors forward without waiting.
///
/// What follows is an atomic operation, which waits for each store before it: so there are few.
struct Slot {
    instance: Cell<usize>,
    word: Cell<Word>,
    place: Cell<Option<&'static Location<'static>>>,
    /// Where there is no place: an address, or 0.
    address: Cell<usize>,
    /// INVARIANT: [`Counts::ONE`] above the depth, so that a push need not store it.
    counts: Cell<Counts>,
}

impl Slot {
    const fn new() -> Self {
        Self {
            instance: Cell::new(0),
            word: Cell::new(Word::NONE),
            place: Cell::new(None),
            address: Cell::new(0),
            counts: Cell::new(Counts::ONE),
        }
    }

    #[inline(always)]
    fn get(&self, before: ChainId) -> Held {
        Held {
            instance: self.instance.get(),
            site: match (self.place.get(), self.address.get()) {
                (Some(place), _) => Site::Place(place),
                (None, 0) => Site::Unknown,
                (None, address) => Site::Address(address),
            },
            word: self.word.get(),
            before,
            counts: self.counts.get(),
        }
    }

    /// Puts a lock with the counts of [`Held::new`] into a slot above the depth.
    #[inline(always)]
    fn push(&self, held: Held) {
        self.instance.set(held.instance);
        self.word.set(held.word);
        match held.site {
            Site::Place(place) => self.place.set(Some(place)),
            Site::Address(address) => {
                self.place.set(None);
                self.address.set(address);
            }
            Site::Unknown => {
                self.place.set(None);
                self.address.set(0);
            }
        }
    }

    fn set(&self, held: Held) {
        self.push(held);
        self.counts.set(held.counts);
    }
}

/// A step that was validated.
struct Known {
    key: Cell<u64>,
    /// The chain it leads to.
    chain: Cell<ChainId>,
    /// The [tag](Task::tag) under which it is among the recent ones.
    tag: Cell<u32>,
}

/// What came of pushing a lock on the fast path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hit {
    Pushed,
    /// The same, and the step of this key is no longer among the recent ones; see
    /// [`Task::remember_top`].
    Forgotten(u64),
    /// Not known to be right: it was not pushed.
    Unknown,
}

/// The state of a thread.
pub(crate) struct Task {
    depth: Cell<u32>,
    /// By depth: the chain of so many locks. The last one counts where locks are spilled.
    chains: [Cell<ChainId>; NR_CHAINS as usize],
    /// Up to this depth the fast path may push; 0 while the validator works in this thread.
    limit: Cell<u32>,
    context: Cell<Context>,
    /// What guards keep in the context.
    pub(crate) sections: Cell<Sections>,
    /// The epoch of `chains` and `known`.
    epoch: Cell<u32>,
    /// The number of the thread, 0 until it has one.
    pub(crate) thread: Cell<u32>,
    /// How many chains that others had validated it has met; counted up to a limit.
    pub(crate) nr_joined: Cell<u32>,
    /// Locks that found no room, and are not tracked.
    pub(crate) nr_lost: Cell<u32>,
    /// The name of the task of an executor that is on the thread, if one is.
    pub(crate) name: Cell<Option<&'static str>>,
    nr_recent: Cell<u32>,
    /// What came before this one is forgotten.
    recent_from: Cell<u32>,
    recent: [Cell<Recent>; NR_RECENT as usize],
    held: [Slot; NR_INLINE as usize],
    /// Steps that were validated, with the chain they lead to; direct-mapped.
    known: [Known; NR_KNOWN],
}

thread_local! {
    static TASK: Task = const { Task::new() };
}

/// Does something with the state of the calling thread.
#[inline(always)]
pub(crate) fn with<R>(act: impl FnOnce(&Task) -> R) -> R {
    // `try_with` is inlined where `with` is not. It fails for what has a destructor only.
    match TASK.try_with(act) {
        Ok(result) => result,
        Err(_) => unreachable!("the state of a thread is never destroyed"),
    }
}

/// Does something as work of the validator in this thread; nothing if there is such work already.
pub(crate) fn unless_busy<R>(act: impl FnOnce() -> R) -> Option<R> {
    with(|task| {
        let _work = task.begin_work()?;
        Some(act())
    })
}

impl Task {
    const fn new() -> Self {
        Self {
            depth: Cell::new(0),
            chains: [const { Cell::new(0) }; NR_CHAINS as usize],
            limit: Cell::new(NR_INLINE),
            context: Cell::new(Context(0)),
            sections: Cell::new(Sections::NONE),
            epoch: Cell::new(0),
            thread: Cell::new(0),
            nr_joined: Cell::new(0),
            nr_lost: Cell::new(0),
            name: Cell::new(None),
            nr_recent: Cell::new(0),
            recent_from: Cell::new(0),
            recent: [const { Cell::new(Recent::NOTHING) }; NR_RECENT as usize],
            held: [const { Slot::new() }; NR_INLINE as usize],
            known: [const {
                Known {
                    key: Cell::new(0),
                    chain: Cell::new(0),
                    tag: Cell::new(0),
                }
            }; NR_KNOWN],
        }
    }

    /// Pushes a lock if the step is known to be right; the whole of the fast path.
    #[inline(always)]
    pub(crate) fn push_known(&self, held: Held, hooks: Hooks) -> Hit {
        let before = self.chains[(self.depth.get() % NR_CHAINS) as usize].get();
        let key = chain::step(before, held.word);
        let known = &self.known[Self::slot(key)];
        let depth = self.depth.get();
        let is_known = known.key.get() == key;
        if !is_known || depth >= self.limit.get() || hooks.epoch() != self.epoch.get() {
            return Hit::Unknown;
        }
        // The masks change nothing, and take the bounds checks out.
        self.held[(depth % NR_INLINE) as usize].push(held);
        self.depth.set(depth + 1);
        self.chains[((depth + 1) % NR_CHAINS) as usize].set(known.chain.get());
        if known.tag.get() == self.tag(wait::generation()) {
            Hit::Pushed
        } else {
            Hit::Forgotten(key)
        }
    }

    /// Puts the lock that was pushed last among the recent ones; its step has this key.
    #[cold]
    #[inline(never)]
    pub(crate) fn remember_top(&self, key: u64) {
        let (top, generation) = (self.get(self.depth.get() - 1), wait::generation());
        self.remember(top.word, top.site, generation);
        let known = &self.known[Self::slot(key)];
        known.tag.set(self.tag(generation));
    }

    /// Pops the lock if it is the last one taken, and nothing is special about it.
    #[inline(always)]
    pub(crate) fn pop_known(&self, instance: usize, hooks: Hooks) -> bool {
        let depth = self.depth.get().wrapping_sub(1);
        if depth >= self.limit.get() || hooks.epoch() != self.epoch.get() {
            return false;
        }
        let top = &self.held[(depth % NR_INLINE) as usize];
        if top.instance.get() != instance || top.counts.get() != Counts::ONE {
            return false;
        }
        self.depth.set(depth);
        true
    }

    /// Changes with the generation of waits, and before what was remembered is overwritten.
    ///
    /// What is remembered under the present tag need not be remembered again: it is of the same
    /// generation, and not yet pushed out.
    #[inline(always)]
    fn tag(&self, generation: u32) -> u32 {
        // An odd factor: tags of one generation differ, and those of neighbours are far apart.
        generation.wrapping_mul(0x9e37_79b1) ^ (self.nr_recent.get() / NR_RECENT_TAGGED)
    }

    pub(crate) fn remember(&self, word: Word, site: Site, generation: u32) {
        let at = self.nr_recent.get();
        self.recent[(at % NR_RECENT) as usize].set(Recent {
            word,
            site,
            generation,
        });
        self.nr_recent.set(at.wrapping_add(1));
    }

    /// What was acquired lately, the latest first.
    pub(crate) fn recent(&self) -> impl Iterator<Item = Recent> + '_ {
        let end = self.nr_recent.get();
        let nr = end.wrapping_sub(self.recent_from.get()).min(NR_RECENT);
        (1..=nr).map(move |back| self.recent[(end.wrapping_sub(back) % NR_RECENT) as usize].get())
    }

    /// Forgets what was acquired lately: what comes now is other work.
    pub(crate) fn forget_recent(&self) {
        let next_tag = (self.nr_recent.get() / NR_RECENT_TAGGED).wrapping_add(1);
        self.nr_recent.set(next_tag.wrapping_mul(NR_RECENT_TAGGED));
        self.recent_from.set(self.nr_recent.get());
    }

    #[inline(always)]
    fn slot(key: u64) -> usize {
        (chain::spread(key) >> 56) as usize % NR_KNOWN
    }

    /// The chain that a step leads to, if this thread has met it.
    pub(crate) fn known(&self, key: u64) -> Option<ChainId> {
        let known = &self.known[Self::slot(key)];
        (known.key.get() == key).then(|| known.chain.get())
    }

    pub(crate) fn learn(&self, key: u64, chain: ChainId) {
        let known = &self.known[Self::slot(key)];
        known.key.set(key);
        known.chain.set(chain);
        // Not among the recent ones, as far as is known.
        known.tag.set(!self.tag(wait::generation()));
    }

    /// Forgets a step: it has to be looked at again each time.
    pub(crate) fn unlearn(&self, key: u64) {
        self.known[Self::slot(key)].key.set(0);
    }

    /// Forgets all chains; the caller finds out its own again.
    pub(crate) fn enter_epoch(&self, epoch: u32) {
        self.known.iter().for_each(|known| known.key.set(0));
        self.epoch.set(epoch);
        self.set_chain(0);
    }

    /// Keeps the next event off the fast path: there is something to be done besides.
    pub(crate) fn slow_down(&self) {
        self.epoch.set(self.epoch.get().wrapping_sub(1));
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.get()
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth.get()
    }

    /// The chain of what is held, or while it is being found out again, of a part of that.
    pub(crate) fn chain(&self) -> ChainId {
        self.top_chain().get()
    }

    pub(crate) fn set_chain(&self, chain: ChainId) {
        self.top_chain().set(chain);
    }

    fn top_chain(&self) -> &Cell<ChainId> {
        &self.chains[self.depth.get().min(NR_CHAINS - 1) as usize]
    }

    #[inline(always)]
    pub(crate) fn context(&self) -> Context {
        self.context.get()
    }

    pub(crate) fn set_context(&self, context: Context) {
        self.context.set(context);
    }

    /// Whether the validator is at work in this thread.
    pub(crate) fn is_busy(&self) -> bool {
        self.limit.get() == 0
    }

    /// Whether the validator is at work here from now on; says whether it was.
    pub(crate) fn set_busy(&self, is_busy: bool) -> bool {
        let limit = if is_busy { 0 } else { NR_INLINE };
        self.limit.replace(limit) == 0
    }

    /// Keeps the validator from entering itself until the guard is dropped; `None` if it has.
    pub(crate) fn begin_work(&self) -> Option<Work<'_>> {
        if self.is_busy() {
            return None;
        }
        self.limit.set(0);
        Some(Work(self))
    }

    /// The lock at this depth, from 0.
    pub(crate) fn get(&self, at: u32) -> Held {
        match self.held.get(at as usize) {
            Some(held) => held.get(self.chains[at as usize].get()),
            None => spill::get(self.id(), at),
        }
    }

    pub(crate) fn set(&self, at: u32, held: Held) {
        match self.held.get(at as usize) {
            Some(slot) => {
                slot.set(held);
                self.chains[at as usize].set(held.before);
            }
            None => spill::set(self.id(), at, held),
        }
    }

    /// Pushes a lock with the chain it leads to; false when there is no more room.
    pub(crate) fn push(&self, held: Held, chain: ChainId) -> bool {
        let depth = self.depth.get();
        if depth >= NR_INLINE && !spill::push(self.id(), depth, held) {
            return false;
        }
        if depth < NR_INLINE {
            self.set(depth, held);
        }
        self.depth.set(depth + 1);
        self.set_chain(chain);
        true
    }

    /// Cuts the stack down to this depth.
    pub(crate) fn truncate(&self, depth: u32) {
        if depth >= self.depth.get() {
            return;
        }
        let spills = self.depth.get() > NR_INLINE;
        let chain = self.get(depth).before;
        let end = self.depth.replace(depth).min(NR_INLINE);
        self.set_chain(chain);
        for at in depth..end {
            self.held[at as usize].counts.set(Counts::ONE);
        }
        if spills {
            spill::truncate(self.id(), depth);
        }
    }

    /// All locks, the first taken first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Held> + '_ {
        (0..self.depth.get()).map(|at| self.get(at))
    }

    /// What spilled locks are filed under.
    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// The time during which the validator works in a thread.
pub(crate) struct Work<'a>(&'a Task);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.limit.set(NR_INLINE);
    }
}

/// The held locks and the context of a task that is not running.
///
/// An executor keeps one for each task and [exchanges](TaskState::exchange) it with the thread's
/// own before and after each poll. New ones hold nothing.
#[derive(Default)]
pub struct TaskState {
    held: Vec<Held>,
    /// The chain of what is held, as it was in this epoch.
    chain: ChainId,
    epoch: u32,
    context: Context,
    sections: Sections,
    recent: Vec<Recent>,
    name: Option<&'static str>,
}

impl TaskState {
    /// A task that holds nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            held: Vec::new(),
            chain: 0,
            epoch: 0,
            context: Context(0),
            sections: Sections::NONE,
            recent: Vec::new(),
            name: None,
        }
    }

    /// The same, by whose name reports call it, instead of its thread's.
    #[must_use]
    pub const fn named(name: &'static str) -> Self {
        let mut task = Self::new();
        task.name = Some(name);
        task
    }

    /// How many locks the task holds.
    #[must_use]
    pub fn nr_held(&self) -> usize {
        self.held.len()
    }

    /// Puts this task on the calling thread, and what was there into `self`.
    ///
    /// Allocates if a task leaves the thread with more than it ever left with before.
    pub fn exchange(&mut self) {
        with(|task| {
            let Some(_work) = task.begin_work() else {
                return;
            };
            task.exchange(self);
            // The chain is found out again at the next event, like after a change of epoch: the
            // task may come from a thread of another validator.
            task.slow_down();
        });
    }

    /// Files what is on the thread behind what is to come there, in the same vectors.
    fn file(&mut self, task: &Task) {
        self.held.extend(task.iter());
        let nr_coming = self.recent.len();
        for past in task.recent() {
            // The latest comes first, and says all that an earlier one of its kind would.
            if !self.recent[nr_coming..]
                .iter()
                .any(|kept| kept.is_like(&past))
            {
                self.recent.push(past);
            }
        }
        self.recent[nr_coming..].reverse();
    }
}

impl Recent {
    fn is_like(&self, other: &Self) -> bool {
        let is_same_place = match (self.site, other.site) {
            (Site::Place(one), Site::Place(other)) => std::ptr::eq(one, other),
            (one, other) => one == other,
        };
        is_same_place && self.word == other.word
    }
}

impl Task {
    /// Swaps what the thread holds and is in with `other`, and the chain that was found of it.
    ///
    /// Chains of another validator than that of the thread are the caller's affair.
    pub(crate) fn exchange(&self, other: &mut TaskState) {
        let (nr_held, nr_recent) = (other.held.len(), other.recent.len());
        other.file(self);
        let chain = std::mem::replace(&mut other.chain, self.chain());
        let epoch = std::mem::replace(&mut other.epoch, self.epoch());
        self.truncate(0);
        self.forget_recent();
        for nth in 0..nr_held {
            let is_last = nth + 1 == nr_held;
            let above = if is_last {
                chain
            } else {
                other.held[nth + 1].before
            };
            if !self.push(other.held[nth], above) {
                self.nr_lost.set(self.nr_lost.get() + 1);
            }
        }
        // Who holds nothing has the empty chain, whatever the epoch.
        if nr_held == 0 {
            self.set_chain(0);
        } else if epoch != self.epoch() {
            self.slow_down();
        }
        for past in other.recent.drain(..nr_recent) {
            self.remember(past.word, past.site, past.generation);
        }
        other.held.drain(..nr_held);
        other.context = self.context.replace(other.context);
        other.sections = self.sections.replace(other.sections);
        other.name = self.name.replace(other.name);
    }
}

impl std::fmt::Debug for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskState")
            .field("nr_held", &self.held.len())
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}
