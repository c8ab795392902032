//! Threads that are used again by the next run.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};

/// What a task does.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// What a worker does: it is handed its home, to enter when it is as good as done.
pub(super) type Work = Box<dyn FnOnce(&Home) + Send>;

static IDLE: Mutex<Vec<Home>> = Mutex::new(Vec::new());

/// A worker's door: whoever has it may hand work in.
#[derive(Clone)]
pub(super) struct Home {
    desk: Arc<Mutex<Option<Work>>>,
    thread: Thread,
}

/// Hands work to a thread that has none, or to a new one.
///
/// The thread is unparked for the work, once; what else it waits for is the work's affair.
pub(super) fn start(work: Work) -> Thread {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let home = idle.unwrap_or_else(Home::build);
    *home.desk() = Some(work);
    home.thread.unpark();
    home.thread
}

impl Home {
    /// Says that more work can be handed in.
    pub(super) fn enter(&self) {
        IDLE.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.clone());
    }

    fn build() -> Self {
        let desk = Arc::new(Mutex::new(None));
        let desk_of_thread = Arc::clone(&desk);
        let spawned = thread::Builder::new()
            .name("sim".to_owned())
            .spawn(move || Self::of_this_thread(desk_of_thread).work())
            .expect("the machine has a thread for each task");
        Self {
            desk,
            thread: spawned.thread().clone(),
        }
    }

    fn of_this_thread(desk: Arc<Mutex<Option<Work>>>) -> Self {
        Self {
            desk,
            thread: thread::current(),
        }
    }

    fn work(self) -> ! {
        loop {
            let work = self.desk().take();
            match work {
                Some(work) => work(&self),
                None => thread::park(),
            }
        }
    }

    fn desk(&self) -> std::sync::MutexGuard<'_, Option<Work>> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
