//! Devices: they read and write through their own translations.

use super::{Actor, Over};
use crate::cmd::run::model::{BLOCK_BYTES, BLOCKS_PER_PAGE, Locked};
use crate::cmd::run::tenant::Dma;
use core::sync::atomic::Ordering;
use core::time::Duration;
use pinless_devices::DmaError;

/// A card gives up a command after a second, which passes on a busy machine; one that gives up this
/// often in a row does hang.
const HUNG_MAX: u32 = 20;

const READ: &str = "DMA read and verify";
const WRITE: &str = "DMA write";

/// Pages on which the device works that is going to hang: what it holds is not taken back.
pub(crate) const HANGING_PAGES: u32 = 16;

/// Works until it is over.
pub(crate) fn run(mut actor: Actor<'_>, dma: &Dma) {
    let mut nr_hung = 0;
    actor.repeat(|actor| {
        let block = actor.lock_block()?;
        transfer(actor, dma, block, &mut nr_hung)
    });
}

/// Works on few pages until it is told to hang, and then hangs with them in its hands.
pub(crate) fn run_until_hang(mut actor: Actor<'_>, dma: &Dma, may_hang: impl Fn() -> bool) {
    let tenant = actor.tenant;
    actor.repeat(|actor| {
        let nr_blocks = u64::from(HANGING_PAGES) * BLOCKS_PER_PAGE;
        let nr_blocks = nr_blocks.min(tenant.model.nr_blocks());
        let last = tenant.model.nr_blocks() - 1 - actor.rng.below(nr_blocks);
        let Some(block) = tenant.model.try_lock(last) else {
            std::thread::yield_now();
            return Ok(());
        };
        transfer(actor, dma, block, &mut 0)?;
        if may_hang() {
            dma.device.hang(true);
            if dma.device.holds() > 0 {
                tenant.is_hung.store(true, Ordering::Relaxed);
                return Err(Over);
            }
            // Everything was taken back a moment ago: a hanging device that holds nothing would
            // not be in the way of anybody.
            dma.device.hang(false);
        }
        // Few pages: leave the processor to those who have many.
        lockdep::sync::sleep("cli.hanging", Duration::from_micros(200));
        Ok(())
    });
}

/// Reads a block, and half of the time writes it.
pub(crate) fn transfer(
    actor: &mut Actor<'_>,
    dma: &Dma,
    mut block: Locked<'_>,
    nr_hung: &mut u32,
) -> Result<(), Over> {
    let (page, offset) = (block.page(), block.offset_in_page());
    let mut found = [0; BLOCK_BYTES];
    match dma.device.read(page, offset, &mut found) {
        Ok(()) => actor.verify(READ, &block, &found)?,
        Err(error) if is_passing(dma, error, nr_hung) => return Ok(()),
        Err(error) => return Err(actor.failed(READ, page, &error)),
    }
    if actor.coin() {
        let next = block.begin_write();
        match dma.device.write(page, offset, &next) {
            Ok(()) => block.written(),
            // A job that was given up on may still be done: the block counts as unknown.
            Err(DmaError::Hung) if is_passing(dma, DmaError::Hung, nr_hung) => {}
            Err(error) if is_passing(dma, error, nr_hung) => block.not_written(),
            Err(error) => return Err(actor.failed(WRITE, page, &error)),
        }
    }
    *nr_hung = 0;
    Ok(())
}

/// The device did nothing this time: the page is wanted by others too, or its engine did not get
/// to it.
fn is_passing(dma: &Dma, error: DmaError, nr_hung: &mut u32) -> bool {
    *nr_hung += u32::from(error == DmaError::Hung);
    match error {
        DmaError::Starved => true,
        DmaError::Hung => *nr_hung < HUNG_MAX,
        // What is given up by advice has to be registered again.
        DmaError::Unregistered { .. } => dma.must_register,
        DmaError::Stale(_)
        | DmaError::Fault(_)
        | DmaError::Pin(_)
        | DmaError::LimitReached { .. }
        | DmaError::Stopped => false,
    }
}
