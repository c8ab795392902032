//! Waits for events: what a thread waits for that no thread holds.
//!
//! A waiter says what it holds while it waits: `held -> event`. Whoever ends the wait is remembered
//! by what it took before, for if that had blocked, the end would not have come: `event -> taken`.
//! A cycle of both is a deadlock that no lock order shows. To pair an end with waits that it could
//! have ended, each wait begins a generation, and each acquisition has the generation of its time:
//! what was taken *after* the wait began is a fact, what was taken before it is a possibility, and
//! makes a warning at most. What was taken before the event was made, or reset, is no part of it.
//!
//! A wait is recorded where it would block, with what is held at that instant: the mutex of a
//! condition variable is not.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::chain;
use crate::event;
use crate::finding::Findings;
use crate::graph::{NR_GATES, Place, Provenance, Step};
use crate::hooks;
use crate::map::Map;
use crate::needs::Needs;
use crate::registry::Attributes;
use crate::task::{self, Held, Site, Task};
use crate::validator::Inner;
use crate::word::{ClassId, Mode, Word};

/// The generation of waits: raised when one begins. On a line of its own, as locks read it.
#[repr(align(128))]
struct Generation(AtomicU32);

/// Relaxed: it grades what is reported, and orders nothing.
static GENERATION: Generation = Generation(AtomicU32::new(1));

#[inline(always)]
pub(crate) fn generation() -> u32 {
    GENERATION.0.load(Ordering::Relaxed)
}

fn next_generation() -> u32 {
    GENERATION.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
}

/// What is known of the waits for one event.
#[derive(Debug)]
pub struct EventState {
    /// What was taken before this generation is no part of the event.
    born: AtomicU32,
    nr_waiting: AtomicU32,
    /// The generation in which the oldest of the present waits began.
    since: AtomicU32,
    kind: EventKind,
    needs: Needs,
}

/// What ends waits for an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// Something that happens once, or once again after a reset.
    Once,
    /// A change of some state, again and again, by anybody: two sides may wait for each other in
    /// turn, so what a signaller waited for before says nothing. What *every* signaller so far has
    /// held while it signalled is needed to end the wait.
    State,
}

/// Whether a wait ends by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// It waits for as long as it takes.
    Forever,
    /// It gives up some time: a cycle with it is a delay.
    Timed,
}

impl EventState {
    /// An event for which nobody has waited, and whose past nobody knows.
    #[must_use]
    pub const fn new(kind: EventKind) -> Self {
        Self {
            kind,
            born: AtomicU32::new(0),
            nr_waiting: AtomicU32::new(0),
            since: AtomicU32::new(0),
            needs: Needs::new(),
        }
    }

    /// The event begins, or begins again: what was taken before has nothing to do with it.
    pub fn begin(&self) {
        if hooks::load().has_validator() {
            self.born.store(next_generation(), Ordering::Relaxed);
        }
    }

    /// The calling thread waits, until the guard is dropped.
    ///
    /// Checks that it may sleep here, and records what it holds.
    pub fn wait(&self, class: ClassId, limit: Limit, site: Site) -> Waiting<'_> {
        if !hooks::load().has_validator() {
            return Waiting { event: None };
        }
        let generation = next_generation();
        if self.nr_waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.since.store(generation, Ordering::Relaxed);
        }
        let waiting = Waiting { event: Some(self) };
        event::work(|inner, task, findings| {
            let word = self.record_wait((inner, task), class, (limit, site), findings);
            task.remember(word, site, generation);
        });
        waiting
    }

    /// The calling thread might wait here, and may find that it need not.
    pub fn might_wait(&self, class: ClassId, limit: Limit, site: Site) {
        event::work(|inner, task, findings| {
            self.record_wait((inner, task), class, (limit, site), findings);
        });
    }

    fn record_wait(
        &self,
        (inner, task): (&Inner, &Task),
        class: ClassId,
        (limit, site): (Limit, Site),
        findings: &mut Findings,
    ) -> Word {
        let flags = match limit {
            Limit::Forever => Word::SYNC | Word::WAIT,
            Limit::Timed => Word::SYNC | Word::WAIT | Word::TIMED,
        };
        let word = Word::new(class, Mode::Exclusive, flags, task.context());
        if task.depth() > 0 || task.context() != Default::default() {
            inner.push_checked(task, Held::new(self.addr(), word, site), findings);
        }
        if self.kind == EventKind::State && task.depth() > 0 {
            self.needs.wait((inner, task), self.addr(), class, findings);
        }
        word
    }

    fn addr(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// The calling thread ends the wait: what it took before belongs to it.
    pub fn signal(&self, class: ClassId, site: Site) {
        if !hooks::load().has_validator() {
            return;
        }
        let born = self.born.load(Ordering::Relaxed);
        let is_waited = self.nr_waiting.load(Ordering::Relaxed) > 0;
        let since = self.since.load(Ordering::Relaxed);
        event::work(|inner, task, findings| {
            if self.kind == EventKind::State {
                let act = (class, site);
                self.needs.notify((inner, task), self.addr(), act, findings);
            }
            let context = task.context();
            for past in task.recent().take_while(|past| past.generation >= born) {
                let skips = past.word.has(Word::TRY | Word::UNCHECKED)
                    || past.word.class() == class
                    || past.word.context().level() != context.level();
                if skips {
                    continue;
                }
                let is_paired = is_waited && past.generation >= since;
                // A state can be changed by anybody: only who was waited for is known to matter.
                let counts = match self.kind {
                    EventKind::Once => is_paired || !past.word.has(Word::WAIT),
                    EventKind::State => is_paired && !past.word.has(Word::WAIT),
                };
                if !counts {
                    continue;
                }
                let key = chain::pair(class.index(), u32::from(is_paired), past.word);
                if inner.is_known_pair(task, key) {
                    continue;
                }
                let flag = if is_paired { Word::WAIT } else { 0 };
                let place = Place {
                    held: Step {
                        word: Word::new(class, Mode::Exclusive, flag, context),
                        site,
                    },
                    taken: Step {
                        word: past.word,
                        site: past.site,
                    },
                    thread: 0,
                    provenance: Provenance::Inferred,
                };
                let mut core = inner.lock_core();
                let thread = Inner::thread(task, &mut core);
                core.stack.clear();
                crate::check::Check {
                    core: &mut core,
                    new: place.taken,
                    thread,
                    findings: &mut *findings,
                }
                .record(Place { thread, ..place }, [0; NR_GATES]);
                inner.add_pair(key);
            }
        });
    }
}

/// The time during which a thread waits; see [`EventState::wait`].
#[must_use = "the wait ends when the guard is dropped"]
#[derive(Debug)]
pub struct Waiting<'a> {
    event: Option<&'a EventState>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(event) = self.event {
            event.nr_waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What a wait is, as far as contexts go: it sleeps.
pub const EVENT: Attributes = Attributes::SLEEP;

/// The calling thread begins other work: what it took before is no part of events it ends later.
///
/// For loops that take one job after another.
pub fn begin_job() {
    task::with(|task| task.forget_recent());
}

/// All sections that signal fences, as one map.
static SIGNALLING: Map = Map::new("fence signalling");

/// The time during which a thread owes the signal of a fence; stays in its thread.
#[must_use = "the section ends when the guard is dropped"]
#[derive(Debug)]
pub struct Signalling {
    is_outermost: bool,
    not_send: PhantomData<*const ()>,
}

/// From here on the thread owes a signal: it must not take what is held while fences are waited
/// for, nor wait for fences.
///
/// Inside another such section, and in interrupt-like levels, it says nothing more. Kernel
/// counterpart: `dma_fence_begin_signalling()`.
#[track_caller]
pub fn begin_signalling() -> Signalling {
    let is_inside = SIGNALLING.is_entered() != Some(false);
    let is_outermost = !is_inside && !crate::context::current().in_interrupt();
    if is_outermost {
        std::mem::forget(SIGNALLING.read());
    }
    Signalling {
        is_outermost,
        not_send: PhantomData,
    }
}

impl Drop for Signalling {
    fn drop(&mut self) {
        if self.is_outermost {
            event::release_at(SIGNALLING.addr(), Site::Unknown);
        }
    }
}

/// A fence might be waited for here: all sections that signal are waited for.
#[track_caller]
pub fn might_wait_for_fence() {
    if !hooks::load().has_validator() {
        return;
    }
    let is_inside = SIGNALLING.is_entered() == Some(true);
    if is_inside {
        event::release_at(SIGNALLING.addr(), Site::Unknown);
    }
    event::sync(
        SIGNALLING.id(),
        SIGNALLING.addr(),
        Mode::Exclusive,
        Site::caller(),
    );
    if is_inside {
        std::mem::forget(SIGNALLING.read());
    }
}
