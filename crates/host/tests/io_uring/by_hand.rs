//! Without the notifier: a buffer registered by hand is a translation that goes stale.

use crate::field::{Field, bytes_of, file_with, noise, pages, skip};
use io_uring::{IoUring, opcode, types};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::mm_struct::Advice;
use pinless_mm::page::State;
use std::fs::File;
use std::os::fd::AsRawFd;

/// A ring with one buffer: the first pages of the field's mapping.
struct ByHand {
    ring: IoUring,
    address: *mut u8,
    len: u32,
}

impl ByHand {
    fn register(field: &Field, nr_pages: u32) -> Option<Self> {
        let ring = match IoUring::new(4) {
            Ok(ring) => ring,
            Err(error) => return skip(&format!("io_uring: {error}")),
        };
        let (address, len) = (field.mapping.as_ptr(), nr_pages * PAGE_SIZE as u32);
        let buffer = libc::iovec {
            iov_base: address.cast(),
            iov_len: len as usize,
        };
        // SAFETY: the mapping outlives the ring in every test, and no reference to it exists.
        unsafe { ring.submitter().register_buffers(&[buffer]) }.expect("pages that are there");
        Some(Self { ring, address, len })
    }

    /// A fixed read or write of the whole buffer; answers what the kernel says.
    fn transfer(&mut self, file: &File, is_read: bool) -> i32 {
        let fd = types::Fd(file.as_raw_fd());
        let entry = if is_read {
            opcode::ReadFixed::new(fd, self.address, self.len, 0).build()
        } else {
            opcode::WriteFixed::new(fd, self.address, self.len, 0).build()
        };
        // SAFETY: the buffer is registered, and lives as told in `register`.
        unsafe { self.ring.submission().push(&entry) }.expect("room");
        self.ring.submit_and_wait(1).expect("a completion");
        let completion = self.ring.completion().next().expect("waited for it");
        completion.result()
    }
}

#[test]
fn without_the_notifier_a_fixed_read_after_a_discard_is_lost() {
    let Some(field) = Field::new(8, 64) else {
        return;
    };
    field.write(0, &noise(1, 1));
    let Some(mut by_hand) = ByHand::register(&field, 1) else {
        return;
    };
    let page = pages(0, 1);
    let from_file = noise(2, 1);
    let file = file_with(&from_file);
    assert_eq!(by_hand.transfer(&file, true), PAGE_SIZE as i32);
    assert_eq!(field.read(bytes_of(page)), from_file, "coherent so far");

    field
        .vma
        .advise(page, Advice::DontNeed)
        .expect("nobody was told of the buffer");
    let refill = noise(3, 1);
    field.write(0, &refill);

    let other = noise(4, 1);
    let file = file_with(&other);
    let answer = by_hand.transfer(&file, true);
    assert_eq!(answer, PAGE_SIZE as i32, "the kernel reports success");
    assert_eq!(
        field.read(bytes_of(page)),
        refill,
        "and what it read is lost"
    );

    // The other way round: the file gets what the old frame holds, not what the program wrote.
    let out = file_with(&[0; PAGE_SIZE]);
    assert_eq!(by_hand.transfer(&out, false), PAGE_SIZE as i32);
    let mut written = vec![0; PAGE_SIZE];
    std::os::unix::fs::FileExt::read_exact_at(&out, &mut written, 0).expect("written");
    assert_eq!(written, other, "the stale frame");
}

#[test]
fn without_the_notifier_an_eviction_finds_the_page_busy() {
    let Some(field) = Field::new(8, 64) else {
        return;
    };
    let contents = noise(1, 2);
    field.write(0, &contents);
    let Some(by_hand) = ByHand::register(&field, 1) else {
        return;
    };
    let before = field.memcg.stat().pgbusy;
    field.page_out(pages(0, 2));
    assert_eq!(field.memcg.stat().pgbusy, before + 1, "the kernel's pin");
    assert_eq!(field.state(0), State::Resident);
    assert_eq!(field.state(1), State::Swapped);
    assert_eq!(field.read(bytes_of(pages(0, 2))), contents);
    by_hand
        .ring
        .submitter()
        .unregister_buffers()
        .expect("registered before");
    field.evict(pages(0, 2));
    assert_eq!(field.read(bytes_of(pages(0, 2))), contents);
}
