//! A field to test in: managed memory with its workers, files and pipes.

use fastrand::Rng;
use pinless_host::io_uring::{Kind, Ring};
use pinless_host::{CreateError, FaultService, HostMapping, Resolver};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::env::Clock;
use pinless_mm::limits::Limits;
use pinless_mm::mm_struct::{Advice, Vma};
use pinless_mm::mmu_notifier::{Event, Refused};
use pinless_mm::page::State;
use pinless_mm::{Memcg, MmHandle};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

struct TestClock(Instant);

impl Clock for TestClock {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// A memory cgroup with its workers, and one mapping in it.
pub(crate) struct Field {
    // The mapping's address space goes first, then the memory behind it, then the workers.
    pub(crate) mm: MmHandle,
    pub(crate) vma: Arc<Vma>,
    pub(crate) mapping: HostMapping,
    pub(crate) memcg: Arc<Memcg>,
    service: Arc<FaultService>,
    workers: Vec<JoinHandle<()>>,
}

impl Field {
    /// `nr_pages` pages over `frames` frames; `None`, with a line that says why, where the machine
    /// has no userfaultfd.
    pub(crate) fn new(nr_pages: u32, frames: u64) -> Option<Self> {
        let service = FaultService::start(1).expect("threads");
        let resolver = Resolver::Service(Arc::clone(&service));
        let mut mapping = match HostMapping::create(nr_pages, resolver) {
            Ok(mapping) => mapping,
            Err(why @ (CreateError::Unavailable(_) | CreateError::Features(_))) => {
                return skip(&format!("userfaultfd: {why}"));
            }
            Err(error) => panic!("{error}"),
        };
        let mut limits = Limits::new(frames * PAGE_SIZE as u64);
        limits.zswap_max_bytes = 64 << 20;
        // Long enough that only a true hang runs into it.
        limits.settle_deadline = Duration::from_secs(60);
        limits.fault_deadline = Duration::from_secs(60);
        let memcg = Memcg::new(limits, Arc::new(TestClock(Instant::now()))).expect("room");
        let mm = memcg.new_mm("field");
        let vma = mm.map(mapping.mmu()).expect("an address space that lives");
        mapping.attach(Arc::clone(&vma) as _).expect("registered");
        let run = |work: fn(&Memcg)| {
            let memcg = Arc::clone(&memcg);
            std::thread::spawn(move || work(&memcg))
        };
        let workers = vec![run(Memcg::run_reclaim), run(Memcg::run_settle)];
        Some(Self {
            mm,
            vma,
            mapping,
            memcg,
            service,
            workers,
        })
    }

    /// Another mapping in the same address space.
    pub(crate) fn map(&self, nr_pages: u32) -> (HostMapping, Arc<Vma>) {
        let resolver = Resolver::Service(Arc::clone(&self.service));
        let mut mapping = HostMapping::create(nr_pages, resolver).expect("made one before");
        let vma = self.mm.map(mapping.mmu()).expect("it lives");
        mapping.attach(Arc::clone(&vma) as _).expect("registered");
        (mapping, vma)
    }

    pub(crate) fn state(&self, page: PageIndex) -> State {
        self.vma.page_state(page)
    }

    /// Advises once, and expects no error.
    pub(crate) fn page_out(&self, run: PageRun) {
        self.vma.advise(run, Advice::PageOut).expect("told");
    }

    /// Advises until every page is out. A worker that works on one of them at the same moment
    /// makes a single piece of advice come to nothing.
    pub(crate) fn evict(&self, run: PageRun) {
        lockdep::sync::spin_wait("test.evicted", 0, || {
            self.page_out(run);
            run.pages().all(|page| self.state(page) == State::Swapped)
        });
    }

    /// Opens a non-blockable bracket over `run`, and closes it. Tries until it is not refused:
    /// another thread may have the ring's lock for a moment.
    pub(crate) fn invalidate(&self, run: PageRun, event: Event) {
        lockdep::sync::spin_wait("test.invalidated", 0, || {
            self.try_invalidate(run, event).is_ok()
        });
    }

    /// Opens a non-blockable bracket over `run`, and closes it.
    pub(crate) fn try_invalidate(&self, run: PageRun, event: Event) -> Result<(), Refused> {
        let (start, end) = (self.vma.address(run.first), self.vma.address(run.end()));
        self.mm
            .notifiers()
            .start_nonblock(start, end, event)
            .map(drop)
    }

    pub(crate) fn read(&self, bytes: Range<u64>) -> Vec<u8> {
        let mut into = vec![0; (bytes.end - bytes.start) as usize];
        self.mapping.read_at(bytes.start, &mut into).expect("there");
        into
    }

    pub(crate) fn write(&self, at: u64, from: &[u8]) {
        self.mapping.write_at(at, from).expect("there");
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        self.memcg.stop();
        for worker in self.workers.drain(..) {
            worker.join().expect("a worker does not panic");
        }
    }
}

/// A ring; `None`, with a line that says why, where the machine forbids it.
pub(crate) fn ring(entries: u32, nr_slots: u32, kind: Kind) -> Option<Ring> {
    match Ring::new(entries, nr_slots, kind) {
        Ok(ring) => Some(ring),
        Err(error) => skip(&error.to_string()),
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn skip<T>(why: &str) -> Option<T> {
    eprintln!("skipped: {why}");
    None
}

/// The bytes of some pages.
pub(crate) fn bytes_of(run: PageRun) -> Range<u64> {
    let page = PAGE_SIZE as u64;
    u64::from(run.first) * page..u64::from(run.end()) * page
}

/// `nr` pages from `first` on.
pub(crate) fn pages(first: PageIndex, nr: u32) -> PageRun {
    PageRun::new(first, nr)
}

/// Contents of some pages that no other `salt` has.
pub(crate) fn noise(salt: u64, nr_pages: u32) -> Vec<u8> {
    let mut noise = vec![0; nr_pages as usize * PAGE_SIZE];
    Rng::with_seed(salt).fill(&mut noise);
    noise
}

/// A file without a name.
pub(crate) fn file() -> File {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("pinless-io-uring-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&path);
    std::fs::remove_file(&path).expect("just made");
    file.expect("a place for temporary files")
}

pub(crate) fn file_with(contents: &[u8]) -> File {
    use std::os::unix::fs::FileExt;
    let file = file();
    file.write_all_at(contents, 0).expect("room");
    file
}

/// A descriptor of something that has one.
pub(crate) fn fd(of: &impl AsFd) -> BorrowedFd<'_> {
    of.as_fd()
}
