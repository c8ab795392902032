//! KVM guests that write all of their memory, of which a quarter is there.
//!
//! `PINLESS_KVM_EVICTIONS` says how many pages are taken away under each of them (10,000 otherwise,
//! a few seconds).

#![cfg(target_arch = "x86_64")]
#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

#[path = "../examples/vmm/guest.rs"]
mod guest;
mod turncoat;

use guest::{Ended, FIRST_PAGE, Guest, Kind, Machine, Pass};
use pinless::kvm::{KvmError, RunError, VcpuStats, Vm};
use pinless::swap::Inject;
use pinless::sync::{Mutex, MutexGuard};
use pinless::{
    AccessError, Advice, AttachedThread, FaultError, FaultMode, MapOptions, Mapping, PAGE_SIZE,
    PageRun, Pinless, attach_thread,
};
use pinless_host::tracefs::{Trace, Wanted};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use turncoat::Turncoat;

const MODES: [FaultMode; 2] = [FaultMode::Service, FaultMode::InThread];

/// One test at a time: what changes in this process is told to each machine that lives.
static MACHINES: Mutex<()> = Mutex::new("test.machines", ());

/// The right to have machines, unless something is missing for that here, which this says.
fn machines() -> Option<MutexGuard<'static, ()>> {
    let kvm = Vm::new().map(drop).map_err(|error| match error {
        KvmError::NoKvm(_) => format!("no KVM: {error}"),
        other => panic!("{other}"),
    });
    let uffd = Pinless::builder(1 << 20).require_kernel_faults().build();
    let uffd = uffd.map(drop);
    let uffd = uffd.map_err(|error| format!("no userfaultfd: {error}"));
    let there = kvm.and(uffd).inspect_err(|why| println!("skipped: {why}"));
    there.ok().map(|()| MACHINES.lock())
}

/// Every guest, in every mode that this kernel allows for it.
fn guests() -> impl Iterator<Item = (Kind, FaultMode)> {
    let kinds = [Kind::Real, Kind::Program].into_iter();
    let all = kinds.flat_map(|kind| MODES.map(|mode| (kind, mode)));
    let has_addresses = has_addresses();
    all.filter(move |guest| has_addresses || *guest != (Kind::Program, FaultMode::InThread))
}

/// Whether a run that ends for a missing page says which. If not, it ends nevertheless, in an error
/// that says what to do.
fn has_addresses() -> bool {
    let pinless = system(64);
    let thread = attach_thread().expect("a thread can be attached");
    let options = MapOptions::of_pages(16).fault_mode(FaultMode::InThread);
    let machine = machine(&pinless, "asking", Kind::Program, options);
    let pass = Pass {
        pages: FIRST_PAGE..16,
        expects: None,
        writes: 1,
    };
    let mut guest = machine.guest(0).expect("a processor");
    match guest.pass(&thread, &pass) {
        Ok(Ended::Done) => true,
        Err(error @ RunError::NoAddress) => {
            assert!(error.to_string().contains("use service threads"), "{error}");
            println!("skipped: programs of guests in the processor's thread: {error}");
            false
        }
        ended => panic!("{ended:?}"),
    }
}

/// A guest with such memory.
fn machine(pinless: &Pinless, name: &str, kind: Kind, options: MapOptions) -> Machine {
    let mm = pinless.new_mm(name);
    let memory = pinless.map(&mm, options).expect("a mapping");
    // It is torn down when the mapping is gone; until then the handle would only be in the way.
    std::mem::forget(mm);
    Machine::new(memory, kind).expect("a machine")
}

fn system(nr_frames: u32) -> Pinless {
    let builder = Pinless::builder(u64::from(nr_frames) * PAGE_SIZE as u64);
    builder.build().expect("looked at already")
}

fn value(page: u32, written: u32) -> u32 {
    page * PAGE_SIZE as u32 + written
}

/// A processor's share of the pages, the last of which are given up after each pass.
struct Share {
    kept: std::ops::Range<u32>,
    ballooned: PageRun,
}

impl Share {
    /// One pass over all, the `nr`th. What it kept it looks at.
    fn pass(
        &self,
        machine: &Machine,
        guest: &mut Guest,
        thread: &AttachedThread,
        nr: u32,
    ) -> Result<(), Box<dyn Error>> {
        let mut pass = |pages: &std::ops::Range<u32>, expects, writes| {
            let pages = pages.clone();
            let ended = guest.pass(
                thread,
                &Pass {
                    pages,
                    expects,
                    writes,
                },
            )?;
            assert_eq!(ended, Ended::Done, "pass {nr}");
            Ok::<(), Box<dyn Error>>(())
        };
        pass(&self.kept, (nr > 1).then(|| nr - 1), nr)?;
        machine.memory().advise(self.ballooned, Advice::DontNeed)?;
        let ballooned = self.ballooned.first..self.ballooned.end();
        assert_eq!(machine.memory().load_u64(offset_of(ballooned.start))?, 0);
        pass(&ballooned, None, nr)?;
        pass(&ballooned, Some(nr), nr)
    }
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

/// Of a guest that writes all the time; a quarter of it is there.
const WRITTEN_PAGES: u32 = 1024;

/// Two processors write, each in a thread of its own, while a third thread has pages taken away.
#[track_caller]
fn check_writes(kind: Kind, options: MapOptions, nr_evictions: u64, mut told: Option<Told>) {
    let pinless = system(WRITTEN_PAGES / 4);
    let _attached = attach_thread().expect("a thread can be attached");
    let machine = machine(&pinless, "writing", kind, options);
    let mode = machine.memory().fault_mode();
    let middle = WRITTEN_PAGES / 2;
    let shares = [(FIRST_PAGE, middle), (middle, WRITTEN_PAGES)].map(|(first, end)| Share {
        kept: first..end - 64,
        ballooned: PageRun::new(end - 64, 64),
    });
    let is_over = AtomicBool::new(false);
    let ends: Vec<(u32, VcpuStats)> = thread::scope(|scope| {
        let vcpus = [0, 1].map(|id| {
            let (machine, pinless, share) = (&machine, &pinless, &shares[id]);
            scope.spawn(move || {
                let thread = attach_thread().expect("a thread can be attached");
                let mut guest = machine.guest(id as u64).expect("a processor");
                let mut nr = 0;
                while pinless.memcg().stat().pgsteal < nr_evictions {
                    nr += 1;
                    share
                        .pass(machine, &mut guest, &thread, nr)
                        .unwrap_or_else(|error| panic!("{kind:?} {mode:?}, pass {nr}: {error}"));
                }
                (nr, guest.vcpu().stats())
            })
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                for first in (0..WRITTEN_PAGES).step_by(64) {
                    let advice = [Advice::PageOut, Advice::Cold][(first / 64 % 2) as usize];
                    let run = PageRun::new(first, 64);
                    machine.memory().advise(run, advice).expect("no device");
                }
                // Often, for the kernel keeps so many.
                told.iter_mut()
                    .for_each(|told| told.count(machine.memory()));
            }
        });
        let ends = vcpus.map(|vcpu| vcpu.join());
        is_over.store(true, Ordering::Relaxed);
        ends.into_iter()
            .map(|end| end.expect("it said why"))
            .collect()
    });
    for (share, (nr, _)) in shares.iter().zip(&ends) {
        for page in share.kept.start..share.ballooned.end() {
            let found = machine.memory().load_u64(offset_of(page));
            let expected = Ok(value(page, *nr).into());
            assert_eq!(found, expected, "{kind:?} {mode:?} page {page}");
        }
    }
    let memcg = pinless.memcg();
    assert!(memcg.stat().pgsteal >= nr_evictions);
    assert!(memcg.frames().peak() <= u64::from(WRITTEN_PAGES / 4));
    let resolved = |stats: &VcpuStats| stats.mmio_in_ram + stats.memory_faults;
    let in_thread: u64 = ends.iter().map(|(_, stats)| resolved(stats)).sum();
    assert_eq!(in_thread > 0, mode == FaultMode::InThread, "{ends:?}");
    println!(
        "{kind:?}, {options:?}: {} evictions, {ends:?}",
        memcg.stat().pgsteal
    );
    if let Some(mut told) = told {
        told.count(machine.memory());
        told.check(memcg.stat().pgdeactivate);
    }
}

/// What the kernel tells KVM of pages of one mapping.
struct Told {
    trace: Trace,
    pages: u64,
}

impl Told {
    /// Begins to listen, if this kernel lets one.
    fn start() -> Option<Self> {
        let wanted = Wanted {
            system: "kvm",
            event: "kvm_unmap_hva_range",
            filter: "",
        };
        let name = format!("pinless-kvm-{}", std::process::id());
        match Trace::start(&name, &[wanted]) {
            Err(error) => println!("skipped: no trace events: {error}"),
            Ok(trace) if !trace.absent().is_empty() => {
                println!("skipped: no trace events: {:?}", trace.absent());
            }
            Ok(trace) => return Some(Self { trace, pages: 0 }),
        }
        None
    }

    /// Counts the pages of the mapping that KVM has been told of since the last call.
    fn count(&mut self, memory: &Mapping) {
        let (start, end) = (
            memory.vma().base().0,
            memory.vma().address(memory.nr_pages()).0,
        );
        for event in self.trace.drain() {
            // The only words in hexadecimal are the first address and that after the last.
            let words = event.fields.split_whitespace();
            let numbers = words.filter_map(|word| word.strip_prefix("0x"));
            let mut numbers = numbers.map(|word| u64::from_str_radix(word, 16).expect("a number"));
            let (Some(from), Some(to)) = (numbers.next(), numbers.next()) else {
                panic!("two addresses: {event:?}");
            };
            let (from, to) = (from.clamp(start, end), to.clamp(start, end));
            self.pages += (to - from) / PAGE_SIZE as u64;
        }
    }

    /// Each page that was taken from its address is one that KVM was told of.
    fn check(&self, nr_taken: u64) {
        if self.trace.lost() > 0 {
            println!("skipped: {} trace events were lost", self.trace.lost());
            return;
        }
        let told = self.pages;
        assert!(told >= nr_taken, "{nr_taken} were taken, {told} told of");
        println!("{nr_taken} pages were taken, KVM was told of {told}");
    }
}

/// G10: what the guest reads is what it has written, whatever is taken away meanwhile; and the
/// kernel has told KVM of as many pages as were taken away, at least.
#[test]
fn no_guest_write_is_lost() {
    let Some(_machines) = machines() else {
        return;
    };
    let asked = std::env::var("PINLESS_KVM_EVICTIONS");
    let nr_evictions = asked.map_or(10_000, |nr| nr.parse().expect("a number"));
    for (kind, mode) in guests() {
        let private = MapOptions::of_pages(WRITTEN_PAGES).fault_mode(mode);
        check_writes(kind, private, nr_evictions, Told::start());
        // Other processes could map it: reclaim goes another way, KVM is told all the same.
        check_writes(kind, private.shared(), nr_evictions / 4, Told::start());
    }
}

/// G13: one page is lost in the store. The run ends with its address; the guest goes on when the
/// page is there again, and finds out by itself that it is empty.
#[test]
fn a_guest_survives_a_page_that_the_store_lost() {
    const NR_PAGES: u32 = 64;
    const LOST: u32 = 40;
    let Some(_machines) = machines() else {
        return;
    };
    for (kind, mode) in guests() {
        let pinless = system(2 * NR_PAGES);
        let thread = attach_thread().expect("a thread can be attached");
        let machine = machine(
            &pinless,
            "losing",
            kind,
            MapOptions::of_pages(NR_PAGES).fault_mode(mode),
        );
        let mut guest = machine.guest(0).expect("a processor");
        let mut pass = |pages, expects, writes| {
            guest.pass(
                &thread,
                &Pass {
                    pages,
                    expects,
                    writes,
                },
            )
        };
        let all = FIRST_PAGE..NR_PAGES;
        assert_eq!(
            pass(all.clone(), None, 1),
            Ok(Ended::Done),
            "{kind:?} {mode:?}"
        );
        let zswap = pinless.memcg().zswap();
        zswap.inject(Inject::CorruptSlot { one_in: 1 });
        let lost = PageRun::single(LOST);
        let advised = machine.memory().advise(lost, Advice::PageOut);
        advised.expect("no device");
        zswap.inject(Inject::None);
        for _ in 0..2 {
            // The second time nothing but the access is tried again.
            let ended = pass(LOST..LOST + 1, Some(1), 2);
            let Err(error @ RunError::Memory { gpa, .. }) = ended else {
                panic!("{kind:?} {mode:?}: {ended:?}");
            };
            assert_eq!(gpa, offset_of(LOST), "{kind:?} {mode:?}");
            let is_lost = matches!(error.fault(), Some(FaultError::Lost { page: LOST, .. }));
            assert!(is_lost && !error.is_killed(), "{kind:?} {mode:?}: {error}");
        }
        let repaired = machine.memory().advise(lost, Advice::DontNeed);
        repaired.expect("no device");
        let empty = guest.go_on(&thread);
        assert_eq!(empty, Ok(Ended::Lost { page: LOST }), "{kind:?} {mode:?}");
        let mut pass = |pages, expects| {
            let writes = 2;
            let pass = Pass {
                pages,
                expects,
                writes,
            };
            guest.pass(&thread, &pass)
        };
        assert_eq!(pass(FIRST_PAGE..LOST, Some(1)), Ok(Ended::Done));
        assert_eq!(pass(LOST..LOST + 1, None), Ok(Ended::Done));
        assert_eq!(pass(LOST + 1..NR_PAGES, Some(1)), Ok(Ended::Done));
        assert_eq!(pass(all, Some(2)), Ok(Ended::Done), "{kind:?} {mode:?}");
    }
}

/// G16: there is no room for what the guest writes, so it is killed; its processors end, and say
/// why, again and again.
#[test]
fn an_oom_kill_ends_the_guest_with_an_error() {
    let Some(_machines) = machines() else {
        return;
    };
    let private = MapOptions::of_pages(4096);
    let all = guests().flat_map(|(kind, mode)| {
        let private = private.fault_mode(mode);
        [private, private.shared()].map(|options| (kind, options))
    });
    for (kind, options) in all {
        let pinless = Pinless::builder(64 * PAGE_SIZE as u64).zswap_max(16 << 10);
        let pinless = pinless.build().expect("looked at already");
        let _attached = attach_thread().expect("a thread can be attached");
        let machine = machine(&pinless, "killed", kind, options);
        let is_told = Arc::new(AtomicBool::new(false));
        let tells = Arc::clone(&is_told);
        let mm = machine.memory().vma().mm();
        mm.set_on_kill(move || tells.store(true, Ordering::Relaxed));
        let ends = thread::scope(|scope| {
            let vcpus = [0, 1].map(|id| {
                let machine = &machine;
                scope.spawn(move || {
                    let thread = attach_thread().expect("a thread can be attached");
                    let mut guest = machine.guest(id).expect("a processor");
                    let half = 2048 * id as u32;
                    let pass = Pass {
                        pages: half.max(FIRST_PAGE)..half + 2048,
                        expects: None,
                        writes: 1,
                    };
                    [guest.pass(&thread, &pass), guest.go_on(&thread)]
                })
            });
            vcpus.map(|vcpu| vcpu.join().expect("it ends"))
        });
        for end in ends.into_iter().flatten() {
            let error = end.expect_err("killed");
            assert!(error.is_killed(), "{kind:?} {options:?}: {error}");
            assert!(error.to_string().contains("make a new one"), "{error}");
        }
        // Who chose the victim tells it, perhaps after the victim has noticed.
        while !is_told.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let report = &pinless.memcg().oom_reports()[0];
        assert_eq!(&*report.victim, "killed");
        let after = machine.memory().load_u64(0);
        let is_killed = |error| {
            matches!(
                error,
                AccessError::Fault {
                    error: FaultError::Killed,
                    ..
                }
            )
        };
        assert!(after.is_err_and(is_killed), "{after:?}");
    }
}

/// What has the memory is asked for it once: the guest has the pages of that answer, and no more.
#[test]
fn a_slot_is_of_the_mapping_that_it_was_made_of() {
    const NR_PAGES: u32 = 4;
    let Some(_machines) = machines() else {
        return;
    };
    let pinless = system(64);
    let mm = pinless.new_mm("turncoat");
    let [first, then, next] = [NR_PAGES, 2 * NR_PAGES, 1].map(|nr_pages| {
        let mapping = pinless.map(&mm, MapOptions::of_pages(nr_pages));
        mapping.expect("a mapping")
    });
    let vm = Vm::new().expect("looked at already");
    let (memory, next) = (Turncoat::new([first, then]), Arc::new(next));
    vm.add_memory(0, memory).expect("it is the first");
    // A page earlier there is memory, right behind there is none.
    let overlaps = vm.add_memory(offset_of(NR_PAGES - 1), next.clone());
    let gpa = offset_of(NR_PAGES - 1);
    assert_eq!(overlaps, Err(KvmError::Overlap { gpa }));
    vm.add_memory(offset_of(NR_PAGES), next)
        .expect("nothing is there");
}
