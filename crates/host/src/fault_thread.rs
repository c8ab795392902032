//! Service threads: they resolve the faults of threads that wait in the kernel.
//!
//! A service has one or more threads, and each mapping belongs to one of them (its *shard*). So
//! one mapping's faults are resolved in the order in which they came, and a fault that waits for a
//! frame keeps the other mappings of its shard waiting, but nobody else: give a mapping whose
//! faults may wait long a service, or a shard, of its own.
//!
//! A service thread never touches managed memory (it would wait for itself) and never unmaps or
//! discards any. It blocks every signal but those that its own instructions raise.
//!
//! Linux counterpart: `fs/userfaultfd.c`.

use crate::cpu_latency::{CpuLatency, FOR_EVER_MS};
use crate::errno::Errno;
use crate::fork::is_forked_child;
use crate::lock_order;
use crate::plea::Pleas;
use crate::thread::{self, EngineAccess};
use crate::uffd::{Fault, MESSAGE_BATCH, Uffd};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use lockdep::sync::{Condvar, Mutex};
use pinless_mm::addr::{PAGE_SIZE, PageIndex};
use pinless_mm::env::number_threads;
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::primary_mmu::Access;
use pinless_mm::watch::prepare_thread;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The key of the descriptor that stops a shard; mappings have keys from 2 on.
const STOP_KEY: u64 = 0;
/// The key of the descriptor that says that there are pleas.
const PLEA_KEY: u64 = 1;

/// Descriptors told about in one wait.
const NR_EVENTS_MAX: usize = 16;

/// Signals that an instruction of the thread's own raises.
const OWN_SIGNALS: [i32; 6] = [
    libc::SIGBUS,
    libc::SIGSEGV,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
];

/// Addresses at which a mapping is used, in this process or another.
pub(crate) trait FaultSide: Send + Sync {
    /// What reports the faults there.
    fn uffd(&self) -> &Uffd;

    /// The page at an address.
    fn page_at(&self, address: usize) -> Option<PageIndex>;

    /// Has whoever waits for the page try again.
    fn wake(&self, page: PageIndex);

    /// Ends the accesses that wait for the page, if `error` says that no waiting helps.
    fn refuse(&self, page: PageIndex, error: FaultError);
}

/// One side of a mapping that a shard serves.
struct Served {
    side: Arc<dyn FaultSide>,
    handler: Arc<dyn FaultHandler>,
    life: Mutex<Life>,
    /// Told when the thread lets go of a mapping that is to be left alone.
    let_go: Condvar,
}

/// Whether a mapping is being served. Not a lock held meanwhile: a fault may wait for a frame.
#[derive(Default)]
struct Life {
    /// Faults of the mapping are being resolved.
    is_busy: bool,
    /// The mapping is to be left alone.
    is_closed: bool,
}

struct Shard {
    epoll: OwnedFd,
    stop: OwnedFd,
    is_stopping: AtomicBool,
    pleas: Pleas,
    served: Mutex<BTreeMap<u64, Arc<Served>>>,
}

/// A shard and its thread, which is taken when it ends.
type RunningShard = (Arc<Shard>, Option<JoinHandle<()>>);

/// Threads that resolve faults for mappings of [`crate::FaultMode::Service`].
///
/// They end when the service is dropped, which is after the last mapping that uses it.
pub struct FaultService {
    shards: Box<[RunningShard]>,
    nr_mappings: AtomicUsize,
    next_key: AtomicU64,
}

impl FaultService {
    /// Starts a service with `nr_threads` threads, at least one.
    ///
    /// # Errors
    ///
    /// The error number of the system call that failed.
    pub fn start(nr_threads: usize) -> Result<Arc<Self>, Errno> {
        Self::start_each((0..nr_threads.max(1)).map(|_| None))
    }

    /// Starts a service with a thread for each request, at least one, that keeps the idle
    /// processors of the whole machine awake while faults come and some milliseconds longer. A
    /// fault wakes two threads, which takes tens of microseconds where processors sleep.
    ///
    /// # Errors
    ///
    /// The error number of the system call that failed.
    ///
    /// # Panics
    ///
    /// Without a request.
    pub fn start_awake(requests: Vec<CpuLatency>) -> Result<Arc<Self>, Errno> {
        assert!(!requests.is_empty(), "a service without a thread");
        Self::start_each(requests.into_iter().map(Some))
    }

    fn start_each(
        threads: impl ExactSizeIterator<Item = Option<CpuLatency>>,
    ) -> Result<Arc<Self>, Errno> {
        lock_order::prime();
        number_threads(thread::thread_id);
        // In the first shard that fails, those before it are dropped, which ends their threads.
        let mut service = Self {
            shards: Box::default(),
            nr_mappings: AtomicUsize::new(0),
            next_key: AtomicU64::new(PLEA_KEY + 1),
        };
        let mut shards = Vec::with_capacity(threads.len());
        for latency in threads {
            match Shard::start(latency) {
                Ok(shard) => shards.push(shard),
                Err(errno) => {
                    service.shards = shards.into();
                    return Err(errno);
                }
            }
        }
        service.shards = shards.into();
        Ok(Arc::new(service))
    }

    /// How many threads there are.
    pub fn nr_threads(&self) -> usize {
        self.shards.len()
    }

    /// Serves a mapping, in the shard whose turn it is, until the answer is dropped.
    pub(crate) fn serve(
        self: &Arc<Self>,
        side: Arc<dyn FaultSide>,
        handler: Arc<dyn FaultHandler>,
    ) -> Result<Service, Errno> {
        // Relaxed: only distinct numbers are wanted.
        let turn = self.nr_mappings.fetch_add(1, Ordering::Relaxed);
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let shard = &self.shards[turn % self.shards.len()].0;
        let served = Arc::new(Served {
            side,
            handler,
            life: Mutex::new("host.served", Life::default()),
            let_go: Condvar::new("host.served.let_go"),
        });
        shard.served.lock().insert(key, Arc::clone(&served));
        let service = Service {
            _service: Arc::clone(self),
            shard: Arc::clone(shard),
            key,
            served,
        };
        // A failure drops `service`, which takes the mapping out again.
        let uffd = service.served.side.uffd().as_raw_fd();
        service.shard.watch(libc::EPOLL_CTL_ADD, uffd, key)?;
        Ok(service)
    }
}

impl Drop for FaultService {
    fn drop(&mut self) {
        if is_forked_child() {
            // The threads are the parent's, and so is what would stop them.
            return core::mem::forget(core::mem::take(&mut self.shards));
        }
        for (shard, thread) in &mut self.shards {
            shard.stop();
            if let Some(thread) = thread.take() {
                // An error says that the thread panicked, and it has said so itself.
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for FaultService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultService")
            .field("nr_threads", &self.nr_threads())
            .finish_non_exhaustive()
    }
}

/// A mapping is served, until this is dropped. The drop waits for a fault that is being resolved.
pub(crate) struct Service {
    /// The thread lives as long as what it serves.
    _service: Arc<FaultService>,
    shard: Arc<Shard>,
    key: u64,
    served: Arc<Served>,
}

/// Who serves a mapping, for threads that cannot resolve its faults themselves.
#[derive(Clone)]
pub(crate) struct Pleader {
    shard: Arc<Shard>,
    key: u64,
}

impl Pleader {
    /// Asks for a page of the mapping, and waits until it is there or is denied. Callable from a
    /// signal handler with little stack.
    pub(crate) fn plead(&self, page: PageIndex, access: Access) -> bool {
        self.shard.pleas.plead(self.key, page, access)
    }
}

impl Service {
    /// For threads that have to ask. Whoever has it lets go before this is dropped, or is not
    /// answered.
    pub(crate) fn pleader(&self) -> Pleader {
        Pleader {
            shard: Arc::clone(&self.shard),
            key: self.key,
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if is_forked_child() {
            // What is watched is watched for the parent.
            return;
        }
        let uffd = self.served.side.uffd().as_raw_fd();
        // Fails only if the mapping was never watched.
        let _ = self.shard.watch(libc::EPOLL_CTL_DEL, uffd, self.key);
        self.shard.served.lock().remove(&self.key);
        // The thread may have taken the mapping from the map before.
        self.served.close();
    }
}

impl Shard {
    fn start(latency: Option<CpuLatency>) -> Result<RunningShard, Errno> {
        // SAFETY: the calls take flags by value, and each descriptor that they make belongs to
        // nobody else.
        let (epoll, stop) = unsafe {
            let epoll = Errno::check(libc::epoll_create1(libc::EPOLL_CLOEXEC).into())?;
            let epoll = OwnedFd::from_raw_fd(epoll as RawFd);
            let stop = Errno::check(libc::eventfd(0, libc::EFD_CLOEXEC).into())?;
            (epoll, OwnedFd::from_raw_fd(stop as RawFd))
        };
        let shard = Arc::new(Self {
            epoll,
            stop,
            is_stopping: AtomicBool::new(false),
            pleas: Pleas::new()?,
            served: Mutex::new("host.shard", BTreeMap::new()),
        });
        shard.watch(libc::EPOLL_CTL_ADD, shard.stop.as_raw_fd(), STOP_KEY)?;
        shard.watch(libc::EPOLL_CTL_ADD, shard.pleas.bell(), PLEA_KEY)?;
        let thread = std::thread::Builder::new()
            .name("pinless-fault".into())
            .spawn({
                let shard = Arc::clone(&shard);
                move || shard.run(latency)
            })
            .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        Ok((shard, Some(thread)))
    }

    fn watch(&self, operation: i32, fd: RawFd, key: u64) -> Result<(), Errno> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: key,
        };
        // SAFETY: `event` is valid and borrowed for the call.
        let done =
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &raw mut event) };
        Errno::check(done.into()).map(drop)
    }

    fn stop(&self) {
        // Release: pairs with the acquire in `run`.
        self.is_stopping.store(true, Ordering::Release);
        let one = 1_u64;
        // SAFETY: the call reads the 8 bytes of `one`.
        unsafe { libc::write(self.stop.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// The life of a service thread. Allocates nothing after its start.
    fn run(&self, mut latency: Option<CpuLatency>) {
        block_signals();
        prepare_thread();
        // For as long as it lives: a fault of this thread in managed memory is a bug.
        let _depth = thread::enter_handler();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; NR_EVENTS_MAX];
        // Acquire: pairs with the release in `stop`.
        while !self.is_stopping.load(Ordering::Acquire) {
            // SAFETY: the buffer holds as many events as the call is told, and is borrowed for
            // it.
            let nr = unsafe {
                libc::epoll_wait(
                    self.epoll.as_raw_fd(),
                    events.as_mut_ptr(),
                    NR_EVENTS_MAX as i32,
                    latency.as_ref().map_or(FOR_EVER_MS, CpuLatency::wait_ms),
                )
            };
            // Negative when a debugger interrupted the wait: look again.
            for event in events.iter().take(usize::try_from(nr).unwrap_or(0)) {
                let key = event.u64;
                if key == PLEA_KEY {
                    self.pleas.answer(|key, page, access| {
                        let served = self.served(key);
                        served.is_some_and(|served| served.grant(page, access))
                    });
                } else if let Some(served) = self.served(key) {
                    served.resolve_waiting();
                }
            }
            if let Some(latency) = &mut latency {
                match nr {
                    0 => latency.withdraw(),
                    // After the faults: who waits need not wait for this.
                    1.. => latency.make(),
                    _ => {}
                }
            }
        }
    }

    fn served(&self, key: u64) -> Option<Arc<Served>> {
        self.served.lock().get(&key).cloned()
    }
}

impl Served {
    /// Begins to resolve faults, unless the mapping is to be left alone.
    fn begin(&self) -> Option<Busy<'_>> {
        let mut life = self.life.lock();
        if life.is_closed {
            return None;
        }
        life.is_busy = true;
        Some(Busy(self))
    }

    /// Has the mapping left alone, and waits until it is.
    fn close(&self) {
        let mut life = self.life.lock();
        life.is_closed = true;
        drop(self.let_go.wait_while(life, |life| life.is_busy));
    }

    /// Resolves one batch of the faults that wait. What is left raises the next event, so that a
    /// busy mapping does not keep the others of its shard waiting.
    fn resolve_waiting(&self) {
        let Some(_busy) = self.begin() else { return };
        // An error says that the descriptor cannot be read, and then nobody waits there.
        let nr = self.side.uffd().read_faults(|fault| self.resolve(fault));
        debug_assert!(!nr.is_ok_and(|nr| nr > MESSAGE_BATCH));
    }

    /// Has a page brought in for a thread that pleads for it; false when it cannot be had.
    fn grant(&self, page: PageIndex, access: Access) -> bool {
        self.begin()
            .is_some_and(|_busy| self.handler.serve(page, access).is_ok())
    }

    fn resolve(&self, fault: Fault) {
        let Some(page) = self.side.page_at(fault.address) else {
            return;
        };
        let page_address = fault.address & !(PAGE_SIZE - 1);
        match thread::engine_access(fault.thread, page_address) {
            EngineAccess::NotAnEngine => {}
            EngineAccess::Repeated => return,
            EngineAccess::New => {
                self.handler.stale_dma(page);
                // Not by poison: the page may be there, but protected against writes; and the
                // program may have it, at any time.
                return thread::interrupt_engine(fault.thread, fault.address);
            }
        }
        self.handler.touched(fault.thread);
        let access = if fault.is_write {
            Access::Write
        } else {
            Access::Read
        };
        match self.handler.serve(page, access) {
            // The page may have been there already, for a message that came twice, and then
            // nothing woke the thread.
            Ok(()) => self.side.wake(page),
            Err(error) => self.side.refuse(page, error),
        }
    }
}

/// The time in which faults of a mapping are resolved.
struct Busy<'a>(&'a Served);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut life = self.0.life.lock();
        life.is_busy = false;
        let is_awaited = life.is_closed;
        drop(life);
        if is_awaited {
            self.0.let_go.notify_all();
        }
    }
}

/// Blocks all signals in this thread but those that its own instructions raise.
fn block_signals() {
    // SAFETY: zero is a valid value of a set; the calls read and write it and nothing else.
    unsafe {
        let mut set: libc::sigset_t = core::mem::zeroed();
        libc::sigfillset(&mut set);
        for signal in OWN_SIGNALS {
            libc::sigdelset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, core::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu_latency::tests::{next_us, request};

    #[test]
    fn processors_are_kept_awake_while_there_is_something_to_do() {
        let (latency, mut told) = request();
        let service = FaultService::start_awake(vec![latency]).unwrap();
        for _ in 0..2 {
            // Of no mapping: denied, but an event like a fault.
            assert!(!service.shards[0].0.pleas.plead(u64::MAX, 0, Access::Read));
            assert_eq!(next_us(&mut told), 0);
            assert_eq!(next_us(&mut told), -1);
        }
    }
}
