//! Threads that are used again by the next run.
//!
//! One task of a run goes on at a time, so its threads stay on one processor: handing over from
//! one processor to another takes several times as long, most of all to one that sleeps.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};

/// What a task does.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// What a worker does: it is handed its home, to enter when it is as good as done.
pub(super) type Work = Box<dyn FnOnce(&Home) + Send>;

/// A processor; `None` where the system does not say which there are.
pub(super) type Cpu = Option<usize>;

static IDLE: Mutex<BTreeMap<Cpu, Vec<Home>>> = Mutex::new(BTreeMap::new());

/// A worker's door: whoever has it may hand work in.
#[derive(Clone)]
pub(super) struct Home {
    desk: Arc<Mutex<Option<Work>>>,
    thread: Thread,
    cpu: Cpu,
}

/// A processor for a course of runs: the next of those that the calling thread may use.
pub(super) fn next_cpu() -> Cpu {
    static NR_GIVEN: AtomicUsize = AtomicUsize::new(0);
    let allowed = sched_getaffinity(None).ok()?;
    let cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    let nth = NR_GIVEN.fetch_add(1, Relaxed) % (allowed.count() as usize).max(1);
    cpus.into_iter().nth(nth)
}

/// Hands work to a thread of `cpu` that has none, or to a new one.
///
/// The thread is unparked for the work, once; what else it waits for is the work's affair.
pub(super) fn start(cpu: Cpu, work: Work) {
    let idle = idle().get_mut(&cpu).and_then(Vec::pop);
    let home = idle.unwrap_or_else(|| Home::build(cpu));
    *home.desk() = Some(work);
    home.thread.unpark();
}

fn idle() -> std::sync::MutexGuard<'static, BTreeMap<Cpu, Vec<Home>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Home {
    /// Says that more work can be handed in.
    pub(super) fn enter(&self) {
        idle().entry(self.cpu).or_default().push(self.clone());
    }

    fn build(cpu: Cpu) -> Self {
        let desk = Arc::new(Mutex::new(None));
        let desk_of_thread = Arc::clone(&desk);
        let spawned = thread::Builder::new()
            .name("sim".to_owned())
            .spawn(move || Self::of_this_thread(desk_of_thread, cpu).work())
            .expect("the machine has a thread for each task");
        Self {
            desk,
            thread: spawned.thread().clone(),
            cpu,
        }
    }

    fn of_this_thread(desk: Arc<Mutex<Option<Work>>>, cpu: Cpu) -> Self {
        if let Some(cpu) = cpu {
            let mut only = CpuSet::new();
            only.set(cpu);
            // Where it is refused, the thread runs where it may: slower, and no less true.
            let _refused = sched_setaffinity(None, &only);
        }
        Self {
            desk,
            thread: thread::current(),
            cpu,
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
