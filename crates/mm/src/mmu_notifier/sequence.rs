//! The sequence of one interval subscription: how often its range has changed, and how many
//! brackets are open over it.
//!
//! ```text
//! bracket                                device
//! begin: number + 1, open + 1            read_begin: waits until open is 0, keeps the number
//! callback: takes the driver's lock,     looks up the page
//!   drops translations                   takes the driver's lock
//! the page changes                       read_retry: another number? then throws it away
//! end: open - 1                          installs the translation
//! ```
//!
//! The number grows *before* the callback. A device that installs before the callback has the lock
//! installs what the callback then drops; one that comes after it sees the new number. One that
//! read the new number waited until the page had changed, so what it looked up is new.
//!
//! Brackets over other ranges do not touch this word, so nobody waits for them.
//!
//! Linux counterpart: `invalidate_seq` of struct mmu_interval_notifier, one for all of an address
//! space there.

#[cfg(not(all(loom, test)))]
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use lockdep::scheduler::scheduler_point;
#[cfg(all(loom, test))]
use loom::sync::atomic::AtomicU64;

/// Somebody sleeps until no bracket is open.
const WAITED: u64 = 1;
/// One open bracket. The count goes up to the number: more than eight million open brackets over
/// one subscription are beyond what there is memory for.
const OPEN_ONE: u64 = 1 << 1;
/// One change. The number wraps after 2^40 of them, which nobody sees who looks within hours.
const NUMBER_ONE: u64 = 1 << 24;
const OPEN_MASK: u64 = NUMBER_ONE - OPEN_ONE;

const POINT: &str = "mmu_notifier.sequence";

/// The word: number, open brackets, and whether somebody waits.
pub(super) struct Sequence(AtomicU64);

/// What [`Sequence::look`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// No bracket is open, and this is the number.
    Idle(u64),
    /// A bracket is open.
    Open,
}

/// Whether those who wait must be woken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Ended {
    /// The last bracket was closed and somebody waits for that.
    Wake,
    /// There is nobody to wake.
    Quiet,
}

impl Sequence {
    /// A sequence whose first number is `number`; with one bracket open until [`end`](Self::end).
    pub(super) fn new_open(number: u64) -> Self {
        Self(AtomicU64::new(
            number.wrapping_mul(NUMBER_ONE).wrapping_add(OPEN_ONE),
        ))
    }

    fn point(&self) {
        scheduler_point(POINT, core::ptr::from_ref(self).addr());
    }

    /// A bracket begins: the number grows, so that whoever read the one before tries again.
    #[inline]
    pub(super) fn begin(&self) {
        self.point();
        // AcqRel: what the device did under an earlier number comes before, the callback after.
        self.0.fetch_add(NUMBER_ONE + OPEN_ONE, Ordering::AcqRel);
    }

    /// A bracket that counts as open, and does not change the number.
    pub(super) fn hold_open(&self) {
        self.point();
        // AcqRel: as in `begin`.
        self.0.fetch_add(OPEN_ONE, Ordering::AcqRel);
    }

    /// The number grows while a bracket is open.
    pub(super) fn bump(&self) {
        self.point();
        // AcqRel: as in `begin`.
        self.0.fetch_add(NUMBER_ONE, Ordering::AcqRel);
    }

    /// A bracket is over, and its range has changed.
    #[inline]
    pub(super) fn end(&self) -> Ended {
        self.close(OPEN_ONE)
    }

    /// A bracket is over and nothing has changed: the number is what it would be without it.
    ///
    /// So the number counts the brackets that came to a change or still may. Between a look and a
    /// later one nothing was changed exactly if both found the same number.
    pub(super) fn roll_back(&self) -> Ended {
        self.close(OPEN_ONE + NUMBER_ONE)
    }

    #[inline]
    fn close(&self, take: u64) -> Ended {
        self.point();
        // Release pairs with the Acquire in `look`: who finds nothing open finds the change.
        // Acquire: with the `WAITED` that it may meet comes the waiter's place in the queue.
        let before = self.0.fetch_sub(take, Ordering::AcqRel);
        if before & OPEN_MASK == OPEN_ONE && before & WAITED != 0 {
            Ended::Wake
        } else {
            Ended::Quiet
        }
    }

    /// Looks at the word once.
    #[inline]
    pub(super) fn look(&self) -> Look {
        self.point();
        // Acquire pairs with the Release in `close`, and keeps the lookup of the page behind this.
        let word = self.0.load(Ordering::Acquire);
        if word & OPEN_MASK == 0 {
            Look::Idle(word / NUMBER_ONE)
        } else {
            Look::Open
        }
    }

    /// Whether the number is `number`, open brackets or not.
    #[inline]
    pub(super) fn is_at(&self, number: u64) -> bool {
        self.point();
        // Acquire: what the callback did before it let the driver's lock go is known with it.
        self.0.load(Ordering::Acquire) / NUMBER_ONE == number
    }

    /// Says that somebody is going to sleep, unless no bracket is open. The caller holds the lock
    /// under which wake-ups are given.
    pub(super) fn announce_wait(&self) -> Look {
        self.point();
        // Acquire here and on failure: as in `look`, if the word is idle.
        let mut word = self.0.load(Ordering::Acquire);
        while word & OPEN_MASK != 0 {
            if word & WAITED != 0 {
                return Look::Open;
            }
            // AcqRel on success: pairs with `close`, which must find the waiter in the queue.
            let announced = self.0.compare_exchange_weak(
                word,
                word | WAITED,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match announced {
                Ok(_) => return Look::Open,
                Err(now) => word = now,
            }
        }
        // The very word that was looked at: in a later one a bracket may be open, of which nothing
        // was announced.
        Look::Idle(word / NUMBER_ONE)
    }

    /// Nobody sleeps any more. The caller holds the lock under which wake-ups are given.
    pub(super) fn forget_waits(&self) {
        self.point();
        self.0.fetch_and(!WAITED, Ordering::Relaxed);
    }

    /// How many brackets are open, and the number. For reports.
    pub(super) fn snapshot(&self) -> (u64, u64) {
        let word = self.0.load(Ordering::Relaxed);
        ((word & OPEN_MASK) / OPEN_ONE, word / NUMBER_ONE)
    }
}
