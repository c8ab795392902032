//! What `lockdep::sync` has no type for, as thin as can be: annotations, and nothing that blocks.
//!
//! The programs run in orders in which nothing has to be waited for; what would block says so.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use lockdep::event::{self, Acquire};
use lockdep::sync::Mutex;
use lockdep::wait::{EVENT, EventKind, EventState, Limit};
use lockdep::{ClassId, DynamicClass, Map, MapGuard, Mode, Site, TaskState};

/// A queue without bound: receiving waits for who sends.
pub(super) struct Channel<T> {
    class: DynamicClass,
    filled: EventState,
    queue: Mutex<VecDeque<T>>,
}

impl<T> Channel<T> {
    pub(super) fn new() -> Self {
        let filled = EventState::new(EventKind::Once);
        filled.begin();
        Self {
            class: DynamicClass::new("channel", EVENT),
            filled,
            queue: Mutex::new("queue", VecDeque::new()),
        }
    }

    #[track_caller]
    pub(super) fn send(&self, value: T) {
        self.filled.signal(self.class.id(), Site::caller());
        self.queue.lock().push_back(value);
    }

    #[track_caller]
    pub(super) fn receive(&self) -> T {
        let waiting = self
            .filled
            .wait(self.class.id(), Limit::Forever, Site::caller());
        let value = self.queue.lock().pop_front();
        drop(waiting);
        value.expect("the programs send first")
    }
}

/// A semaphore of one permit, which is held by who acquired it.
pub(super) struct Semaphore {
    permit: Map,
}

impl Semaphore {
    #[track_caller]
    pub(super) const fn new(name: &'static str) -> Self {
        Self {
            permit: Map::new(name),
        }
    }

    #[track_caller]
    pub(super) fn acquire(&self) -> MapGuard<'_> {
        self.permit.enter()
    }
}

/// Something that is made once, by whoever comes first; others wait for that.
pub(super) struct Once {
    making: Map,
    is_made: AtomicBool,
}

impl Once {
    #[track_caller]
    pub(super) const fn new(name: &'static str) -> Self {
        Self {
            making: Map::new(name),
            is_made: AtomicBool::new(false),
        }
    }

    #[track_caller]
    pub(super) fn call_once(&self, make: impl FnOnce()) {
        self.making.might_acquire();
        if !self.is_made.load(Ordering::Relaxed) {
            let _making = self.making.enter();
            make();
            self.is_made.store(true, Ordering::Relaxed);
        }
    }
}

/// What a thread that is joined runs in.
pub(super) struct Joinable {
    running: Map,
}

impl Joinable {
    #[track_caller]
    pub(super) const fn new(name: &'static str) -> Self {
        Self {
            running: Map::new(name),
        }
    }

    pub(super) fn run(&self, body: impl FnOnce()) {
        let _running = self.running.enter();
        body();
    }

    #[track_caller]
    pub(super) fn join(&self) {
        self.running.sync();
    }
}

/// A lock of a class with attributes, or of a subclass.
pub(super) struct Lock<'a> {
    class: ClassId,
    at: &'a u64,
}

impl<'a> Lock<'a> {
    pub(super) fn new(class: ClassId, at: &'a u64) -> Self {
        Self { class, at }
    }

    #[track_caller]
    pub(super) fn lock(&self) -> Held {
        let instance = std::ptr::from_ref(self.at).addr();
        event::acquire(&Acquire::new(self.class, instance, Mode::Exclusive));
        Held(instance)
    }
}

pub(super) struct Held(usize);

impl Drop for Held {
    fn drop(&mut self) {
        event::release(self.0);
    }
}

/// A lock whose waiter gives the thread away.
pub(super) struct AsyncMutex {
    held: Map,
    is_held: Cell<bool>,
}

pub(super) struct AsyncGuard<'a> {
    _held: MapGuard<'a>,
    mutex: &'a AsyncMutex,
}

impl AsyncMutex {
    #[track_caller]
    pub(super) const fn new(name: &'static str) -> Self {
        Self {
            held: Map::new(name),
            is_held: Cell::new(false),
        }
    }

    pub(super) async fn lock(&self) -> AsyncGuard<'_> {
        let held = self.held.enter();
        while self.is_held.replace(true) {
            give_way().await;
        }
        AsyncGuard {
            _held: held,
            mutex: self,
        }
    }
}

impl Drop for AsyncGuard<'_> {
    fn drop(&mut self) {
        self.mutex.is_held.set(false);
    }
}

/// Lets others run once.
pub(super) async fn give_way() {
    let mut has_run = false;
    std::future::poll_fn(|_| {
        if std::mem::replace(&mut has_run, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// Polls a blocking-lock-free future to its end: nothing that blocks a thread may be held where it
/// gives the thread away.
pub(super) fn run_alone(future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    while future.as_mut().poll(&mut context).is_pending() {
        event::check_none_held();
    }
}

/// Polls tasks in turn, each with what it holds, until all are done.
pub(super) fn run_tasks(tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    let mut context = Context::from_waker(Waker::noop());
    let mut tasks: Vec<_> = tasks.into_iter().map(|t| (TaskState::new(), t)).collect();
    while !tasks.is_empty() {
        tasks.retain_mut(|(state, task)| {
            state.exchange();
            let is_pending = task.as_mut().poll(&mut context).is_pending();
            state.exchange();
            is_pending
        });
    }
}
