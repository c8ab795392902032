//! Threads of the program: they read and write through addresses.

use super::{Actor, Over};
use crate::cmd::run::model::{BLOCK_BYTES, Locked};
use crate::cmd::run::plan::CpuAccess;
use core::sync::atomic::Ordering;
use pinless::{Access, Advice, AdviseError, PageRun};

/// One step in so many gives advice instead of using memory.
const ADVICE_ONE_IN: u64 = 1024;

/// The most pages of one piece of advice.
const ADVICE_PAGES: u64 = 16;

const READ: &str = "read and verify";
const WRITE: &str = "write";

/// Works until it is over.
pub(crate) fn run(mut actor: Actor<'_>) {
    actor.repeat(|actor| {
        if actor.rng.below(ADVICE_ONE_IN) == 0 {
            return advise(actor);
        }
        step(actor)
    });
}

/// Uses one block as the tenant's threads do.
pub(crate) fn step(actor: &mut Actor<'_>) -> Result<(), Over> {
    let block = actor.lock_block()?;
    match actor.tenant.access {
        CpuAccess::Service | CpuAccess::InThread => through_address(actor, block),
        CpuAccess::Guard => through_guard(actor, block),
    }
}

fn through_address(actor: &mut Actor<'_>, mut block: Locked<'_>) -> Result<(), Over> {
    let (mapping, page) = (&actor.tenant.mapping, block.page());
    let mut found = [0; BLOCK_BYTES];
    mapping
        .read_at(block.offset(), &mut found)
        .map_err(|error| actor.failed(READ, page, &error))?;
    actor.verify(READ, &block, &found)?;
    if actor.coin() {
        let next = block.begin_write();
        mapping
            .write_at(block.offset(), &next)
            .map_err(|error| actor.failed(WRITE, page, &error))?;
        block.written();
    }
    Ok(())
}

fn through_guard(actor: &mut Actor<'_>, mut block: Locked<'_>) -> Result<(), Over> {
    let (page, offset) = (block.page(), block.offset_in_page() as u64);
    let is_write = actor.coin();
    let access = if is_write {
        Access::Write
    } else {
        Access::Read
    };
    let guard = actor
        .tenant
        .mapping
        .guard(PageRun::single(page), access)
        .map_err(|error| actor.failed("guard", page, &error))?;
    let mut found = [0; BLOCK_BYTES];
    guard
        .read(offset, &mut found)
        .map_err(|error| actor.failed(READ, page, &error))?;
    actor.verify(READ, &block, &found)?;
    if is_write {
        let next = block.begin_write();
        guard
            .write(offset, &next)
            .map_err(|error| actor.failed(WRITE, page, &error))?;
        block.written();
    }
    Ok(())
}

/// Has some pages brought in or out before anybody needs them, which changes no contents.
fn advise(actor: &mut Actor<'_>) -> Result<(), Over> {
    let nr_pages = actor.tenant.mapping.vma().nr_pages();
    let nr = 1 + actor.rng.below(ADVICE_PAGES.min(nr_pages.into())) as u32;
    let first = actor.rng.below(u64::from(nr_pages - nr) + 1) as u32;
    let advice = if actor.coin() {
        Advice::PageOut
    } else {
        Advice::WillNeed
    };
    match actor.tenant.mapping.advise(PageRun::new(first, nr), advice) {
        Ok(()) => {}
        Err(AdviseError::Notifier(_)) => {
            // A device did not let go in time: not this thread's business, and counted.
            actor.tenant.nr_stuck.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => return Err(actor.failed("advise", first, &error)),
    }
    Ok(())
}
