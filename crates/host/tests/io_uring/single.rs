//! A ring with an owner: revocations are posted to it.

use crate::field::{Field, bytes_of, fd, file_with, noise, pages, ring};
use crate::in_flight::read_from_pipe;
use pinless_host::io_uring::{Kind, OpError};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::mmu_notifier::Event;
use pinless_mm::page::State;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn only_the_owner_uses_the_ring() {
    let (Some(field), Some(ring)) = (Field::new(8, 64), ring(8, 8, Kind::SingleIssuer)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let source = file_with(&noise(1, 1));
    let read = || ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(0, 1)));
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(read(), Err(OpError::NotOwner)));
    });
    read().expect("a whole read");
}

#[test]
fn a_revocation_is_refused_posted_and_carried_out_by_the_owner() {
    let (Some(field), Some(ring)) = (Field::new(8, 64), ring(8, 8, Kind::SingleIssuer)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let run = pages(0, 4);
    let contents = noise(1, 4);
    let source = file_with(&contents);
    ring.read_fixed(&area, fd(&source), 0, bytes_of(run))
        .expect("a whole read");
    let elsewhere = |work: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| scope.spawn(work).join().expect("no panic"));
    };
    let page = pages(0, 1);
    elsewhere(&|| {
        // Again and again, until it is posted and ever after.
        lockdep::sync::spin_wait("test.posted", 0, || {
            let answer = field.try_invalidate(page, Event::Clear);
            answer.expect_err("the owner has done nothing yet");
            ring.stats().revocations == 1
        });
        let answer = field.try_invalidate(page, Event::Clear);
        answer.expect_err("nor now");
    });
    assert!(ring.stats().refusals >= 2);
    ring.poll();
    elsewhere(&|| field.invalidate(page, Event::Clear));
    assert_eq!(ring.stats().revocations, 1);

    // Registered again; and in the owner's own thread nothing need be posted.
    ring.read_fixed(&area, fd(&source), 0, bytes_of(run))
        .expect("a whole read");
    field.invalidate(page, Event::Clear);
    assert_eq!(ring.stats().revocations, 2);

    // A bracket that may block waits for the owner's next call.
    ring.read_fixed(&area, fd(&source), 0, bytes_of(run))
        .expect("a whole read");
    std::thread::scope(|scope| {
        let advised = scope.spawn(|| field.page_out(run));
        lockdep::sync::spin_wait("test.posted", 0, || ring.stats().revocations == 3);
        assert_eq!(field.state(0), State::Evicting);
        ring.poll();
        advised.join().expect("no panic");
    });
    assert!(run.pages().all(|page| field.state(page) == State::Swapped));
    assert_eq!(field.read(bytes_of(run)), contents);
    assert_eq!(field.memcg.stat().pgbusy, 0);
}

/// Reclaim itself: it meets the refusal, leaves the pages, and gets them after the owner's call.
#[test]
fn reclaim_is_refused_until_the_owner_calls() {
    const NR_PAGES: u32 = 256;
    let (Some(field), Some(ring)) = (Field::new(NR_PAGES, 48), ring(8, 8, Kind::SingleIssuer))
    else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let run = pages(0, 8);
    let contents = noise(1, 8);
    let source = file_with(&contents);
    ring.read_fixed(&area, fd(&source), 0, bytes_of(run))
        .expect("a whole read");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Other pages, more than fit, until the owner has seen what it wants to see.
            let mut page = 64;
            while !is_over.load(Ordering::Relaxed) {
                field.write(u64::from(page) * PAGE_SIZE as u64, &[1; 8]);
                page = if page + 1 < NR_PAGES { page + 1 } else { 64 };
            }
        });
        let has_refused = || field.memcg.stat().reclaim_refused > 0;
        lockdep::sync::spin_wait("test.refused", 0, has_refused);
        assert!(
            run.pages()
                .all(|page| matches!(field.state(page), State::Resident | State::Evicting)),
            "refused pages stay"
        );
        lockdep::sync::spin_wait("test.evicted", 0, || {
            ring.poll();
            run.pages().all(|page| field.state(page) == State::Swapped)
        });
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(ring.stats().refusals > 0);
    assert_eq!(field.memcg.stat().pgbusy, 0);
    assert_eq!(field.read(bytes_of(run)), contents);
    assert_eq!(field.memcg.stat().reclaim_stuck, 0);
}

/// An owner that waits for an operation hears the doorbell, and does what was posted meanwhile.
#[test]
fn an_owner_that_waits_carries_out_what_is_posted() {
    let (Some(field), Some(ring)) = (Field::new(8, 64), ring(8, 8, Kind::SingleIssuer)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let contents = noise(1, 2);
    let source = file_with(&contents);
    for round in 1..=3 {
        let idle = pages(0, 2);
        ring.read_fixed(&area, fd(&source), 0, bytes_of(idle))
            .expect("a whole read");
        let (operation, _reader, mut writer) = read_from_pipe(&ring, &area, pages(4, 1));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                field.evict(idle);
                // Only now can the owner's operation end: it was waiting all the while.
                writer.write_all(&noise(2, 1)).expect("a reader");
            });
            operation.wait().expect("a whole read");
        });
        assert_eq!(field.read(bytes_of(idle)), contents, "round {round}");
    }
    assert_eq!(field.memcg.stat().pgbusy, 0);
    assert_eq!(ring.stats().strays, 0);
}

/// The owner's own bracket waits neither for what others have posted to it nor for its own
/// operation.
#[test]
fn an_owner_does_not_wait_for_itself() {
    let (Some(field), Some(ring)) = (Field::new(16, 64), ring(8, 8, Kind::SingleIssuer)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let source = file_with(&noise(1, 8));
    let read = || ring.read_fixed(&area, fd(&source), 0, bytes_of(pages(0, 8)));
    read().expect("a whole read");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lockdep::sync::spin_wait("test.posted", 0, || {
                let answer = field.try_invalidate(pages(0, 1), Event::Clear);
                answer.expect_err("the owner does nothing");
                ring.stats().revocations == 1
            });
        });
    });
    field.page_out(pages(0, 8));

    read().expect("a whole read");
    let (operation, _reader, mut writer) = read_from_pipe(&ring, &area, pages(0, 1));
    assert_eq!(ring.stats().hits, 1, "it uses a part of the large slot");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lockdep::sync::spin_wait("test.revoked", 0, || ring.stats().revocations == 2);
            writer.write_all(&noise(2, 1)).expect("a reader");
        });
        field.page_out(pages(4, 4));
    });
    assert!(
        pages(4, 4)
            .pages()
            .all(|page| field.state(page) == State::Swapped)
    );
    operation.wait().expect("a whole read");
    assert_eq!(field.read(bytes_of(pages(0, 1))), noise(2, 1));
}
