//! An operation in flight is a pin: what may and what may not happen to its pages meanwhile.

use crate::field::{Field, bytes_of, fd, file_with, noise, pages, ring};
use pinless_host::io_uring::{Area, Kind, OpError, Operation, Ring};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::mm_struct::{Advice, AdviseError, UnmapError};
use pinless_mm::mmu_notifier::Event;
use pinless_mm::page::State;
use std::io::{PipeReader, PipeWriter, Write};

/// A read of `run` from a pipe that has no data yet.
pub(crate) fn read_from_pipe(
    ring: &Ring,
    area: &Area,
    run: PageRun,
) -> (Operation, PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let operation = ring
        .submit_read(area, fd(&reader), 0, bytes_of(run))
        .expect("under way");
    (operation, reader, writer)
}

#[test]
fn an_operation_in_flight_pins_its_pages_and_no_others() {
    let (Some(field), Some(ring)) = (Field::new(16, 64), ring(8, 8, Kind::Shared)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let all = pages(0, 16);
    field.write(0, &noise(1, 16));
    let before = field.read(bytes_of(all));
    let held = pages(4, 2);
    let (operation, _reader, mut writer) = read_from_pipe(&ring, &area, held);
    assert_eq!((ring.nr_in_flight(), field.mm.nr_pins()), (1, 2));

    // The run is wider than what is pinned on both sides: the rest goes all the same.
    field.page_out(all);
    for page in all.pages() {
        let expected = if held.contains(page) {
            State::Resident
        } else {
            State::Swapped
        };
        assert_eq!(field.state(page), expected, "page {page}");
    }
    let answer = field.vma.advise(held, Advice::DontNeed);
    assert!(
        matches!(answer, Err(AdviseError::Pinned { page: 4 })),
        "{answer:?}"
    );
    let answer = field.mm.unmap(&field.vma);
    assert!(
        matches!(answer, Err(UnmapError::Pinned { page: 4 })),
        "{answer:?}"
    );
    assert!(!operation.is_done());

    // The bracket took the slot away, so the next operation on these pages gets another.
    let stats = ring.stats();
    assert_eq!(
        (stats.registrations, stats.revocations, stats.refusals),
        (1, 1, 0)
    );
    let arrived = noise(2, 2);
    writer.write_all(&arrived).expect("a reader");
    operation.wait().expect("a whole read");
    let mut expected = before;
    expected[4 * PAGE_SIZE..6 * PAGE_SIZE].copy_from_slice(&arrived);
    assert_eq!(field.read(bytes_of(all)), expected);

    lockdep::sync::spin_wait("test.unpinned", 0, || field.mm.nr_pins() == 0);
    field.evict(all);
    assert_eq!(field.read(bytes_of(all)), expected);
    assert_eq!(field.memcg.stat().pgbusy, 0);
    let source = file_with(&noise(3, 2));
    ring.read_fixed(&area, fd(&source), 0, bytes_of(held))
        .expect("a whole read");
    assert_eq!(ring.stats().registrations, 2);
}

/// An operation on a part of a slot: the rest of the slot cannot go while it is in flight. Without
/// blocking that is refused; a bracket that may block waits for the operation, although the thread
/// that holds its handle is the one that waits: the ring's own thread takes the completion.
#[test]
fn the_rest_of_a_slot_in_use_waits_for_the_operation() {
    let (Some(field), Some(ring)) = (Field::new(16, 64), ring(8, 8, Kind::Shared)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let slot = pages(0, 8);
    let source = file_with(&noise(1, 8));
    ring.read_fixed(&area, fd(&source), 0, bytes_of(slot))
        .expect("a whole read");
    let (operation, _reader, mut writer) = read_from_pipe(&ring, &area, pages(0, 1));
    assert_eq!(ring.stats().hits, 1, "it uses a part of the large slot");

    let refused = field
        .try_invalidate(pages(4, 1), Event::Clear)
        .expect_err("in use");
    assert_eq!(&*refused.holder, pinless_host::io_uring::NAME);
    assert_eq!((ring.stats().refusals, ring.stats().revocations), (1, 0));

    let arrived = noise(2, 1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The slot is taken back before the bracket waits, and nothing else ends the wait.
            lockdep::sync::spin_wait("test.revoked", 0, || ring.stats().revocations == 1);
            assert_ne!(field.state(4), State::Swapped);
            writer.write_all(&arrived).expect("a reader");
        });
        field.page_out(pages(4, 4));
    });
    assert!(
        pages(4, 4)
            .pages()
            .all(|page| field.state(page) == State::Swapped)
    );
    operation.wait().expect("a whole read");
    let mut expected = noise(1, 8);
    expected[..PAGE_SIZE].copy_from_slice(&arrived);
    assert_eq!(field.read(bytes_of(slot)), expected);
    assert_eq!(field.memcg.stat().pgbusy, 0);
}

/// A change of access rights can mean pinned pages, so it is never waved through.
#[test]
fn a_change_of_rights_waits_for_pinned_pages_too() {
    let (Some(field), Some(ring)) = (Field::new(8, 64), ring(8, 8, Kind::Shared)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let (operation, _reader, mut writer) = read_from_pipe(&ring, &area, pages(0, 1));
    let held = pages(0, 1);
    for _ in 0..100 {
        field
            .try_invalidate(held, Event::Protection)
            .expect_err("in use");
    }
    // This one cannot mean a pinned page.
    field.invalidate(held, Event::Clear);
    writer.write_all(&noise(1, 1)).expect("a reader");
    operation.wait().expect("a whole read");
    field.invalidate(held, Event::Protection);
}

#[test]
fn many_waiters_share_one_queue() {
    const NR: u32 = 8;
    let (Some(field), Some(ring)) = (Field::new(NR, 64), ring(16, 8, Kind::Shared)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let mut writers = Vec::new();
    std::thread::scope(|scope| {
        for page in 0..NR {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            writers.push(writer);
            let (ring, area) = (&ring, &area);
            // Each thread starts its own: what a thread started is cancelled when it ends.
            scope.spawn(move || {
                ring.read_fixed(area, fd(&reader), 0, bytes_of(pages(page, 1)))
                    .expect("a whole read");
            });
        }
        lockdep::sync::spin_wait("test.started", 0, || ring.nr_in_flight() == NR);
        // Newest first, so that whoever drives finds the completions of all the others.
        for (page, writer) in (0..NR).zip(&mut writers).rev() {
            writer
                .write_all(&noise(u64::from(page), 1))
                .expect("a reader");
        }
    });
    for page in 0..NR {
        assert_eq!(
            field.read(bytes_of(pages(page, 1))),
            noise(u64::from(page), 1)
        );
    }
    assert_eq!((ring.stats().ops, field.mm.nr_pins()), (u64::from(NR), 0));
}

#[test]
fn operations_can_be_cancelled_abandoned_and_too_many() {
    let (Some(field), Some(ring)) = (Field::new(8, 64), ring(2, 8, Kind::Shared)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let (cancelled, _reader, _writer) = read_from_pipe(&ring, &area, pages(0, 1));
    let (abandoned, _reader2, mut writer) = read_from_pipe(&ring, &area, pages(1, 1));
    let source = file_with(&noise(1, 1));
    assert_eq!(
        ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(2, 1))),
        Err(OpError::Full { entries: 2 })
    );
    assert_eq!(field.mm.nr_pins(), 2);
    cancelled.cancel().expect("any thread may");
    let answer = cancelled.wait();
    assert!(
        matches!(answer, Err(OpError::Failed { errno }) if errno.0 == libc::ECANCELED),
        "{answer:?}"
    );
    drop(abandoned);
    assert_eq!(field.mm.nr_pins(), 1, "the kernel still has it");
    let arrived = noise(2, 1);
    writer.write_all(&arrived).expect("a reader");
    lockdep::sync::spin_wait("test.unpinned", 0, || field.mm.nr_pins() == 0);
    assert_eq!(field.read(bytes_of(pages(1, 1))), arrived);
    ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(2, 1)))
        .expect("room again");
}
