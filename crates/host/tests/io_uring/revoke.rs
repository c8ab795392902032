//! With the registry: idle slots are given back when asked, and nothing is lost.

use crate::field::{Field, bytes_of, fd, file, file_with, noise, pages, ring};
use pinless_host::io_uring::{AttachError, Kind, OpError, Ring};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::mm_struct::{Advice, PinError};
use pinless_mm::mmu_notifier::Event;
use pinless_mm::page::State;
use std::os::unix::fs::FileExt;

const PAGE: u64 = PAGE_SIZE as u64;

fn field_and_ring(nr_pages: u32, nr_slots: u32) -> Option<(Ring, Field)> {
    let field = Field::new(nr_pages, 256)?;
    Some((ring(8, nr_slots, Kind::Shared)?, field))
}

#[test]
fn with_the_registry_nothing_is_lost_and_the_page_is_evicted() {
    let Some((ring, field)) = field_and_ring(8, 4) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let run = pages(0, 2);
    for round in 0..8 {
        let contents = noise(round, 2);
        let source = file_with(&contents);
        ring.read_fixed(&area, fd(&source), 0, bytes_of(run))
            .expect("a whole read");
        assert_eq!(field.read(bytes_of(run)), contents, "round {round}");
        match round % 4 {
            0 => field.evict(run),
            1 => {
                let advice = field.vma.advise(run, Advice::DontNeed);
                advice.expect("an idle slot holds nothing up");
                assert_eq!(field.read(bytes_of(run)), vec![0; run.len_bytes()]);
                continue;
            }
            2 => field.write(PAGE, &contents[..PAGE_SIZE]),
            _ => {}
        }
        let target = file();
        ring.write_fixed(&area, fd(&target), 0, bytes_of(run))
            .expect("a whole write");
        let mut written = vec![0; run.len_bytes()];
        target.read_exact_at(&mut written, 0).expect("written");
        assert_eq!(written, field.read(bytes_of(run)), "round {round}");
    }
    let stats = ring.stats();
    assert_eq!(field.memcg.stat().pgbusy, 0, "the kernel held nothing");
    assert_eq!((stats.ops, stats.bytes), (14, 14 * 2 * PAGE));
    assert_eq!(stats.ops, stats.hits + stats.registrations + stats.bypasses);
    assert!(stats.revocations >= 4, "{stats:?}");
    assert_eq!((stats.op_errors, stats.strays), (0, 0));
}

#[test]
fn a_revoked_slot_is_registered_again_on_next_use() {
    let Some((ring, field)) = field_and_ring(8, 4) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let source = file_with(&noise(1, 4));
    let read = || ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(0, 4)));
    let counts = || {
        let stats = ring.stats();
        (stats.registrations, stats.hits, stats.revocations)
    };
    read().expect("a whole read");
    read().expect("a whole read");
    // A part of the slot is found in it.
    ring.read_fixed(&area, fd(&source), 0, PAGE + 7..2 * PAGE + 9)
        .expect("a whole read");
    assert_eq!(counts(), (1, 2, 0));
    // Another range is none of the slot's business, and refused to nobody.
    field
        .try_invalidate(pages(4, 4), Event::Unmap)
        .expect("not held");
    assert_eq!((counts(), ring.stats().refusals), ((1, 2, 0), 0));
    field.invalidate(pages(3, 1), Event::Clear);
    assert_eq!(counts(), (1, 2, 1));
    read().expect("a whole read");
    assert_eq!(counts(), (2, 2, 1));
}

#[test]
fn while_an_invalidation_is_open_nothing_is_registered() {
    let Some((ring, field)) = field_and_ring(8, 4) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let contents = noise(1, 2);
    let source = file_with(&contents);
    let (start, end) = (field.vma.address(1), field.vma.address(2));
    let bracket = field
        .mm
        .notifiers()
        .start_nonblock(start, end, Event::Clear)
        .expect("nobody holds anything");
    let read = |run| ring.read_fixed(&area, fd(&source), 0, bytes_of(run));
    read(pages(0, 2)).expect("goes through the address");
    assert_eq!(field.read(bytes_of(pages(0, 2))), contents);
    assert_eq!((ring.stats().registrations, ring.stats().bypasses), (0, 1));
    read(pages(2, 2)).expect("not in the bracket");
    assert_eq!((ring.stats().registrations, ring.stats().bypasses), (1, 1));
    drop(bracket);
    read(pages(0, 2)).expect("a whole read");
    assert_eq!((ring.stats().registrations, ring.stats().bypasses), (2, 1));
}

#[test]
fn unmap_takes_idle_slots_back_and_the_ring_goes_on() {
    let Some((ring, field)) = field_and_ring(8, 4) else {
        return;
    };
    let source = file_with(&noise(1, 2));
    let (mapping, vma) = field.map(4);
    let area = ring.attach(&mapping, &vma).expect("the same");
    ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(0, 2)))
        .expect("a whole read");
    let frames = field.mm.nr_frames();
    field.mm.unmap(&vma).expect("an idle slot holds nothing up");
    assert_eq!(field.mm.nr_frames(), frames - 2);
    assert_eq!(ring.stats().revocations, 1);
    let late = ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(0, 2)));
    assert!(
        matches!(late, Err(OpError::Pin(PinError::Fault { .. }))),
        "{late:?}"
    );
    drop((area, mapping, vma));
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(0, 2)))
        .expect("a whole read");
}

#[test]
fn teardown_of_the_address_space_releases_every_slot() {
    let Some((ring, field)) = field_and_ring(8, 4) else {
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
    let source = file_with(&noise(1, 3));
    for first in 0..3 {
        ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(first, 1)))
            .expect("a whole read");
    }
    let frames = field.memcg.frames().usage();
    drop(other);
    assert_eq!(field.memcg.frames().usage(), frames - 3);
    assert_eq!(ring.stats().revocations, 3);
    ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(0, 1)))
        .expect_err("gone");
}

#[test]
fn more_runs_than_slots_take_each_others_slots() {
    let Some((ring, field)) = field_and_ring(16, 2) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    for round in 0..4 {
        for page in 0..8 {
            let contents = noise(round * 8 + u64::from(page), 1);
            let source = file_with(&contents);
            let run = pages(page, 1);
            ring.read_fixed(&area, fd(&source), 0, bytes_of(run))
                .expect("a whole read");
            assert_eq!(field.read(bytes_of(run)), contents);
        }
    }
    let stats = ring.stats();
    assert_eq!(stats.registrations + stats.bypasses, 32);
    assert_eq!(stats.revocations, stats.registrations - 2);
    field.evict(pages(0, 8));
    assert_eq!(field.memcg.stat().pgbusy, 0);
}

#[test]
fn dropping_an_area_takes_its_slots_back() {
    let Some((ring, field)) = field_and_ring(8, 4) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let source = file_with(&noise(1, 2));
    let copy = area.clone();
    ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(0, 2)))
        .expect("a whole read");
    drop(area);
    assert_eq!(ring.stats().revocations, 0);
    assert!(!field.mm.notifiers().is_empty());
    drop(copy);
    assert_eq!(ring.stats().revocations, 1);
    assert!(field.mm.notifiers().is_empty());
    field.evict(pages(0, 2));
    assert_eq!(field.memcg.stat().pgbusy, 0);
}

#[test]
fn what_cannot_be_is_an_error_of_its_kind() {
    let Some((ring, field)) = field_and_ring(8, 4) else {
        return;
    };
    let (other_mapping, other_vma) = field.map(4);
    assert_eq!(
        ring.attach(&other_mapping, &field.vma).err(),
        Some(AttachError::NotTheSamePages)
    );
    let area = ring.attach(&other_mapping, &other_vma).expect("the same");
    let Some(foreign) = crate::field::ring(1, 1, Kind::Shared) else {
        return;
    };
    let source = file_with(&[1; 100]);
    assert_eq!(
        foreign.read_fixed(&area, fd(&source), 0, 0..8),
        Err(OpError::OtherRing)
    );
    for bytes in [0..0, 8..8, 0..4 * PAGE + 1, 5 * PAGE..6 * PAGE] {
        let answer = ring.read_fixed(&area, fd(&source), 0, bytes.clone());
        let len_bytes = 4 * PAGE;
        assert_eq!(answer, Err(OpError::OutOfRange { bytes, len_bytes }));
    }
    assert_eq!(
        ring.read_fixed(&area, fd(&source), 0, 0..128),
        Err(OpError::Short {
            done: 100,
            wanted: 128
        })
    );
    let read_only = std::fs::File::open("/proc/self/exe").expect("this program");
    let answer = ring.write_fixed(&area, fd(&read_only), 0, 0..128);
    assert!(matches!(answer, Err(OpError::Failed { errno }) if errno.0 == libc::EBADF));
    assert_eq!(ring.stats().op_errors, 2);
    assert_eq!(field.mm.nr_pins(), 0, "every failure unpins");
    let rows = [(0, 1), (1, 0), (1 << 20, 1), (1, 1 << 20)];
    for (entries, nr_slots) in rows {
        let error = Ring::new(entries, nr_slots, Kind::Shared).expect_err("out of bounds");
        assert!(error.to_string().contains("cannot be made"), "{error}");
    }
    assert_eq!(field.state(0), State::Empty);
}
