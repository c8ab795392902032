//! Races, stopped in the middle: what the threads of a test can only meet by luck.

use super::kernel::{Direction, Transfer};
use super::state::Keep;
use super::{Area, Kind, Ring};
use crate::mapping::{HostMapping, Resolver};
use crate::{CreateError, MonotonicClock};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::Limits;
use pinless_mm::mm_struct::Vma;
use pinless_mm::primary_mmu::Access;
use pinless_mm::{Memcg, MmHandle};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

struct Bench {
    ring: Ring,
    memcg: Arc<Memcg>,
    mm: MmHandle,
    vma: Arc<Vma>,
    mapping: HostMapping,
}

/// `None` where the machine forbids io_uring or userfaultfd; `tests/io_uring` says so there.
fn bench() -> Option<Bench> {
    let ring = Ring::new(4, 4, Kind::Shared).ok()?;
    let mut mapping = match HostMapping::create(4, Resolver::InThread) {
        Ok(mapping) => mapping,
        Err(CreateError::Unavailable(_) | CreateError::Features(_)) => return None,
        Err(error) => panic!("{error}"),
    };
    let limits = Limits::new(16 * PAGE_SIZE as u64);
    let memcg = Memcg::new(limits, Arc::new(MonotonicClock)).expect("room");
    let mm = memcg.new_mm("bench");
    let vma = mm.map(mapping.mmu()).expect("it lives");
    mapping.attach(Arc::clone(&vma) as _).expect("registered");
    Some(Bench {
        ring,
        memcg,
        mm,
        vma,
        mapping,
    })
}

/// What `Ring::submit_read` does before it starts the operation: the pin.
fn prepare(area: &Area, file: &File) -> (PageRun, Transfer, Keep) {
    let (vma, run) = (area.vma(), PageRun::single(0));
    let pin = vma.pin(run, Access::Write, Gfp::Kernel).expect("a frame");
    let transfer = Transfer {
        direction: Direction::Read,
        fd: file.as_raw_fd(),
        file_offset: 0,
        address: vma.base().0 as usize,
        len: 8,
        slot: None,
    };
    let keep = Keep {
        pin,
        area: Arc::clone(&area.owner),
    };
    (run, transfer, keep)
}

/// An address space ends between an operation's pin and its registration: the end was announced
/// before there was a slot, so there must be none after it.
#[test]
fn nothing_is_registered_of_a_mapping_that_has_ended() {
    let Some(bench) = bench() else { return };
    let core = &bench.ring.core;
    let area = bench.ring.attach(&bench.mapping, &bench.vma).expect("same");
    let program = File::open("/proc/self/exe").expect("this program");
    let (run, transfer, keep) = prepare(&area, &program);
    drop(bench.mm);
    let op = core
        .start_op(&area.owner, run, transfer, keep)
        .expect("room");
    let stats = bench.ring.stats();
    assert_eq!((stats.registrations, stats.bypasses), (0, 1));
    let operation = super::Operation::new(Arc::clone(core), op);
    operation.wait().expect("the page is pinned, and there");
    assert_eq!(bench.memcg.frames().usage(), 0);
}

/// A thread is about to wait in the kernel for a completion that another one takes: it is woken by
/// a completion made for it, and by another one if that is taken too.
#[test]
fn who_takes_a_completion_beside_a_waiter_kicks_it() {
    let Some(bench) = bench() else { return };
    let core = &bench.ring.core;
    let area = bench.ring.attach(&bench.mapping, &bench.vma).expect("same");
    let program = File::open("/proc/self/exe").expect("this program");
    // From here on somebody drives: this test.
    core.state.lock().is_driven = true;
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let (run, mut transfer, keep) = prepare(&area, &program);
    transfer.fd = reader.as_raw_fd();
    let op = core
        .start_op(&area.owner, run, transfer, keep)
        .expect("room");
    let operation = super::Operation::new(Arc::clone(core), op);
    std::io::Write::write_all(&mut { writer }, &[1; 8]).expect("a reader");
    lockdep::sync::spin_wait("test.taken", 0, || operation.is_done());
    for _ in 0..3 {
        assert!(core.state.lock().is_kicked, "the completion was taken");
        bench.ring.poll();
    }
    let mut state = core.state.lock();
    state.is_driven = false;
    core.take_completions_beside(&mut state);
    assert!(!state.is_kicked, "nobody left to wake");
    drop(state);
    operation.wait().expect("eight bytes");
    drop((area, bench.mm));
}
