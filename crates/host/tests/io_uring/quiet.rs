//! Callbacks allocate nothing: a counting allocator, and brackets over every kind of slot.

use crate::field::{Field, bytes_of, fd, file_with, noise, pages, ring};
use crate::in_flight::read_from_pipe;
use pinless_host::io_uring::Kind;
use pinless_mm::mmu_notifier::Event;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::time::Duration;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator; the counter is a cell without a
// constructor or a destructor, so counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller's promise, passed on.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|nr| nr.set(nr.get() + 1));
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller's promise, passed on.
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn callbacks_allocate_nothing() {
    for kind in [Kind::Shared, Kind::SingleIssuer] {
        let (Some(field), Some(ring)) = (Field::new(32, 64), ring(8, 8, kind)) else {
            return;
        };
        let area = ring.attach(&field.mapping, &field.vma).expect("the same");
        let source = file_with(&noise(1, 4));
        let read = |run| {
            ring.read_fixed(&area, fd(&source), 0, bytes_of(run))
                .expect("a whole read");
        };
        read(pages(0, 4));
        read(pages(8, 2));
        let (part, _reader, mut writer) = read_from_pipe(&ring, &area, pages(0, 1));
        let (whole, _reader2, mut writer2) = read_from_pipe(&ring, &area, pages(16, 1));
        let notifiers = field.mm.notifiers();
        // Warms up what is made once a thread.
        field.invalidate(pages(30, 1), Event::Clear);
        let nr = allocations(|| {
            field.invalidate(pages(31, 1), Event::Clear); // No slot.
            let in_use = field.try_invalidate(pages(2, 1), Event::Clear);
            assert!(in_use.is_err());
            field.invalidate(pages(16, 1), Event::Clear); // Pinned.
            field.invalidate(pages(8, 1), Event::Clear); // Idle.
        });
        assert_eq!(nr, 0, "{kind:?}: without blocking");
        for writer in [&mut writer, &mut writer2] {
            writer.write_all(&noise(1, 1)).expect("a reader");
        }
        part.wait().expect("a whole read");
        whole.wait().expect("a whole read");
        let (start, end) = (field.vma.address(0), field.vma.address(32));
        let nr = allocations(|| {
            let deadline = Duration::from_secs(60);
            drop(notifiers.start_blockable(start, end, Event::Clear, deadline));
        });
        assert_eq!(nr, 0, "{kind:?}: blockable");
    }
}
