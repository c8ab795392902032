//! The kernel as a writer: `read(2)`, and fixed reads of io_uring with the registry's slots and
//! without.

use crate::{FIXED_AT, Field, IO_BLOCK, PIPE_AT, RING_AT, Tally, block, offset_of};
use fastrand::Rng;
use io_uring::{IoUring, opcode, types};
use pinless_host::io_uring::{Kind, Ring};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::primary_mmu::Access;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd};

/// Has the kernel write into a pinned page, by `read(2)`.
pub(crate) fn read_into(field: &Field) -> Tally {
    let mut rng = Rng::with_seed(103);
    let mut tally = Tally::default();
    let mut counts = vec![0_u64; field.nr_shared as usize];
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    while !field.is_done() {
        let page = field.any_page(&mut rng);
        let at = offset_of(page) + PIPE_AT;
        let count = &mut counts[page as usize];
        check_io(field, &mut tally, "read(2)", at, &block(page, 0x10, *count));
        *count += 1;
        let bytes: [u8; IO_BLOCK] = block(page, 0x10, *count);
        writer.write_all(&bytes).expect("room in the pipe");
        let _pin = field.pin(page, Access::Write);
        // SAFETY: the bytes lie in the mapping, which lives as long as `field`; nobody else uses
        // that part of a page.
        let nr = unsafe {
            let to = field.host.as_ptr().add(at as usize);
            libc::read(reader.as_raw_fd(), to.cast(), IO_BLOCK)
        };
        assert_eq!(nr, IO_BLOCK as isize, "read(2) of a page that is pinned");
        tally.writes += 1;
    }
    tally
}

fn check_io(field: &Field, tally: &mut Tally, what: &str, at: u64, wrote: &[u8; IO_BLOCK]) {
    let mut found = [0; IO_BLOCK];
    field.good(field.host.read_at(at, &mut found));
    tally.check(what, at, &found, wrote);
}

/// Has the kernel write by fixed reads of a ring whose slots reclaim takes back.
pub(crate) fn ring_into(field: &Field) -> Tally {
    let mut rng = Rng::with_seed(105);
    let mut tally = Tally::default();
    let mut counts = vec![0_u64; field.nr_shared as usize];
    let ring = match Ring::new(4, 4, Kind::Shared) {
        Ok(ring) => ring,
        Err(error) => {
            println!("skipped: fixed reads of the registry: {error}");
            return tally;
        }
    };
    let area = ring.attach(&field.host, &field.vma).expect("its pages");
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    while !field.is_done() {
        let page = field.any_page(&mut rng);
        let at = offset_of(page) + RING_AT;
        let count = &mut counts[page as usize];
        check_io(field, &mut tally, "ring", at, &block(page, 0x12, *count));
        *count += 1;
        let bytes: [u8; IO_BLOCK] = block(page, 0x12, *count);
        writer.write_all(&bytes).expect("room in the pipe");
        let bytes = at..at + IO_BLOCK as u64;
        field.good(ring.read_fixed(&area, reader.as_fd(), 0, bytes));
        tally.writes += 1;
    }
    let stats = ring.stats();
    assert_eq!((stats.op_errors, stats.strays), (0, 0), "{stats:?}");
    tally
}

/// A ring whose fixed buffer is one page of managed memory, another one each time.
struct FixedReader<'a> {
    field: &'a Field,
    ring: IoUring,
    reader: PipeReader,
    writer: PipeWriter,
    counts: Vec<u64>,
    rng: Rng,
    tally: Tally,
}

impl FixedReader<'_> {
    /// Has the kernel's device write into a page: in half of the rounds the books know of it (a
    /// pin), in the other half the kernel's own pin alone keeps the page where it is, if it does.
    fn round(&mut self) {
        let field = self.field;
        let page = field.any_page(&mut self.rng);
        let at = offset_of(page) + FIXED_AT;
        let count = &mut self.counts[page as usize];
        check_io(
            field,
            &mut self.tally,
            "fixed read",
            at,
            &block(page, 0x11, *count),
        );
        *count += 1;
        let bytes: [u8; IO_BLOCK] = block(page, 0x11, *count);
        self.writer.write_all(&bytes).expect("room in the pipe");
        let pin = field.pin(page, Access::Write);
        // SAFETY: the page lies in the mapping, which lives as long as `field`.
        let base = unsafe { field.host.as_ptr().add(offset_of(page) as usize) };
        let buffer = libc::iovec {
            iov_base: base.cast(),
            iov_len: PAGE_SIZE,
        };
        // SAFETY: as above; the buffer is unregistered before this function returns.
        unsafe { self.ring.submitter().register_buffers(&[buffer]) }.expect("a fixed buffer");
        if field.has_pin_check && self.rng.bool() {
            drop(pin);
            self.read_fixed(base, at);
        } else {
            self.read_fixed(base, at);
            drop(pin);
        }
        self.ring
            .submitter()
            .unregister_buffers()
            .expect("registered above");
        self.tally.writes += 1;
    }

    fn read_fixed(&mut self, base: *mut u8, at: u64) {
        // SAFETY: the bytes lie in the page at `base`.
        let to = unsafe { base.add(at as usize % PAGE_SIZE) };
        let fd = types::Fd(self.reader.as_raw_fd());
        let entry = opcode::ReadFixed::new(fd, to, IO_BLOCK as u32, 0).build();
        // SAFETY: the buffer is registered until the completion was taken, by the caller; nobody
        // else uses that part of the page.
        unsafe { self.ring.submission().push(&entry) }.expect("an empty ring");
        self.ring.submit_and_wait(1).expect("submitted");
        let completion = self.ring.completion().next().expect("waited for");
        assert_eq!(completion.result(), IO_BLOCK as i32, "a fixed read");
    }
}

pub(crate) fn read_fixed_into(field: &Field) -> Tally {
    let ring = match IoUring::new(4) {
        Ok(ring) => ring,
        Err(error) => {
            println!("skipped: fixed reads: no io_uring: {error}");
            return Tally::default();
        }
    };
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut device = FixedReader {
        field,
        ring,
        reader,
        writer,
        counts: vec![0; field.nr_shared as usize],
        rng: Rng::with_seed(104),
        tally: Tally::default(),
    };
    while !field.is_done() {
        device.round();
    }
    device.tally
}
