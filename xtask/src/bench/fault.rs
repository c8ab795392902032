//! What one fault costs, beside the same steps without a memory manager, and how many faults a
//! second several threads get.
//!
//! The memory has more frames than pages here, so nothing is reclaimed and only the way in counts.

use super::affinity::{Bound, two_cpus};
use super::picture::{Curves, Picture};
use super::report::{BenchError, Budget, Contender, Measured, Outcome, Row, Samples, interleave};
use lockdep::sync::Completion;
use lockdep::sync::park::Parker;
use pinless_host::{
    CpuLatency, FaultMode, FaultService, HostMapping, HostMmu, Resolver, attach_thread,
};
use pinless_mm::Memcg;
use pinless_mm::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun};
use pinless_mm::env::Clock;
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::Limits;
use pinless_mm::mm_struct::{Advice, MmHandle, Vma};
use pinless_mm::primary_mmu::{Access, Detached, PrimaryMmu};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

const NR_PAGES: u32 = 4096;
const ALL: PageRun = PageRun {
    first: 0,
    nr: NR_PAGES,
};
/// Threads that fault at once.
const NR_THREADS: [u32; 4] = [1, 2, 4, 8];

struct WallClock(Instant);

impl Clock for WallClock {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

fn failed(what: &str, error: impl Display) -> BenchError {
    BenchError(format!("cannot {what}: {error}"))
}

fn in_thread() -> Result<Resolver, BenchError> {
    Ok(Resolver::InThread)
}

fn service() -> Result<Resolver, BenchError> {
    let service = FaultService::start(1).map_err(|e| failed("start a fault service", e))?;
    Ok(Resolver::Service(service))
}

fn awake_service() -> Result<Resolver, BenchError> {
    let request = CpuLatency::open().map_err(|e| failed("keep processors awake", e))?;
    let service = FaultService::start_awake(vec![request]);
    let service = service.map_err(|e| failed("start a fault service", e))?;
    Ok(Resolver::Service(service))
}

/// A page of which half can be compressed away.
fn contents(page: PageIndex) -> PageBuf {
    let mut contents = [0; PAGE_SIZE];
    let mut word = u64::from(page) + 1;
    for bytes in contents[..PAGE_SIZE / 2].as_chunks_mut::<8>().0 {
        // Marsaglia's xorshift64.
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        *bytes = word.to_ne_bytes();
    }
    contents
}

/// Managed memory with contents.
struct Managed {
    host: HostMapping,
    vma: Arc<Vma>,
    _mm: MmHandle,
}

impl Managed {
    fn new(resolver: Resolver) -> Result<Self, BenchError> {
        let clock = Arc::new(WallClock(Instant::now()));
        let limits = Limits::new(4 * ALL.len_bytes() as u64);
        let memcg = Memcg::new(limits, clock).map_err(|e| failed("make a memory cgroup", e))?;
        let mm = memcg.new_mm("bench");
        let mut host =
            HostMapping::create(NR_PAGES, resolver).map_err(|e| failed("make a mapping", e))?;
        let vma = mm.map(host.mmu()).map_err(|e| failed("map it", e))?;
        host.attach(Arc::clone(&vma) as _)
            .map_err(|e| failed("attach it", e))?;
        let managed = Self { host, vma, _mm: mm };
        for page in ALL.pages() {
            let written = managed.host.write_at(offset(page), &contents(page));
            written.map_err(|e| failed("fill a page", e))?;
        }
        Ok(managed)
    }

    fn advise(&self, advice: Advice) -> Result<(), BenchError> {
        let advised = self.vma.advise(ALL, advice);
        advised.map_err(|e| failed("put pages aside", e))
    }

    fn hold(&self, page: PageIndex) -> Result<(), BenchError> {
        let pin = self
            .vma
            .pin(PageRun::single(page), Access::Read, Gfp::Kernel);
        pin.map(drop).map_err(|e| failed("hold a page", e))
    }

    fn load(&self, page: PageIndex) -> Result<(), BenchError> {
        load(&self.host, page)
    }
}

fn load(host: &HostMapping, page: PageIndex) -> Result<(), BenchError> {
    let loaded = host.load_u64(offset(page));
    loaded.map(drop).map_err(|e| failed("read a page", e))
}

fn offset(page: PageIndex) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

/// Every page once, in an order without a stride: else all but a few would be prefetched.
fn scattered() -> impl Iterator<Item = PageIndex> {
    const { assert!(NR_PAGES.is_power_of_two()) };
    // Each step can be undone in as many bits as a page number has, so no page comes twice.
    let mix = |nth: u32| {
        let spread = nth.wrapping_mul(0x9e37_79b1) % NR_PAGES;
        (spread ^ spread >> 6).wrapping_mul(0x85eb_ca6b) % NR_PAGES
    };
    (0..NR_PAGES).map(mix).map(|page| page ^ page >> 7)
}

/// Nanoseconds for a page: the median, so that what else the machine does counts little.
fn time(mut each: impl FnMut(PageIndex) -> Result<(), BenchError>) -> Result<Vec<f64>, BenchError> {
    let mut times = Vec::with_capacity(NR_PAGES as usize);
    let mut last = Instant::now();
    for page in scattered() {
        each(page)?;
        let now = Instant::now();
        times.push(now.duration_since(last).as_nanos() as f64);
        last = now;
    }
    Ok(vec![Samples::new(times).median()])
}

/// The steps of a hard fault and nothing else: one decompression and one copy.
struct ByHand {
    mmu: Arc<HostMmu>,
    stored: Vec<Vec<u8>>,
}

impl FaultHandler for ByHand {
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
        let mut contents = [0; PAGE_SIZE];
        let stored = &self.stored[page as usize];
        lz4_flex::block::decompress_into(stored, &mut contents).expect("compressed below");
        Ok(self.mmu.map_filled(page, &contents, access)?)
    }

    fn stale_dma(&self, _: PageIndex) {}
}

fn compressed(contents: &PageBuf) -> Vec<u8> {
    let mut room = vec![0; lz4_flex::block::get_maximum_output_size(PAGE_SIZE)];
    let len = lz4_flex::block::compress_into(contents, &mut room).expect("room for the worst");
    room.truncate(len);
    room
}

fn by_hand() -> Result<HostMapping, BenchError> {
    let mut host = HostMapping::create(NR_PAGES, Resolver::InThread)
        .map_err(|e| failed("make a mapping", e))?;
    let handler = ByHand {
        mmu: host.mmu(),
        stored: ALL
            .pages()
            .map(|page| compressed(&contents(page)))
            .collect(),
    };
    host.attach(Arc::new(handler))
        .map_err(|e| failed("attach it", e))?;
    Ok(host)
}

/// Where two threads run that wait for each other.
#[derive(Clone, Copy)]
struct Places {
    name: &'static str,
    asking: usize,
    answering: usize,
}

/// Both on one processor, and on two; nothing where there are not two.
fn places() -> Vec<Places> {
    let place = |name, asking, answering| Places {
        name,
        asking,
        answering,
    };
    let apart = |[asking, answering]: [usize; 2]| {
        vec![
            place("one_cpu", asking, asking),
            place("two_cpus", asking, answering),
        ]
    };
    two_cpus().map_or_else(Vec::new, apart)
}

/// What a service thread adds to a fault at least: one thread wakes another, and waits until that
/// has woken it.
fn hand_over(places: Places) -> Result<Vec<f64>, BenchError> {
    let (asked, answered) = (&Parker::new("bench.asked"), &Parker::new("bench.answered"));
    let _bound = Bound::to(places.asking)?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(move || {
            let bound = Bound::to(places.answering);
            for _ in ALL.pages() {
                asked.park();
                answered.unpark();
            }
            bound.map(drop)
        });
        let times = time(|_| {
            asked.unpark();
            answered.park();
            Ok(())
        });
        let ended = answering.join();
        ended.unwrap_or_else(|_| Err(BenchError("a thread panicked".into())))?;
        times
    })
}

/// Memory whose service thread is bound to a place.
struct Placed {
    places: Places,
    managed: Managed,
}

impl Placed {
    fn new(places: Places) -> Result<Self, BenchError> {
        // What is started now runs there for good.
        let _bound = Bound::to(places.answering)?;
        let managed = Managed::new(service()?)?;
        Ok(Self { places, managed })
    }

    fn time(&self) -> Result<Vec<f64>, BenchError> {
        self.managed.advise(Advice::PageOut)?;
        let _bound = Bound::to(self.places.asking)?;
        time(|page| self.managed.load(page))
    }
}

/// A mapping whose pages are moved without anybody's books.
fn bare() -> Result<HostMmu, BenchError> {
    let mmu = HostMmu::create(NR_PAGES, FaultMode::InThread);
    let mmu = mmu.map_err(|e| failed("make a mapping", e))?;
    for page in ALL.pages() {
        let filled = mmu.map_filled(page, &contents(page), Access::Write);
        filled.map_err(|e| failed("fill a page", e))?;
    }
    Ok(mmu)
}

/// How a page of managed memory is asked for.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    resolver: fn() -> Result<Resolver, BenchError>,
    ask: fn(&Managed, PageIndex) -> Result<(), BenchError>,
}

const GUARD: Way = way("guard", in_thread, Managed::hold);
const IN_THREAD: Way = way("in_thread", in_thread, Managed::load);
const SERVICE: Way = way("service", service, Managed::load);
const AWAKE: Way = way("service_awake", awake_service, Managed::load);

const fn way(
    name: &'static str,
    resolver: fn() -> Result<Resolver, BenchError>,
    ask: fn(&Managed, PageIndex) -> Result<(), BenchError>,
) -> Way {
    Way {
        name,
        resolver,
        ask,
    }
}

/// Each way that can be had here, and memory for it; and why one cannot.
fn ways(notes: &mut Vec<String>) -> Result<Vec<(Way, Managed)>, BenchError> {
    let mut ways = vec![GUARD, IN_THREAD, SERVICE];
    match CpuLatency::open() {
        Ok(_) => ways.push(AWAKE),
        Err(errno) => notes.push(format!(
            "skipped: {}: processors cannot be kept awake: {errno}",
            AWAKE.name
        )),
    }
    let with_memory = |way: Way| Ok((way, Managed::new((way.resolver)()?)?));
    ways.into_iter().map(with_memory).collect()
}

/// Thousand hard faults a second, with each number of threads, each thread with memory of its own
/// part.
fn rates(managed: &Managed, way: Way) -> Result<Vec<f64>, BenchError> {
    NR_THREADS
        .map(|nr| rate(managed, way, nr))
        .into_iter()
        .collect()
}

fn rate(managed: &Managed, way: Way, nr_threads: u32) -> Result<f64, BenchError> {
    managed.advise(Advice::PageOut)?;
    let go = &Completion::new("bench.go");
    let part = NR_PAGES / nr_threads;
    let seconds = std::thread::scope(|scope| {
        let run = |me: u32| {
            let _attached = attach_thread().map_err(|e| failed("attach a thread", e))?;
            go.wait();
            let mut mine = scattered().filter(|page| page / part == me);
            mine.try_for_each(|page| (way.ask)(managed, page))
        };
        let threads: Vec<_> = (0..nr_threads)
            .map(|me| scope.spawn(move || run(me)))
            .collect();
        let begun = Instant::now();
        go.complete_all();
        for thread in threads {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(BenchError("a thread panicked".into())))?;
        }
        Ok::<_, BenchError>(begun.elapsed().as_secs_f64())
    })?;
    Ok(f64::from(NR_PAGES) / seconds / 1e3)
}

const NOTES: [&str; 2] = [
    "a bare move is `PrimaryMmu::reattach`: one UFFDIO_MOVE; by hand is one trap, one \
     decompression and one UFFDIO_COPY in a handler without books",
    "a hand-over is two threads that wake each other in turn, as in each fault of a service \
     thread; both are bound, to the same processor or to two; service_awake keeps processors \
     from sleeping",
];

/// Rows for each kind of fault, and the rates as curves.
pub(super) fn run(rounds: u32) -> Result<Outcome, BenchError> {
    let _attached = attach_thread().map_err(|e| failed("attach the thread", e))?;
    let mut notes = NOTES.map(String::from).to_vec();
    let ours = ways(&mut notes)?;
    let (by_hand, bare) = (by_hand()?, bare()?);
    let places = places();
    let placed = places.iter().map(|places| Placed::new(*places));
    let placed = placed.collect::<Result<Vec<_>, _>>()?;
    let mut contenders = soft(&ours[0].1, &bare);
    contenders.push(Contender::new("hard/by hand", || {
        let zapped = by_hand.mmu().zap(ALL);
        zapped.map_err(|e| failed("give pages back", e))?;
        time(|page| load(&by_hand, page))
    }));
    for (way, managed) in &ours {
        contenders.push(Contender::new(format!("hard/{}", way.name), move || {
            managed.advise(Advice::PageOut)?;
            time(|page| (way.ask)(managed, page))
        }));
        let rates = move || rates(managed, *way);
        contenders.push(Contender::new(format!("rate/{}", way.name), rates));
    }
    for placed in &placed {
        let places = placed.places;
        let name = |what: &str| format!("{what}/{}", places.name);
        contenders.push(Contender::new(name("hand_over"), move || hand_over(places)));
        contenders.push(Contender::new(name("hard/service"), || placed.time()));
    }
    let measured = interleave(rounds, &mut contenders)?;
    let ways: Vec<Way> = ours.iter().map(|(way, _)| *way).collect();
    let mut rows = rows(&measured, &ways);
    let placed_rows = |places: &Places| placed_rows(&measured, *places);
    rows.extend(places.iter().flat_map(placed_rows));
    Ok(Outcome {
        rows,
        notes,
        picture: Some(Picture::Curves(curves(&measured, &ways))),
    })
}

/// A page that is still in its frame: through a guard, and moved back by the kernel alone.
fn soft<'a>(guarded: &'a Managed, bare: &'a HostMmu) -> Vec<Contender<'a>> {
    vec![
        Contender::new("soft/guard", || {
            guarded.advise(Advice::Cold)?;
            time(|page| guarded.hold(page))
        }),
        Contender::new("soft/bare", || {
            let mut outcome = vec![Detached::Hole; NR_PAGES as usize];
            let detached = bare.detach(ALL, &mut outcome);
            detached.map_err(|e| failed("move pages out", e))?;
            time(|page| {
                let back = bare.reattach(PageRun::single(page));
                back.map_err(|e| failed("move a page back", e))
            })
        }),
    ]
}

fn rows(measured: &Measured, ways: &[Way]) -> Vec<Row> {
    let row = |name: &str| Row::new(format!("fault/{name}"), "ns", measured.of(name, 0));
    let by_hand = || measured.of("hard/by hand", 0);
    let mut rows = vec![
        row("soft/guard")
            .beside("a bare move", measured.of("soft/bare", 0))
            .within(Budget::TimesPeerMax(1.5)),
        row("hard/in_thread")
            .beside("by hand", by_hand())
            .within(Budget::TimesPeerMax(1.15)),
        row("hard/guard").beside("by hand", by_hand()),
        row("hard/service").beside("by hand", by_hand()),
    ];
    if ways.iter().any(|way| way.name == AWAKE.name) {
        rows.push(row("hard/service_awake").beside("service", measured.of("hard/service", 0)));
    }
    for way in ways {
        let contender = format!("rate/{}", way.name);
        for (at, nr_threads) in NR_THREADS.iter().enumerate() {
            let name = format!("fault/{contender}/{nr_threads}");
            let row = Row::new(name, "kfault/s", measured.of(&contender, at));
            rows.push(row.beside("one thread", measured.of(&contender, 0)));
        }
    }
    rows
}

/// What each of two threads costs the other that runs on the same processor, or on another.
fn placed_rows(measured: &Measured, places: Places) -> [Row; 2] {
    let of = |what: &str| measured.of(&format!("{what}/{}", places.name), 0);
    let row = |what: &str| Row::new(format!("fault/{what}/{}", places.name), "ns", of(what));
    [
        row("hand_over"),
        row("hard/service").beside("a hand-over", of("hand_over")),
    ]
}

fn curves(measured: &Measured, ways: &[Way]) -> Curves {
    let rates = |way: &Way| {
        let contender = format!("rate/{}", way.name);
        let all = 0..NR_THREADS.len();
        (
            way.name.to_owned(),
            all.map(|at| measured.of(&contender, at).median()).collect(),
        )
    };
    Curves {
        title: "hard faults by threads".to_owned(),
        counted: "threads".to_owned(),
        unit: "kfault/s",
        counts: NR_THREADS.map(u64::from).to_vec(),
        lines: ways.iter().map(rates).collect(),
    }
}
