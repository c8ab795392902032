//! Uses that break the contract: counted, named, and handed to whoever listens.
//!
//! Two are not here, because they cannot be written: an end without its start, since an
//! [`Invalidation`](super::Invalidation) is the only way to an end and is used up by it; and a
//! refusal in a bracket that may block, since that refusal has no value.

use super::stats::add_one;
use crate::watch::Callback;
use core::fmt;
use core::sync::atomic::AtomicU64;
use lockdep::sync::Mutex;
use std::sync::Arc;

/// How the contract was broken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Misuse {
    /// A callback waited for brackets to close (the end of a subscription, a synchronize), and is
    /// part of one. It was not made to wait.
    WaitInCallback,
    /// A device began to look up pages inside a callback, with a bracket open over them. It was
    /// told to try again.
    ReadInCallback,
    /// A callback used managed memory: a fault would wait for what the callback holds up.
    TouchInCallback,
    /// A start that may not block began a bracket whose callbacks may.
    SleepInNonBlock,
    /// A lookup was judged under another lock than the one that the subscription was made with.
    /// It counts as too old.
    ForeignWitness,
    /// The subscription of an interval was dropped, not removed, while a bracket over it was open:
    /// its callback may come after what it needs is gone. A member of the list may be dropped at
    /// any time: see [`Subscription`](super::Subscription).
    DroppedWhileOpen,
    /// This callback panicked. The panic was contained, and is counted by itself.
    Panic(Callback),
}

impl Misuse {
    /// What happened, as the end of a sentence that begins with the subscriber's name.
    pub const fn text(self) -> &'static str {
        match self {
            Self::WaitInCallback => "waited inside a callback for brackets to close",
            Self::ReadInCallback => "looked up pages inside a callback",
            Self::TouchInCallback => "used managed memory inside a callback",
            Self::SleepInNonBlock => "began a blockable bracket in a start that may not block",
            Self::ForeignWitness => "was judged under a lock that is not its own",
            Self::DroppedWhileOpen => "was dropped while a bracket over it was open",
            Self::Panic(_) => "panicked inside a callback",
        }
    }
}

/// A [`Misuse`] and whose it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MisuseReport {
    /// How the contract was broken.
    pub misuse: Misuse,
    /// The name of the subscription; `?` if more misuses by one callback of another address space
    /// came than are kept until it returns.
    pub subscriber: Arc<str>,
}

impl fmt::Display for MisuseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.subscriber, self.misuse.text())?;
        match self.misuse {
            Misuse::Panic(callback) => write!(f, ", its {}", callback.text()),
            _ => Ok(()),
        }
    }
}

type Sink = Arc<dyn Fn(&MisuseReport) + Send + Sync>;

/// Where reports go.
pub(super) struct Misuses {
    sink: Mutex<Option<Sink>>,
}

impl Misuses {
    pub(super) fn new() -> Self {
        Self {
            sink: Mutex::new("mmu_notifier.misuse", None),
        }
    }

    pub(super) fn set_sink(&self, sink: Sink) {
        let before = self.sink.lock().replace(sink);
        drop(before);
    }

    /// Counts the misuse and tells it.
    #[cold]
    pub(super) fn report(&self, count: &AtomicU64, misuse: Misuse, subscriber: &Arc<str>) {
        add_one(count);
        self.tell(misuse, subscriber);
    }

    /// Tells a misuse that is counted elsewhere. Tries the lock only: it may be a callback that
    /// tells.
    #[cold]
    pub(super) fn tell(&self, misuse: Misuse, subscriber: &Arc<str>) {
        let sink = self.sink.try_lock().and_then(|sink| sink.clone());
        if let Some(sink) = sink {
            sink(&MisuseReport {
                misuse,
                subscriber: Arc::clone(subscriber),
            });
        }
    }
}
