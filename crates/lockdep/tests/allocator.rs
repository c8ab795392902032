//! An allocator may take locks, of which the validator is told, also while it reports one of them.
//!
//! In a binary of its own, since it replaces the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use lockdep::sync::Mutex;
use lockdep::{Kind, Policy, Severity, Validator};

/// The system's allocator, behind a lock that is not recursive.
struct Locking;

#[global_allocator]
static ALLOCATOR: Locking = Locking;

static HEAP: Mutex<u64> = Mutex::new("heap", 0);
static STATISTICS: Mutex<u64> = Mutex::new("statistics", 0);

thread_local! {
    /// Whether the next allocation of this thread takes the statistics' lock, too.
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator unchanged, which keeps the contract; taking a
// lock does not touch the memory.
unsafe impl GlobalAlloc for Locking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut nr_allocations = HEAP.lock();
        *nr_allocations += 1;
        if IS_COUNTED.replace(false) {
            *STATISTICS.lock() += 1;
        }
        // SAFETY: our caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let _heap = HEAP.lock();
        // SAFETY: `ptr` came from `System.alloc` with this layout, as our caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn allocate() {
    drop(black_box(Box::new(1)));
}

#[test]
fn what_is_found_inside_an_allocator_is_reported_outside() {
    // It is to be found, and gone on after.
    Validator::global().set_policy(Policy::Print);
    let is_bad = |report: &std::sync::Arc<lockdep::Report>| report.severity == Severity::Error;
    let nr_bad = || lockdep::reports().iter().filter(|r| is_bad(r)).count();
    lockdep::assert_no_reports();
    // statistics -> heap, as anybody may allocate.
    let statistics = STATISTICS.lock();
    allocate();
    drop(statistics);
    assert_eq!(nr_bad(), 0);
    // heap -> statistics: found with the heap's lock held, which a report needs.
    IS_COUNTED.set(true);
    allocate();
    let reports = lockdep::reports();
    let circular: Vec<_> = reports
        .iter()
        .filter(|r| r.kind == Kind::Circular)
        .collect();
    assert_eq!(circular.len(), 1, "{reports:?}");
    let text = circular[0].text();
    assert!(
        text.contains("heap") && text.contains("statistics"),
        "{text}"
    );
    assert!(*HEAP.lock() > 0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..if cfg!(miri) { 5 } else { 1000 }).for_each(|_| allocate()));
        }
    });
    assert_eq!(nr_bad(), 1);
}
