//! Out of memory: who has to go, and the story told of it.
//!
//! Memory has run out when a whole pass of reclaim freed nothing, somebody waits for a frame, and
//! nothing is under way that could free one: no refused range that a device is still asked for,
//! no window that a thread works on, no earlier victim that is still being reaped.
//!
//! Linux counterpart: `mm/oom_kill.c`.

mod badness;
mod kill;
mod ladder;
mod process;
mod reaper;
mod report;

pub use ladder::Ladder;
pub(crate) use ladder::{Drought, contained};
pub use process::{Process, ProcessReport, Release, kill_process};

pub use report::{Considered, Held, OomReport, Reason, Skipped};
use report::{REPORTS_MAX, Reports};

use crate::mm_struct::Mm;
use crate::mmu_notifier::MmId;
use lockdep::sync::{Condvar, Mutex};
use std::sync::Arc;

/// What came of running out of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Something may still free memory, or there is nobody to kill.
    Wait,
    /// Somebody was killed, or is being reaped, or memory moves after all.
    Acted,
}

/// What the reaper does with a victim that devices subscribe to. To show the difference; nobody
/// who wants to get memory back sets it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Reaping {
    /// It asks each device without blocking, and takes what none refuses.
    #[default]
    Asks,
    /// It leaves such a victim alone, as Linux did before 4.19: a notifier might block. Then
    /// somebody else is killed although the first still has all its memory.
    GivesUp,
}

/// The state of the OOM killer of a memory cgroup.
pub(crate) struct Control {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    /// Who is being reaped. While there is somebody, nobody else is killed.
    victim: Option<Arc<Mm>>,
    /// Who was killed with it, and is reaped after it. There is room for every address space.
    group: Vec<Arc<Mm>>,
    /// A pin of a reaped victim was dropped: there may be more to free.
    is_woken: bool,
    /// Reaped once, with something left behind.
    leftovers: Vec<Arc<Mm>>,
    reaping: Reaping,
    reports: Reports,
}

impl Control {
    pub(crate) fn new() -> Self {
        let state = State {
            victim: None,
            group: Vec::new(),
            is_woken: false,
            leftovers: Vec::with_capacity(REPORTS_MAX),
            reaping: Reaping::default(),
            reports: Reports::new(),
        };
        Self {
            state: Mutex::new("mm.oom", state),
            wake: Condvar::new("mm.oom.wake"),
        }
    }

    pub(crate) fn wake_reaper(&self) {
        self.state.lock().is_woken = true;
        self.wake.notify_all();
    }

    /// There are `nr` address spaces: from now on that many can be killed without allocating.
    pub(crate) fn make_room(&self, nr: usize) {
        let mut state = self.state.lock();
        let missing = nr.saturating_sub(state.group.len());
        state.group.reserve(missing);
    }

    /// From now on the reaper deals with its victims like this.
    pub(crate) fn set_reaping(&self, reaping: Reaping) {
        self.state.lock().reaping = reaping;
    }

    /// The address space is gone.
    pub(crate) fn forget(&self, mm: MmId) {
        self.state.lock().leftovers.retain(|left| left.id() != mm);
    }
}
