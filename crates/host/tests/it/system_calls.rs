//! `read(2)` and `write(2)` on managed memory that comes and goes: with a service, and through
//! guards.

use crate::fake::skip;
use crate::world::{World, offset_of};
use pinless_host::{FaultMode, Guard, attach_thread};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::limits::Limits;
use pinless_mm::primary_mmu::Access;
use std::io::{Read, Write};

const NR_PAGES: u32 = 64;

fn contents_of(page: u32, round: u32) -> Vec<u8> {
    let word = (u64::from(page) << 32 | u64::from(round)).to_ne_bytes();
    word.repeat(PAGE_SIZE / 8)
}

/// Has each page written to a pipe and read from one by the kernel, at the address that `with`
/// gives. Four times as many pages as frames.
fn check(mode: FaultMode, with: impl Fn(&World, u32, Access, &mut dyn FnMut(*mut u8))) {
    let limits = Limits::new(u64::from(NR_PAGES / 4) * PAGE_SIZE as u64);
    let Some(world) = World::new(NR_PAGES, limits, mode, None) else {
        return;
    };
    let serves = world.mapping.mmu().source().serves_kernel_faults();
    if mode == FaultMode::Service && !serves {
        return skip("userfaultfd for kernel faults");
    }
    let _attached = attach_thread().unwrap();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    for page in 0..NR_PAGES {
        let written = world
            .mapping
            .write_at(offset_of(page), &contents_of(page, 0));
        written.expect("room");
    }
    for page in 0..NR_PAGES {
        let mut found = vec![0; PAGE_SIZE];
        with(&world, page, Access::Read, &mut |address| {
            // SAFETY: the page lies in the mapping, and nobody writes it during the call.
            let bytes = unsafe { std::slice::from_raw_parts(address, PAGE_SIZE) };
            assert_eq!(writer.write(bytes).unwrap(), PAGE_SIZE);
        });
        reader.read_exact(&mut found).unwrap();
        assert!(found == contents_of(page, 0), "page {page} was written");
    }
    for page in 0..NR_PAGES {
        writer.write_all(&contents_of(page, 1)).unwrap();
        with(&world, page, Access::Write, &mut |address| {
            // SAFETY: the page lies in the mapping, and nobody else uses it during the call.
            let bytes = unsafe { std::slice::from_raw_parts_mut(address, PAGE_SIZE) };
            assert_eq!(reader.read(bytes).unwrap(), PAGE_SIZE);
        });
    }
    for page in 0..NR_PAGES {
        let mut found = vec![0; PAGE_SIZE];
        world.mapping.read_at(offset_of(page), &mut found).unwrap();
        assert!(found == contents_of(page, 1), "page {page} was read");
    }
    assert!(world.stat().pgsteal > u64::from(NR_PAGES));
}

#[test]
fn the_kernel_reads_and_writes_pages_that_a_service_brings_back() {
    check(FaultMode::Service, |world, page, _, call| {
        call(
            world
                .mapping
                .as_ptr()
                .wrapping_add(offset_of(page) as usize),
        );
    });
}

#[test]
fn the_kernel_reads_and_writes_pages_under_a_guard() {
    for mode in [FaultMode::Service, FaultMode::InThread] {
        check(mode, |world, page, access, call| {
            let run = PageRun::single(page);
            let guard = Guard::new(&world.mapping, &world.vma, run, access).expect("a frame");
            call(guard.as_ptr());
        });
    }
}
