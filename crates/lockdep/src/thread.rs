//! Threads whose end is waited for: a join is an event like any other wait.
//!
//! The thread is inside its own end for as long as it lives, so what it takes comes after that, and
//! whoever joins it while holding any of it closes a cycle.
//!
//! ```
//! use lockdep::Validator;
//! use lockdep::sync::Mutex;
//!
//! static TABLE: Mutex<u64> = Mutex::new("table", 0);
//!
//! let validator = Validator::new();
//! let _entered = validator.enter();
//! let worker = lockdep::thread::spawn("worker", || *TABLE.lock() += 1);
//! while TABLE.try_lock().is_none_or(|table| *table == 0) {}
//! let held = TABLE.lock();
//! worker.join().expect("it did not panic"); // this time the worker was done
//! assert_eq!(validator.reports().len(), 1);
//! # drop(held);
//! ```

use std::io;
use std::sync::Arc;
use std::thread;

use crate::class::Class;
use crate::event::{self, Acquire};
use crate::handed::Token;
use crate::registry::Attributes;
use crate::task::Site;
use crate::validator::Validator;
use crate::word::Mode;

/// A number that no other thread has, simulated ones included: see [`ThreadState`].
///
/// Callable from everywhere, also in a signal handler; 0 at the very end of a thread.
///
/// [`ThreadState`]: crate::ThreadState
#[must_use]
pub fn number() -> u32 {
    Token::mine().0
}

/// A thread that can be joined; see [`std::thread::JoinHandle`].
#[derive(Debug)]
pub struct JoinHandle<T> {
    end: Arc<Class>,
    inner: thread::JoinHandle<T>,
}

/// Starts a thread of this name. Its end is of the class of this name and place.
///
/// The thread is one of the caller's validator.
///
/// # Panics
///
/// When the operating system has no thread; see [`try_spawn`].
#[track_caller]
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    try_spawn(name, body).expect("the operating system has a thread")
}

/// The same, where there may be no more threads.
///
/// # Errors
///
/// That of the operating system.
#[track_caller]
pub fn try_spawn<T: Send + 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let end = Arc::new(Class::new(name));
    let (own, validator, site) = (Arc::clone(&end), Validator::current(), Site::caller());
    let inner = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _entered = (!validator.is_global()).then(|| validator.enter());
            let _alive = Alive::enter(own, site);
            body()
        })?;
    Ok(JoinHandle { end, inner })
}

impl<T> JoinHandle<T> {
    /// Waits until the thread has ended. May sleep.
    ///
    /// A thread that joins one of its own class, as those do that share out work among threads like
    /// themselves, is not told apart from one that joins itself: no order is recorded then.
    ///
    /// # Errors
    ///
    /// What the thread panicked with.
    #[track_caller]
    pub fn join(self) -> thread::Result<T> {
        let id = self.end.id(&Attributes::SLEEP);
        if !event::is_inside(id) {
            event::sync(id, self.end.addr(), Mode::Exclusive, Site::caller());
        }
        self.inner.join()
    }

    /// Whether the thread has ended, or nearly so.
    pub fn is_finished(&self) -> bool {
        self.inner.is_finished()
    }

    /// The thread.
    pub fn thread(&self) -> &thread::Thread {
        self.inner.thread()
    }
}

/// The time in which a thread has yet to end.
struct Alive(Arc<Class>);

impl Alive {
    fn enter(end: Arc<Class>, site: Site) -> Self {
        let id = end.id(&Attributes::SLEEP);
        // As a reader: threads of one class do not keep each other from ending.
        event::acquire(&Acquire {
            site,
            ..Acquire::new(id, end.addr(), Mode::SharedRecursive)
        });
        Self(end)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        event::release_at(self.0.addr(), Site::Unknown);
    }
}
