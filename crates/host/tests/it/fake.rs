//! A memory manager small enough to be seen through: one lock, one state a page.

use lockdep::sync::Mutex;
use pinless_host::{
    CreateError, FaultMode, FaultService, HostMapping, HostMmu, Resolver, Unavailable,
};
use pinless_mm::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun};
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::primary_mmu::{Access, Detached, PrimaryMmu};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Stored,
    Standby,
    Mapped,
}

pub(crate) struct Books {
    pub(crate) place: Vec<Place>,
    store: Vec<PageBuf>,
    /// Pages whose faults end in an error.
    pub(crate) refused: BTreeMap<PageIndex, FaultError>,
}

pub(crate) struct Fake {
    mmu: Arc<HostMmu>,
    pub(crate) books: Mutex<Books>,
    /// Removes write protection without asking the books first.
    pub(crate) is_eager: AtomicBool,
    pub(crate) nr_read_faults: AtomicUsize,
    pub(crate) nr_write_faults: AtomicUsize,
    pub(crate) nr_stale: AtomicUsize,
}

/// The first contents of a page: its number in every word, and the place of the word.
pub(crate) fn pattern(page: PageIndex) -> PageBuf {
    let mut buf = [0; PAGE_SIZE];
    for (i, word) in buf.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_of(page, i).to_ne_bytes());
    }
    buf
}

pub(crate) fn word_of(page: PageIndex, i: usize) -> u64 {
    u64::from(page) << 32 | i as u64
}

impl Fake {
    /// A manager with every page stored.
    pub(crate) fn new(mmu: Arc<HostMmu>) -> Arc<Self> {
        let nr = mmu.nr_pages();
        Arc::new(Self {
            books: Mutex::new(
                "test.books",
                Books {
                    place: vec![Place::Stored; nr as usize],
                    store: (0..nr).map(pattern).collect(),
                    refused: BTreeMap::new(),
                },
            ),
            mmu,
            is_eager: AtomicBool::new(false),
            nr_read_faults: AtomicUsize::new(0),
            nr_write_faults: AtomicUsize::new(0),
            nr_stale: AtomicUsize::new(0),
        })
    }

    /// Takes the pages away that are mapped, to standby, in runs as long as can be. Answers how
    /// many it got.
    pub(crate) fn detach(&self, run: PageRun) -> usize {
        let mut books = self.books.lock();
        let mut nr_done = 0;
        let mut first = run.first;
        while first < run.end() {
            let mapped = books.place[first as usize..run.end() as usize]
                .iter()
                .take_while(|place| **place == Place::Mapped)
                .count();
            if mapped > 0 {
                nr_done += self.detach_mapped(&mut books, PageRun::new(first, mapped as u32));
            }
            first += mapped.max(1) as u32;
        }
        nr_done
    }

    fn detach_mapped(&self, books: &mut Books, run: PageRun) -> usize {
        let mut outcome = vec![Detached::Hole; run.nr as usize];
        self.mmu.detach(run, &mut outcome).unwrap();
        let mut nr_done = 0;
        for (page, outcome) in run.pages().zip(&outcome) {
            match outcome {
                Detached::Done => {
                    books.place[page as usize] = Place::Standby;
                    nr_done += 1;
                }
                Detached::Busy => {}
                Detached::Hole => panic!("page {page} was there, and now it is a hole"),
            }
        }
        nr_done
    }

    /// Stores the pages that are in standby.
    pub(crate) fn store(&self, run: PageRun) {
        let mut books = self.books.lock();
        for page in run.pages() {
            if books.place[page as usize] == Place::Standby {
                self.mmu
                    .read_detached(page, &mut books.store[page as usize]);
                self.mmu.free_detached(PageRun::single(page)).unwrap();
                books.place[page as usize] = Place::Stored;
            }
        }
    }

    pub(crate) fn refuse(&self, page: PageIndex, error: FaultError) {
        self.books.lock().refused.insert(page, error);
    }

    pub(crate) fn nr_faults(&self) -> usize {
        self.nr_read_faults.load(Ordering::Relaxed) + self.nr_write_faults.load(Ordering::Relaxed)
    }

    pub(crate) fn nr_stale(&self) -> usize {
        self.nr_stale.load(Ordering::Relaxed)
    }
}

impl FaultHandler for Fake {
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
        let nr = match access {
            Access::Read => &self.nr_read_faults,
            Access::Write => &self.nr_write_faults,
        };
        nr.fetch_add(1, Ordering::Relaxed);
        if access == Access::Write && self.is_eager.load(Ordering::Relaxed) {
            // Before the lock, so that it races with a move of the same page: it may.
            self.mmu.protect(PageRun::single(page), access)?;
        }
        let mut books = self.books.lock();
        if let Some(error) = books.refused.get(&page) {
            return Err(*error);
        }
        let run = PageRun::single(page);
        match books.place[page as usize] {
            Place::Mapped if access == Access::Write => self.mmu.protect(run, Access::Write)?,
            Place::Mapped => {}
            Place::Standby => self.mmu.reattach(run)?,
            Place::Stored => self
                .mmu
                .map_filled(page, &books.store[page as usize], access)?,
        }
        books.place[page as usize] = Place::Mapped;
        Ok(())
    }

    fn stale_dma(&self, _page: PageIndex) {
        self.nr_stale.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether the machine lacks what the test needs, said aloud.
pub(crate) fn is_missing(error: CreateError) -> bool {
    match error {
        CreateError::Unavailable(Unavailable { .. }) | CreateError::Features(_) => {
            skip(&error.to_string());
            true
        }
        other => panic!("{other}"),
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn skip(what: &str) {
    eprintln!("skipped: no {}", what.trim_start_matches("no "));
}

/// A bare MMU, or nothing where the machine has none.
pub(crate) fn mmu(nr_pages: u32, side: impl Into<Side>) -> Option<HostMmu> {
    let side = side.into();
    let made = match side.memory {
        Memory::Private => HostMmu::create(nr_pages, side.faults),
        Memory::Shared => HostMmu::create_shared(nr_pages, side.faults),
    };
    made.map_err(is_missing).ok()
}

/// A mapping without a manager, or nothing where the machine has none.
pub(crate) fn mapping(nr_pages: u32, side: Side) -> Option<HostMapping> {
    let resolver = match side.faults {
        FaultMode::Service => Resolver::Service(FaultService::start(1).unwrap()),
        FaultMode::InThread => Resolver::InThread,
    };
    let made = match side.memory {
        Memory::Private => HostMapping::create(nr_pages, resolver),
        Memory::Shared => HostMapping::create_shared(nr_pages, resolver),
    };
    made.map_err(is_missing).ok()
}

/// A mapping with a fake manager behind it.
pub(crate) fn managed(nr_pages: u32, side: impl Into<Side>) -> Option<(HostMapping, Arc<Fake>)> {
    let mut mapping = mapping(nr_pages, side.into())?;
    let fake = Fake::new(mapping.mmu());
    mapping.attach(fake.clone()).unwrap();
    Some((mapping, fake))
}

/// What is behind a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Memory {
    Private,
    Shared,
}

/// What is behind a mapping, and who resolves its faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Side {
    pub(crate) memory: Memory,
    pub(crate) faults: FaultMode,
}

/// Where it makes no difference what is behind the mapping.
impl From<FaultMode> for Side {
    fn from(faults: FaultMode) -> Self {
        Self {
            memory: Memory::Private,
            faults,
        }
    }
}

const fn side(memory: Memory, faults: FaultMode) -> Side {
    Side { memory, faults }
}

pub(crate) const MODES: [Side; 4] = [
    side(Memory::Private, FaultMode::Service),
    side(Memory::Private, FaultMode::InThread),
    side(Memory::Shared, FaultMode::Service),
    side(Memory::Shared, FaultMode::InThread),
];
