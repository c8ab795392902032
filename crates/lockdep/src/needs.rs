//! Who may end a wait for a state: what every notifier has held when it did.
//!
//! Anybody may change a state, so what one notifier happened to do before says nothing. But when
//! all that have come so far held one lock, and somebody waits with that very lock held, nobody was
//! ever seen who could end that wait: `lock -> event` by the waiter, `event -> lock` by the rest.
//! The first notifier without the lock refutes it. Locks are compared as instances here: that one
//! device's notifier holds the device's lock says nothing of a waiter with another device's.
//!
//! In the steady state, a notification compares a few words and writes nothing.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::chain;
use crate::check::{self, Check};
use crate::core::{Core, step_of};
use crate::finding::Findings;
use crate::graph::{NR_GATES, Place, Provenance, Step};
use crate::task::{Held, Site, Task};
use crate::validator::Inner;
use crate::word::{ClassId, Mode, Word};

const NR_SLOTS: usize = 4;

/// What is known of one event. Relaxed everywhere: changes are made under the core's lock, and
/// who reads an older state sees the change at the next event.
#[derive(Debug)]
pub(crate) struct Needs {
    /// Locks that every notifier has held, 0 for none.
    always: [AtomicUsize; NR_SLOTS],
    /// Locks that waiters have held.
    waited_with: [AtomicUsize; NR_SLOTS],
    nr_notified: AtomicU32,
}

/// What a notifier held that is in `always`: the other half of the report, if one is made later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notifier {
    event: usize,
    instance: usize,
    held: Step,
    notified: Site,
    thread: u32,
}

/// How many of them are kept; the oldest is forgotten for a new one.
pub(crate) const NR_NOTIFIERS_MAX: usize = 512;

fn has(slots: &[AtomicUsize], instance: usize) -> bool {
    let is_it = |slot: &AtomicUsize| slot.load(Ordering::Relaxed) == instance;
    slots.iter().any(is_it)
}

/// Adds to a set if there is room; what finds none is not watched.
fn add(slots: &[AtomicUsize], instance: usize) {
    if has(slots, instance) {
        return;
    }
    if let Some(free) = slots.iter().find(|slot| slot.load(Ordering::Relaxed) == 0) {
        free.store(instance, Ordering::Relaxed);
    }
}

/// A lock without which a notifier could not have come.
///
/// Not a map: one stands for all threads that are inside, so its address says nothing. Not a
/// recursive reader: who waits inside as a reader does not keep it out.
fn is_needed(held: &Held) -> bool {
    let word = held.word;
    let is_lock = check::is_checked(held) && !check::is_map(word.class());
    is_lock && !word.has(Word::TRY) && !word.is_recursive()
}

impl Needs {
    pub(crate) const fn new() -> Self {
        Self {
            always: [const { AtomicUsize::new(0) }; NR_SLOTS],
            waited_with: [const { AtomicUsize::new(0) }; NR_SLOTS],
            nr_notified: AtomicU32::new(0),
        }
    }

    /// The calling thread may wait, with what it holds.
    pub(crate) fn wait(
        &self,
        (inner, task): (&Inner, &Task),
        event: usize,
        class: ClassId,
        findings: &mut Findings,
    ) {
        for held in task.iter().filter(is_needed) {
            add(&self.waited_with, held.instance);
            if !has(&self.always, held.instance) {
                continue;
            }
            let mut core = inner.lock_core();
            let is_it = |n: &&Notifier| (n.event, n.instance) == (event, held.instance);
            if let Some(notifier) = core.notifiers.iter().find(is_it).copied() {
                judge(task, &mut core, class, notifier, findings);
            }
        }
    }

    /// The calling thread notifies, with what it holds.
    pub(crate) fn notify(
        &self,
        (inner, task): (&Inner, &Task),
        event: usize,
        (class, notified): (ClassId, Site),
        findings: &mut Findings,
    ) {
        let may_be_first = self.nr_notified.load(Ordering::Relaxed) == 0;
        let holds = |instance| task.iter().any(|held| held.instance == instance);
        let lacks = |slot: &AtomicUsize| {
            let instance = slot.load(Ordering::Relaxed);
            instance != 0 && !holds(instance)
        };
        if may_be_first || self.always.iter().any(lacks) {
            let mut core = inner.lock_core();
            // Looked at again: of two that come for the first time at once, one does.
            let is_first = self.nr_notified.load(Ordering::Relaxed) == 0;
            let thread = Inner::thread(task, &mut core);
            let notifier = |held: &Held| Notifier {
                event,
                instance: held.instance,
                held: step_of(held),
                notified,
                thread,
            };
            for slot in self.always.iter().filter(|slot| lacks(slot)) {
                slot.store(0, Ordering::Relaxed);
            }
            if is_first {
                self.nr_notified.store(1, Ordering::Relaxed);
                for held in task.iter().filter(is_needed).take(NR_SLOTS) {
                    add(&self.always, held.instance);
                    core.add_notifier(notifier(&held));
                }
            }
        }
        for held in task.iter().filter(is_needed) {
            if has(&self.always, held.instance) && has(&self.waited_with, held.instance) {
                let mut core = inner.lock_core();
                let notifier = Notifier {
                    event,
                    instance: held.instance,
                    held: step_of(&held),
                    notified,
                    thread: Inner::thread(task, &mut core),
                };
                judge(task, &mut core, class, notifier, findings);
            }
        }
    }
}

/// Looks whether the wait of who holds the lock can be ended by nobody.
///
/// The order is not recorded: a later notifier may refute it.
fn judge(
    task: &Task,
    core: &mut Core,
    class: ClassId,
    notifier: Notifier,
    findings: &mut Findings,
) {
    let key = chain::pair(class.index(), 0, notifier.held.word);
    if task.known(key).is_some() {
        return;
    }
    task.learn(key, 0);
    let place = Place {
        held: Step {
            word: Word::new(class, Mode::Exclusive, 0, task.context()),
            site: notifier.notified,
        },
        taken: notifier.held,
        thread: notifier.thread,
        provenance: Provenance::Inferred,
    };
    core.stack.clear();
    let thread = Inner::thread(task, core);
    Check {
        new: place.taken,
        thread,
        core,
        findings,
    }
    .check_cycle(place, [0; NR_GATES]);
}

impl Core {
    fn add_notifier(&mut self, notifier: Notifier) {
        let same = |n: &Notifier| (n.event, n.instance) == (notifier.event, notifier.instance);
        self.notifiers.retain(|n| !same(n));
        if self.notifiers.len() == NR_NOTIFIERS_MAX {
            self.notifiers.remove(0);
        }
        self.notifiers.push(notifier);
    }

    pub(crate) fn zap_notifiers(&mut self, class: ClassId) {
        self.notifiers
            .retain(|n| n.held.word.class().key() != class.key());
    }
}
