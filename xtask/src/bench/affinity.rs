//! Which processors the threads of a benchmark run on.

use super::report::BenchError;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Binds the calling thread, and those that it starts, to one processor until this is dropped; a
/// thread that was started meanwhile stays bound.
pub(super) struct Bound {
    before: CpuSet,
}

impl Bound {
    pub(super) fn to(cpu: usize) -> Result<Self, BenchError> {
        let failed = |error| BenchError(format!("cannot bind a thread to a processor: {error}"));
        let before = sched_getaffinity(None).map_err(failed)?;
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Where the thread ran before, it may run again.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Two processors that this thread may run on; `None` if there is but one.
pub(super) fn two_cpus() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    Some([cpus.next()?, cpus.next()?])
}
