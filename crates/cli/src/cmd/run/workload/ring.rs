//! io_uring, a real device: memory goes out to a file and comes back.

use super::{Actor, Over};
use crate::cmd::run::model::{BLOCK_BYTES, BLOCKS_PER_PAGE, Locked};
use crate::cmd::run::tenant::{RingDevice, offset_of};
use core::ops::Range;
use pinless::{PAGE_SIZE, PageIndex};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Pages of the file; it is used again and again.
const FILE_PAGES: u32 = 1024;

const OUT: &str = "write out to a file and verify";
const BACK: &str = "read back from a file";
const FILE: &str = "use the temporary file";

/// Works until it is over.
pub(crate) fn run(mut actor: Actor<'_>, device: &RingDevice, pages_max: u32) {
    actor.repeat(|actor| step(actor, device, pages_max));
}

/// Has some pages written out and read back.
pub(crate) fn step(actor: &mut Actor<'_>, device: &RingDevice, pages_max: u32) -> Result<(), Over> {
    let nr_pages = actor.tenant.mapping.vma().nr_pages();
    let nr = 1 + actor.rng.below(pages_max.min(nr_pages).into()) as u32;
    let first = actor.rng.below(u64::from(nr_pages - nr) + 1) as u32;
    let block = u64::from(first) * BLOCKS_PER_PAGE;
    let nr_blocks = u64::from(nr) * BLOCKS_PER_PAGE;
    let Some(blocks) = actor.tenant.model.try_lock_run(block, nr_blocks) else {
        std::thread::yield_now();
        return Ok(());
    };
    round_trip(actor, device, first, blocks)
}

fn round_trip(
    actor: &mut Actor<'_>,
    device: &RingDevice,
    first: PageIndex,
    mut blocks: Vec<Locked<'_>>,
) -> Result<(), Over> {
    let (ring, area, file) = (&device.ring, &device.area, &device.file);
    let in_file = offset_of(first % FILE_PAGES);
    let len = blocks.len() * BLOCK_BYTES;
    let bytes: Range<u64> = offset_of(first)..offset_of(first) + len as u64;
    ring.write_fixed(area, file.as_fd(), in_file, bytes.clone())
        .map_err(|error| actor.failed(OUT, first, &error))?;
    let mut buffer = vec![0; len];
    file.read_exact_at(&mut buffer, in_file)
        .map_err(|error| actor.failed(FILE, first, &error))?;
    for (block, found) in blocks.iter().zip(buffer.chunks(BLOCK_BYTES)) {
        actor.verify(OUT, block, found)?;
    }
    // Half of the time the same comes back, half of the time something new.
    let is_new = actor.coin();
    for (block, into) in blocks.iter_mut().zip(buffer.chunks_mut(BLOCK_BYTES)) {
        let contents = if is_new {
            block.begin_write()
        } else {
            block.begin_rewrite()
        };
        into.copy_from_slice(&contents);
    }
    file.write_all_at(&buffer, in_file)
        .map_err(|error| actor.failed(FILE, first, &error))?;
    ring.read_fixed(area, file.as_fd(), in_file, bytes)
        .map_err(|error| actor.failed(BACK, first, &error))?;
    for block in &mut blocks {
        block.written();
    }
    debug_assert!(len.is_multiple_of(PAGE_SIZE));
    Ok(())
}
