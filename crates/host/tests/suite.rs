//! The shared suite on real memory: private and shared, with faults resolved by service threads
//! and in the faulting thread.

#![expect(clippy::print_stdout, reason = "which case runs, for when one hangs")]

use pinless_host::{
    AccessError, CreateError, FaultService, HostMapping, Resolver, SwapFile, attach_thread,
};
use pinless_mm::env::Clock;
use pinless_mm::fault::FaultError;
use pinless_mm::mm_struct::{Mm, Vma};
use pinless_mm::suite::{CASES, Join, Machine, Mapping};
use pinless_mm::swap::BackingFile;
use std::sync::Arc;
use std::time::Instant;

struct TestClock(Instant);

impl Clock for TestClock {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Makes a mapping.
type Create = fn(u32, Resolver) -> Result<HostMapping, CreateError>;

struct RealMachine {
    clock: Arc<TestClock>,
    create: Create,
    resolver: Resolver,
}

struct RealMapping {
    host: HostMapping,
    vma: Arc<Vma>,
}

fn fault_error(error: AccessError) -> FaultError {
    match error {
        AccessError::Fault { error, .. } => error,
        other => panic!("{other}"),
    }
}

impl Mapping for RealMapping {
    fn vma(&self) -> &Arc<Vma> {
        &self.vma
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), FaultError> {
        self.host.read_at(offset, into).map_err(fault_error)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), FaultError> {
        self.host.write_at(offset, from).map_err(fault_error)
    }
}

impl Machine for RealMachine {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn map(&self, mm: &Arc<Mm>, nr_pages: u32) -> Arc<dyn Mapping> {
        let mut host = (self.create)(nr_pages, self.resolver.clone()).expect("probed before");
        let vma = mm.map(host.mmu()).expect("an address space that lives");
        host.attach(Arc::clone(&vma) as _).expect("registered");
        Arc::new(RealMapping { host, vma })
    }

    fn file(&self, nr_clusters: u32) -> Option<Arc<dyn BackingFile>> {
        let program = std::env::current_exe().expect("this program is a file");
        let folder = program.parent().expect("in a folder");
        match SwapFile::create_in(folder, nr_clusters, 8) {
            Ok(file) => Some(Arc::new(file)),
            Err(error) => {
                println!("skipped: no file under the store: {error}");
                None
            }
        }
    }

    fn spawn(&self, name: &'static str, body: Box<dyn FnOnce() + Send>) -> Join {
        let run = move || {
            let _attached = attach_thread().expect("a signal stack");
            body();
        };
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(run)
            .expect("a thread");
        Box::new(move || {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        })
    }
}

fn check(create: Create, resolver: Resolver) {
    match create(1, resolver.clone()) {
        Ok(_) => {}
        Err(why @ (CreateError::Unavailable(_) | CreateError::Features(_))) => {
            println!("skipped: no userfaultfd: {why}");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let _attached = attach_thread().expect("a signal stack");
    let machine = RealMachine {
        clock: Arc::new(TestClock(Instant::now())),
        create,
        resolver,
    };
    // All cases, or those whose names contain it: for whoever works on one.
    let wanted = std::env::var("PINLESS_CASE").unwrap_or_default();
    for case in CASES.iter().filter(|case| case.name.contains(&wanted)) {
        println!("{}", case.name);
        (case.run)(&machine);
    }
    let seen = lockdep::snapshot();
    for order in [
        &pinless_mm::lock_order::ORDER,
        &pinless_host::lock_order::ORDER,
    ] {
        assert_eq!(order.contradictions(&seen), [""; 0]);
    }
}

fn service() -> Resolver {
    Resolver::Service(FaultService::start(1).expect("threads"))
}

#[test]
fn the_suite_holds_with_service_threads() {
    check(HostMapping::create, service());
}

#[test]
fn the_suite_holds_in_the_faulting_thread() {
    check(HostMapping::create, Resolver::InThread);
}

#[test]
fn the_suite_holds_on_shared_memory_with_service_threads() {
    check(HostMapping::create_shared, service());
}

#[test]
fn the_suite_holds_on_shared_memory_in_the_faulting_thread() {
    check(HostMapping::create_shared, Resolver::InThread);
}
