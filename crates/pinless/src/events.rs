//! Events on their way to whoever watches: a thread of their own carries them there.

use crate::join;
use core::fmt;
use core::time::Duration;
use lockdep::sync::Fence;
use pinless_host::is_forked_child;
use pinless_mm::event::{Log, Record};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Events that may happen between two looks of the thread; more are dropped, and counted.
const CAPACITY: usize = 16 * 1024;

/// How late an event may be told.
const INTERVAL: Duration = Duration::from_millis(20);

/// What is told of each event, in the thread of the events.
pub(crate) type Sink = Box<dyn FnMut(&Record) + Send>;

/// A log and the thread that empties it.
pub(crate) struct Events {
    log: Arc<Log>,
    stop: Fence,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("lost", &self.log.lost())
            .finish_non_exhaustive()
    }
}

impl Events {
    pub(crate) const THREAD: &str = "pinless-events";

    pub(crate) fn start(mut sink: Sink) -> io::Result<Self> {
        let log = Arc::new(Log::new(CAPACITY));
        let stop = Fence::new("pinless.events.stop");
        let (read, until) = (Arc::clone(&log), stop.clone());
        let thread = std::thread::Builder::new()
            .name(Self::THREAD.into())
            .spawn(move || {
                let mut records = Vec::with_capacity(read.capacity());
                loop {
                    let _ = until.wait_timeout(INTERVAL);
                    // Before the look, so that the last one misses nothing.
                    let is_last = until.is_signalled();
                    read.take(&mut records);
                    records.drain(..).for_each(|record| sink(&record));
                    if is_last {
                        return;
                    }
                }
            })?;
        Ok(Self {
            log,
            stop,
            thread: Some(thread),
        })
    }

    pub(crate) fn log(&self) -> &Arc<Log> {
        &self.log
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if is_forked_child() {
            // The thread is the parent's.
            return core::mem::forget(self.thread.take());
        }
        self.stop.signal();
        self.thread.take().into_iter().for_each(join);
    }
}

/// Opens a span around what a user asked for; nothing without the feature.
macro_rules! span {
    ($name:literal $(, $field:ident = $value:expr)*) => {
        #[cfg(feature = "tracing")]
        let _span = tracing::trace_span!(target: "pinless", $name $(, $field = %$value)*).entered();
    };
}
pub(crate) use span;

/// Tells `tracing` of an event: a kill is a warning, a refusal a debugging aid, the rest a trace.
#[cfg(feature = "tracing")]
pub(crate) fn to_tracing(record: &Record) {
    use pinless_mm::event::Event;
    let (mm, at_ns) = (record.mm.0, record.at_ns);
    match &record.event {
        Event::Fault { from, run, took_ns } => {
            tracing::trace!(target: "pinless", mm, at_ns, %run, ?from, took_ns, "fault");
        }
        Event::Evict {
            run,
            pages,
            took_ns,
        } => tracing::trace!(target: "pinless", mm, at_ns, %run, pages, took_ns, "evict"),
        Event::Bracket { run, mode, took_ns } => {
            tracing::trace!(target: "pinless", mm, at_ns, %run, ?mode, took_ns, "bracket");
        }
        Event::Refusal { run, holder } => {
            tracing::debug!(target: "pinless", mm, at_ns, %run, %holder, "refusal");
        }
        Event::Kill { badness } => {
            tracing::warn!(target: "pinless", mm, at_ns, badness, "kill");
        }
        other => tracing::trace!(target: "pinless", mm, at_ns, ?other, "event"),
    }
}
