//! Locks that one thread took and another released: guards that were sent.
//!
//! The entry of such a lock lies on the stack of the thread that took it, which nobody else can
//! reach. So the release is filed here and an epoch begins, and the thread takes the entry off its
//! stack before it does the next thing that the validator hears of.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::sync::raw::RawLock;
use crate::task::Task;

/// How many releases wait for their threads; beyond that the oldest is forgotten, and its lock
/// counts as held on.
const NR_MAX: usize = 64;

/// A number for a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Token(pub(crate) u32);

impl Token {
    /// Nobody said who took the lock: a reader, of which there may be many.
    pub(crate) const ANY: Self = Self(0);

    /// That of the calling thread.
    pub(crate) fn mine() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let mine = MINE.try_with(|mine| {
            if mine.get() == 0 {
                mine.set(NEXT.fetch_add(1, Ordering::Relaxed));
            }
            mine.get()
        });
        Self(mine.unwrap_or(Self::ANY.0))
    }

    /// Gives the calling thread another number, or none yet; returns the one that it had.
    pub(crate) fn exchange(self) -> Self {
        let before = MINE.try_with(|mine| mine.replace(self.0));
        Self(before.unwrap_or(Self::ANY.0))
    }
}

thread_local! {
    /// 0 until somebody asks.
    static MINE: Cell<u32> = const { Cell::new(0) };
}

#[derive(Clone, Copy)]
struct Handed {
    taken_by: Token,
    instance: usize,
}

static HANDED: RawLock<([Option<Handed>; NR_MAX], usize)> = RawLock::new(([None; NR_MAX], 0));

/// How many there are: whoever begins an epoch looks at this first. Relaxed: the epoch orders it.
static NR_HANDED: AtomicUsize = AtomicUsize::new(0);

/// Files a release. Call it before the lock is free for others.
#[cfg(feature = "validate")]
pub(crate) fn file(taken_by: Token, instance: usize) {
    let mut handed = HANDED.lock();
    let (entries, next) = &mut *handed;
    let free = entries.iter().position(Option::is_none);
    let at = free.unwrap_or(*next % NR_MAX);
    *next = at + 1;
    entries[at] = Some(Handed { taken_by, instance });
    NR_HANDED.store(entries.iter().flatten().count(), Ordering::Relaxed);
    drop(handed);
    crate::hooks::next_epoch();
}

/// Takes what others released off the stack of the calling thread.
pub(crate) fn collect(task: &Task) {
    if NR_HANDED.load(Ordering::Relaxed) == 0 {
        return;
    }
    let mine = Token::mine();
    let mut handed = HANDED.lock();
    let entries = &mut handed.0;
    for entry in entries.iter_mut() {
        let Some(Handed { taken_by, instance }) = *entry else {
            continue;
        };
        let at = (0..task.depth()).find(|&at| task.get(at).instance == instance);
        if (taken_by == mine || taken_by == Token::ANY)
            && let Some(at) = at
        {
            let last = task.depth() - 1;
            (at..last).for_each(|above| task.set(above, task.get(above + 1)));
            task.truncate(last);
            *entry = None;
        }
    }
    NR_HANDED.store(entries.iter().flatten().count(), Ordering::Relaxed);
}
