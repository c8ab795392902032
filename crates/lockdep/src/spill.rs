//! Room for held locks beyond those that a thread keeps itself, shared by all threads.

use crate::sync::raw::RawLock;
use crate::task::{Held, NR_INLINE};

/// A held lock of some task.
struct Spilled {
    task: usize,
    depth: u32,
    held: Held,
}

/// How many locks may be spilled at one time, by all threads together.
const NR_SPILLED_MAX: usize = crate::room(16 * 1024);

/// In the order of spilling, which within a task is the order of depth.
static SPILLED: RawLock<Vec<Spilled>> = RawLock::new(Vec::new());

/// Makes room, so that later calls do not allocate.
pub(crate) fn start() {
    SPILLED.lock().reserve_exact(NR_SPILLED_MAX);
}

/// Files a lock; false when there is no more room.
pub(crate) fn push(task: usize, depth: u32, held: Held) -> bool {
    let mut spilled = SPILLED.lock();
    if spilled.len() >= NR_SPILLED_MAX {
        return false;
    }
    spilled.push(Spilled { task, depth, held });
    true
}

pub(crate) fn get(task: usize, depth: u32) -> Held {
    let spilled = SPILLED.lock();
    let mut own = spilled.iter().rev().filter(|s| s.task == task);
    own.find(|s| s.depth == depth)
        .expect("a lock beyond the inline ones was spilled")
        .held
}

pub(crate) fn set(task: usize, depth: u32, held: Held) {
    let mut spilled = SPILLED.lock();
    let mut own = spilled.iter_mut().rev().filter(|s| s.task == task);
    if let Some(found) = own.find(|s| s.depth == depth) {
        found.held = held;
    }
}

/// Forgets what the task holds at this depth and above.
pub(crate) fn truncate(task: usize, depth: u32) {
    let depth = depth.max(NR_INLINE);
    SPILLED.lock().retain(|s| s.task != task || s.depth < depth);
}
