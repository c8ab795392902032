//! The end of a ring, in every order.

use crate::field::{Field, bytes_of, fd, file_with, noise, pages, ring};
use crate::in_flight::read_from_pipe;
use pinless_host::io_uring::{Kind, OpError};
use pinless_mm::page::State;
use std::io::Write;

const KINDS: [Kind; 2] = [Kind::Shared, Kind::SingleIssuer];

fn wait_for_no_pins(field: &Field) {
    lockdep::sync::spin_wait("test.unpinned", 0, || field.mm.nr_pins() == 0);
}

#[test]
fn dropping_a_ring_cancels_what_is_in_flight_and_gives_every_page_back() {
    for kind in KINDS {
        let (Some(field), Some(ring)) = (Field::new(8, 64), ring(8, 8, kind)) else {
            return;
        };
        let area = ring.attach(&field.mapping, &field.vma).expect("the same");
        let contents = noise(1, 4);
        let source = file_with(&contents);
        ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(0, 4)))
            .expect("a whole read");
        let (dropped, _reader, mut writer) = read_from_pipe(&ring, &area, pages(1, 1));
        let (kept, _reader2, _writer2) = read_from_pipe(&ring, &area, pages(4, 2));
        drop(dropped);
        drop(ring);
        let answer = kept.wait();
        assert!(
            matches!(answer, Err(OpError::Failed { errno }) if errno.0 == libc::ECANCELED),
            "{kind:?}: {answer:?}"
        );
        wait_for_no_pins(&field);
        // Nobody reads the pipe for that page any more.
        writer
            .write_all(&noise(9, 1))
            .expect("the test holds the reader");
        field.evict(pages(0, 4));
        assert_eq!(field.read(bytes_of(pages(0, 4))), contents, "{kind:?}");
        assert_eq!(field.memcg.stat().pgbusy, 0, "{kind:?}");
        drop(area);
        assert!(field.mm.notifiers().is_empty(), "{kind:?}");
    }
}

/// An operation that cannot be cancelled: the ring is dropped in a thread that does not own it.
/// Its pages stay pinned until the kernel is done, and what the kernel reads arrives.
#[test]
fn pins_are_parked_until_the_kernel_is_done() {
    let (Some(field), Some(ring)) = (Field::new(8, 64), ring(8, 8, Kind::SingleIssuer)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let held = pages(2, 2);
    let (operation, _reader, mut writer) = read_from_pipe(&ring, &area, held);
    std::thread::scope(|scope| {
        scope.spawn(|| drop((operation, ring, area)));
    });
    assert_eq!(field.mm.nr_pins(), 2);
    assert!(!field.mm.notifiers().is_empty(), "the device is not done");
    field.page_out(pages(0, 8));
    assert!(
        held.pages()
            .all(|page| field.state(page) == State::Resident)
    );
    let arrived = noise(1, 2);
    writer.write_all(&arrived).expect("a reader");
    wait_for_no_pins(&field);
    lockdep::sync::spin_wait("test.unsubscribed", 0, || field.mm.notifiers().is_empty());
    assert_eq!(field.read(bytes_of(held)), arrived);
    field.evict(held);
    assert_eq!(field.read(bytes_of(held)), arrived);
}

/// The memory goes before the device: what is pinned stays until the kernel is done with it.
#[test]
fn an_address_space_that_ends_first_keeps_what_is_in_flight() {
    for kind in KINDS {
        let (Some(field), Some(ring)) = (Field::new(8, 64), ring(8, 8, kind)) else {
            return;
        };
        let other = field.memcg.new_mm("other");
        let mut mapping = pinless_host::HostMapping::create(4, pinless_host::Resolver::InThread)
            .expect("made one before");
        let vma = other.map(mapping.mmu()).expect("it lives");
        mapping
            .attach(std::sync::Arc::clone(&vma) as _)
            .expect("registered");
        let area = ring.attach(&mapping, &vma).expect("the same");
        let (operation, _reader, mut writer) = read_from_pipe(&ring, &area, pages(1, 1));
        drop((other, mapping, area));
        assert_eq!(field.memcg.frames().usage(), 1, "{kind:?}: the pinned page");
        writer.write_all(&noise(1, 1)).expect("a reader");
        // The mapping is gone, but not the memory: the kernel reads into the page that it pinned.
        operation.wait().expect("a whole read");
        ring.poll();
        lockdep::sync::spin_wait("test.freed", 0, || field.memcg.frames().usage() == 0);
    }
}
