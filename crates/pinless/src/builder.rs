//! Setting up: bounds in, a running system out.

use crate::events::{Events, Sink};
use crate::io_count::IoCount;
use crate::{FaultMode, Pinless};
use core::fmt;
use core::time::Duration;
use pinless_host::{
    Capabilities, CpuLatency, Errno, FaultService, MonotonicClock, ProbeError, SwapFile,
    SwapFileError, probe,
};
use pinless_mm::Memcg;
use pinless_mm::bus::Checks;
use pinless_mm::event::Record;
use pinless_mm::limits::{LimitError, Limits, SPARES};
use pinless_mm::swap::CLUSTER_BYTES;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Threads that resolve faults, when nobody says how many.
const FAULT_THREADS: usize = 2;

/// A worker's name, its loop, and how many there are.
type Worker = (&'static str, fn(&Memcg), usize);

const WORKERS: [Worker; 5] = [
    ("pinless-reclaim", Memcg::run_reclaim, 1),
    ("pinless-settle", Memcg::run_settle, 1),
    ("pinless-reaper", Memcg::run_reaper, 1),
    ("pinless-compact", Memcg::run_compact, 1),
    ("pinless-spare", Memcg::run_spare, SPARES),
];

/// The worker that a file under the store needs.
const WRITE_BACK: Worker = ("pinless-file", Memcg::run_write_back, 1);

/// Staging buffers of a file under the store: operations that can be under way at once.
const SWAP_FILE_BUFFERS: u32 = 8;

/// What a [`Pinless`] is to be like.
#[must_use = "nothing runs before `build`"]
pub struct Builder {
    limits: Limits,
    fault_threads: usize,
    fault_mode: FaultMode,
    keeps_processors_awake: bool,
    needs_kernel_faults: bool,
    /// The folder, and the bytes that there is room for.
    swap_file: Option<(PathBuf, u64)>,
    sink: Option<Sink>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("limits", &self.limits)
            .field("fault_threads", &self.fault_threads)
            .field("fault_mode", &self.fault_mode)
            .finish_non_exhaustive()
    }
}

/// Why there is no [`Pinless`].
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// The machine lacks something.
    Probe(ProbeError),
    /// The machine resolves faults of user mode only, and more was asked for.
    UserModeOnly,
    /// The bounds make no sense.
    Limit(LimitError),
    /// The file under the compressed store would be smaller than one cluster.
    SwapFileSize {
        /// The bytes that it was to have at most.
        max_bytes: u64,
    },
    /// There is no file under the compressed store.
    SwapFile(SwapFileError),
    /// The service threads cannot be started.
    FaultService(Errno),
    /// Processors cannot be kept awake.
    CpuLatency(Errno),
    /// A worker thread cannot be started.
    Thread {
        /// Its name.
        name: &'static str,
        /// What the system answered.
        error: io::Error,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(error) => error.fmt(f),
            Self::UserModeOnly => f.write_str(
                "faults of system calls and of KVM cannot be resolved here, those of user mode \
                 can; give access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1, or \
                 reach memory through guards and do without `require_kernel_faults`",
            ),
            Self::Limit(error) => error.fmt(f),
            Self::SwapFileSize { max_bytes } => write!(
                f,
                "a swap file of {max_bytes} bytes holds nothing: give it {CLUSTER_BYTES} or more"
            ),
            Self::SwapFile(error) => error.fmt(f),
            Self::FaultService(errno) => write!(
                f,
                "the threads that resolve faults cannot be started: {errno}; look at the limits \
                 on threads and open files (ulimit -u, ulimit -n)"
            ),
            Self::CpuLatency(errno) => write!(
                f,
                "processors cannot be kept awake: {errno}; give write access to \
                 /dev/cpu_dma_latency, or do without `keep_processors_awake`"
            ),
            Self::Thread { name, error } => write!(
                f,
                "the thread {name} cannot be started: {error}; look at the limit on threads \
                 (ulimit -u)"
            ),
        }
    }
}

impl std::error::Error for BuildError {}

impl Builder {
    /// At most `max_bytes` of frames, and twice as much compressed.
    pub fn new(max_bytes: u64) -> Self {
        Self::with_limits(Limits::new(max_bytes))
    }

    /// With these bounds.
    pub fn with_limits(limits: Limits) -> Self {
        Self {
            limits,
            fault_threads: FAULT_THREADS,
            fault_mode: FaultMode::Service,
            keeps_processors_awake: false,
            needs_kernel_faults: false,
            swap_file: None,
            sink: None,
        }
    }

    /// At most so many compressed bytes (`memory.zswap.max`).
    pub fn zswap_max(mut self, bytes: u64) -> Self {
        self.limits.zswap_max_bytes = bytes;
        self
    }

    /// How long a fault waits for a frame before it ends in an error.
    pub fn fault_deadline(mut self, deadline: Duration) -> Self {
        self.limits.fault_deadline = deadline;
        self
    }

    /// How long a device that holds a page is waited for, by a worker that no fault waits for.
    pub fn settle_deadline(mut self, deadline: Duration) -> Self {
        self.limits.settle_deadline = deadline;
        self
    }

    /// How often the reaper goes over its victim, and the pause between two passes.
    pub fn reap(mut self, passes: u32, interval: Duration) -> Self {
        self.limits.reap_passes = passes;
        self.limits.reap_interval = interval;
        self
    }

    /// How long a callback may take that may block, and one that may not, before it is convicted
    /// and a spare thread steps in for the worker that is in it. Less than a millisecond is an
    /// error of [`build`](Self::build).
    pub fn callback_budgets(mut self, blockable: Duration, nonblock: Duration) -> Self {
        self.limits.callback_budget = blockable;
        self.limits.nonblock_budget = nonblock;
        self
    }

    /// How far the accesses of devices are checked; by generations otherwise. Less than that is for
    /// measurements.
    pub fn bus_checks(mut self, checks: Checks) -> Self {
        self.limits.bus_checks = checks;
        self
    }

    /// Whether all address spaces are killed together when memory runs out (`memory.oom.group`).
    pub fn oom_group(mut self, together: bool) -> Self {
        self.limits.oom_group = together;
        self
    }

    /// How many service threads resolve faults, at least one; each mapping belongs to one of them.
    /// A fault that waits for a frame holds up the other mappings of its thread.
    pub fn fault_threads(mut self, nr: usize) -> Self {
        self.fault_threads = nr;
        self
    }

    /// Keeps the idle processors of the whole machine awake while service threads resolve faults,
    /// and for some milliseconds after: they poll in place of sleeping, which takes power and, in
    /// a virtual machine, time of the host's. Each fault of a service thread wakes two threads, and
    /// a processor that sleeps takes tens of microseconds to come back. Takes write access to
    /// `/dev/cpu_dma_latency`, without which [`build`](Self::build) fails.
    pub fn keep_processors_awake(mut self) -> Self {
        self.keeps_processors_awake = true;
        self
    }

    /// Who resolves the faults of mappings that say nothing of it; service threads otherwise.
    pub fn fault_mode(mut self, mode: FaultMode) -> Self {
        self.fault_mode = mode;
        self
    }

    /// Moves what nobody has asked for out of the compressed store, to a file without a name in
    /// `folder`, of at most `max_bytes`, rounded down to clusters of 64 KiB, which are written past
    /// the page cache. Less than one cluster is an error of [`build`](Self::build).
    pub fn swap_file(mut self, folder: impl Into<PathBuf>, max_bytes: u64) -> Self {
        self.swap_file = Some((folder.into(), max_bytes));
        self
    }

    /// Builds only where service threads also resolve the faults of system calls and of KVM.
    pub fn require_kernel_faults(mut self) -> Self {
        self.needs_kernel_faults = true;
        self
    }

    /// Has `sink` told of what happens in the address spaces, in a thread of its own and some
    /// milliseconds later. Without this nobody notes anything. Replaces the one before.
    ///
    /// The sink may block and allocate, and call anything here. Events that happen while it is
    /// slow are dropped in the end, and counted: see [`Pinless::events_lost`]. If it panics, it is
    /// not called again.
    pub fn on_event(mut self, sink: impl FnMut(&Record) + Send + 'static) -> Self {
        self.sink = Some(Box::new(sink));
        self
    }

    /// Has the `tracing` crate told of what happens: see [`on_event`](Self::on_event).
    #[cfg(feature = "tracing")]
    pub fn trace_events(self) -> Self {
        self.on_event(crate::events::to_tracing)
    }

    /// Probes the machine, sets everything aside, and starts the threads.
    ///
    /// # Errors
    ///
    /// See [`BuildError`].
    pub fn build(self) -> Result<Pinless, BuildError> {
        self.limits.check().map_err(BuildError::Limit)?;
        self.check_swap_file()?;
        let capabilities = self.probe()?;
        let memcg = self.memcg()?;
        let faults = self.faults()?;
        let thread = |name| move |error| BuildError::Thread { name, error };
        let events = self.sink.map(Events::start).transpose();
        let events = events.map_err(thread(Events::THREAD))?;
        // From here on a drop stops and joins what was started.
        let mut pinless = Pinless {
            memcg,
            faults,
            capabilities,
            fault_mode: self.fault_mode,
            io: Arc::new(IoCount::default()),
            events,
            workers: Vec::new(),
        };
        let write_back = self.swap_file.is_some().then_some(WRITE_BACK);
        for (name, run, nr) in WORKERS.into_iter().chain(write_back) {
            for _ in 0..nr {
                let worker = spawn(name, run, Arc::clone(&pinless.memcg)).map_err(thread(name))?;
                pinless.workers.push(worker);
            }
        }
        Ok(pinless)
    }

    fn faults(&self) -> Result<Arc<FaultService>, BuildError> {
        let started = if self.keeps_processors_awake {
            let requests = (0..self.fault_threads.max(1)).map(|_| CpuLatency::open());
            let requests: Result<_, _> = requests.collect();
            FaultService::start_awake(requests.map_err(BuildError::CpuLatency)?)
        } else {
            FaultService::start(self.fault_threads)
        };
        started.map_err(BuildError::FaultService)
    }

    fn memcg(&self) -> Result<Arc<Memcg>, BuildError> {
        let (limits, clock) = (self.limits.clone(), Arc::new(MonotonicClock));
        let Some((folder, max_bytes)) = &self.swap_file else {
            return Memcg::new(limits, clock).map_err(BuildError::Limit);
        };
        let nr_clusters = max_bytes / CLUSTER_BYTES as u64;
        let nr_clusters = u32::try_from(nr_clusters).unwrap_or(u32::MAX);
        let file = SwapFile::create_in(folder, nr_clusters, SWAP_FILE_BUFFERS);
        let file = Arc::new(file.map_err(BuildError::SwapFile)?);
        Memcg::with_file(limits, clock, file).map_err(BuildError::Limit)
    }

    fn check_swap_file(&self) -> Result<(), BuildError> {
        match self.swap_file {
            Some((_, max_bytes)) if max_bytes < CLUSTER_BYTES as u64 => {
                Err(BuildError::SwapFileSize { max_bytes })
            }
            _ => Ok(()),
        }
    }

    fn probe(&self) -> Result<Capabilities, BuildError> {
        let capabilities = probe().map_err(BuildError::Probe)?;
        if self.needs_kernel_faults && !capabilities.serves_kernel_faults() {
            return Err(BuildError::UserModeOnly);
        }
        Ok(capabilities)
    }
}

fn spawn(name: &str, run: fn(&Memcg), memcg: Arc<Memcg>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || run(&memcg))
}
