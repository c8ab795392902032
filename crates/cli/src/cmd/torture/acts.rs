//! What the threads of a life do beside reading and writing.

use super::life::Life;
use super::report::Did;
use crate::cmd::run::model::{BLOCK_BYTES, BLOCKS_PER_PAGE};
use crate::cmd::run::rng::Rng;
use crate::cmd::run::tenant::{Dma, offset_of};
use crate::cmd::run::workload::{Actor, Over, cpu, dma};
use core::fmt;
use core::sync::atomic::Ordering;
use pinless::{Access, Advice, AdviseError, Bus, BusAddr, MapOptions, PAGE_SIZE, PageRun};
use pinless::{FaultMode, PinError, UnmapError};
use pinless_sim::checker::Pins;

/// One act in so many of a thread is another one than to read and write.
const ACT_ONE_IN: u64 = 16;

/// The most pages of one piece of advice.
const ADVICE_PAGES: u64 = 64;

/// The most pages that are kept at a time by one thread, or registered for one device.
const KEPT_PAGES: u64 = 8;

/// The most pages of a mapping that is gone at once.
const SIDE_PAGES: u64 = 64;

/// The most transfers between a registration and its end.
const TRANSFERS: u64 = 64;

const GIVE_UP: &str = "give up contents";
const KEEP: &str = "keep pages in their frames";
const SIDE: &str = "use a mapping of a moment";

/// An act of a thread.
type Act = fn(&Life<'_>, &mut Actor<'_>) -> Result<(), Over>;

/// What a thread of a life may do: each life does some of it.
const ACTS: [Act; 5] = [advise, give_up, pin, mlock, map_and_unmap];

/// The acts of one life, drawn for it; never none.
pub(super) fn draw(rng: &mut Rng) -> Vec<Act> {
    let first = ACTS[rng.below(ACTS.len() as u64) as usize];
    let others = ACTS.into_iter().filter(|_| rng.below(2) == 0);
    [first].into_iter().chain(others).collect()
}

/// One step of a thread.
pub(super) fn step(life: &Life<'_>, acts: &[Act], actor: &mut Actor<'_>) -> Result<(), Over> {
    if actor.rng.below(ACT_ONE_IN) > 0 {
        life.did.note(Did::Use);
        return cpu::step(actor);
    }
    let at = actor.rng.below(acts.len() as u64) as usize;
    acts[at](life, actor)
}

/// Has a device use some pages: all, or those of a registration.
pub(super) fn transfer(life: &Life<'_>, dma: &Dma, actor: &mut Actor<'_>) -> Result<(), Over> {
    let run = if dma.must_register {
        some_pages(actor, KEPT_PAGES)
    } else {
        actor.tenant.mapping.all()
    };
    if dma.must_register && dma.device.register(run).is_err() {
        // It holds as much as it may, or its address space was killed.
        dma.device.unregister(run);
        return actor.go_on();
    }
    let mut nr_hung = 0;
    for _ in 0..1 + actor.rng.below(TRANSFERS) {
        actor.go_on()?;
        let nr_blocks = u64::from(run.nr) * BLOCKS_PER_PAGE;
        let block = u64::from(run.first) * BLOCKS_PER_PAGE + actor.rng.below(nr_blocks);
        if let Some(block) = actor.tenant.model.try_lock(block) {
            dma::transfer(actor, dma, block, &mut nr_hung)?;
            life.did.note(Did::Dma);
        }
    }
    dma.device.unregister(run);
    Ok(())
}

fn some_pages(actor: &mut Actor<'_>, nr_max: u64) -> PageRun {
    let nr_pages = actor.tenant.mapping.nr_pages();
    let nr = 1 + actor.rng.below(nr_max.min(nr_pages.into())) as u32;
    PageRun::new(actor.rng.below(u64::from(nr_pages - nr) + 1) as u32, nr)
}

/// Whether advice was taken. A device that did not let go in time is not this thread's business.
fn is_taken(
    actor: &Actor<'_>,
    step: &'static str,
    run: PageRun,
    answer: Result<(), AdviseError>,
) -> Result<bool, Over> {
    match answer {
        Ok(()) => Ok(true),
        Err(AdviseError::Notifier(_)) => {
            actor.tenant.nr_stuck.fetch_add(1, Ordering::Relaxed);
            Ok(false)
        }
        Err(AdviseError::Pinned { .. } | AdviseError::Locked { .. } | AdviseError::Contended) => {
            Ok(false)
        }
        Err(error) => Err(actor.failed(step, run.first, &error)),
    }
}

/// Pages go out or come in, which changes no contents.
fn advise(life: &Life<'_>, actor: &mut Actor<'_>) -> Result<(), Over> {
    let run = some_pages(actor, ADVICE_PAGES);
    let advice = [Advice::PageOut, Advice::Cold, Advice::WillNeed][actor.rng.below(3) as usize];
    let answer = actor.tenant.mapping.advise(run, advice);
    is_taken(actor, "advise", run, answer)?;
    life.did.note(Did::Advise);
    Ok(())
}

/// A page is given up, reads as zeros, and is written again.
fn give_up(life: &Life<'_>, actor: &mut Actor<'_>) -> Result<(), Over> {
    let run = some_pages(actor, 1);
    let first = u64::from(run.first) * BLOCKS_PER_PAGE;
    let tenant = actor.tenant;
    let Some(mut blocks) = tenant.model.try_lock_run(first, BLOCKS_PER_PAGE) else {
        return Ok(());
    };
    let answer = tenant.mapping.advise(run, Advice::DontNeed);
    if !is_taken(actor, GIVE_UP, run, answer)? {
        return Ok(());
    }
    let mut found = [0xff; PAGE_SIZE];
    let at = offset_of(run.first);
    let read = tenant.mapping.read_at(at, &mut found);
    read.map_err(|error| actor.failed(GIVE_UP, run.first, &error))?;
    if found != [0; PAGE_SIZE] {
        let what = "it does not read as zeros after its contents were given up";
        return Err(actor.failed(GIVE_UP, run.first, &what));
    }
    for (block, into) in blocks.iter_mut().zip(found.chunks_mut(BLOCK_BYTES)) {
        into.copy_from_slice(&block.begin_write());
    }
    let written = tenant.mapping.write_at(at, &found);
    written.map_err(|error| actor.failed(GIVE_UP, run.first, &error))?;
    for block in &mut blocks {
        block.written();
    }
    life.did.note(Did::GiveUp);
    Ok(())
}

fn pin(life: &Life<'_>, actor: &mut Actor<'_>) -> Result<(), Over> {
    let run = some_pages(actor, KEPT_PAGES);
    let pinned = match actor.tenant.mapping.pin(run, Access::Read) {
        // So many pins on one page are somebody else's, too.
        Err(PinError::TooManyPins { .. }) => return Ok(()),
        pinned => pinned.map_err(|error| actor.failed(KEEP, run.first, &error))?,
    };
    stays(actor, run)?;
    drop(pinned);
    life.did.note(Did::Pin);
    Ok(())
}

fn mlock(life: &Life<'_>, actor: &mut Actor<'_>) -> Result<(), Over> {
    let run = some_pages(actor, KEPT_PAGES);
    let locked = actor.tenant.mapping.mlock(run);
    let locked = locked.map_err(|error| actor.failed(KEEP, run.first, &error))?;
    stays(actor, run)?;
    drop(locked);
    life.did.note(Did::Mlock);
    Ok(())
}

/// Pages that are kept are asked to go, and must be where they were: G11.
fn stays(actor: &mut Actor<'_>, run: PageRun) -> Result<(), Over> {
    let mut pins = Pins::new();
    let before = frames(actor, run)?;
    pins.pinned(before.clone());
    let answer = actor.tenant.mapping.advise(run, Advice::PageOut);
    is_taken(actor, KEEP, run, answer)?;
    let after = frames(actor, run)?;
    actor.go_on()?;
    for (&(page, generation), now) in before.iter().zip(after) {
        if now != (page, generation) {
            let moved = pins.moved(page, generation);
            moved.map_err(|breach| actor.failed(KEEP, page, &breach))?;
        }
    }
    Ok(())
}

/// The pages, each with the generation of its frame.
fn frames(actor: &Actor<'_>, run: PageRun) -> Result<Vec<(u32, u32)>, Over> {
    let vma = actor.tenant.mapping.vma();
    let none = BusAddr {
        page: 0,
        generation: 0,
        access: Access::Read,
    };
    let mut into = vec![none; run.nr as usize];
    vma.fault_range(run, Access::Read, &mut into)
        .map_err(|error| actor.failed(KEEP, run.first, &error))?;
    Ok(into.iter().map(|at| (at.page, at.generation)).collect())
}

/// A mapping comes, is used in one place, and goes.
fn map_and_unmap(life: &Life<'_>, actor: &mut Actor<'_>) -> Result<(), Over> {
    let nr_pages = 1 + actor.rng.below(SIDE_PAGES) as u32;
    let page = actor.rng.below(nr_pages.into()) as u32;
    let mode = match actor.coin() {
        true => FaultMode::Service,
        false => FaultMode::InThread,
    };
    let failed = |actor: &Actor<'_>, error: &dyn fmt::Display| actor.failed(SIDE, page, error);
    let options = MapOptions::of_pages(nr_pages).fault_mode(mode);
    let mapping = life.pinless.map(&actor.tenant.mm, options);
    let mapping = mapping.map_err(|error| failed(actor, &error))?;
    let (mut expected, mut found) = ([0; PAGE_SIZE], [0xff; PAGE_SIZE]);
    let at = offset_of(page);
    for is_written in [false, true] {
        if is_written {
            actor.rng.fill(&mut expected);
            let written = mapping.write_at(at, &expected);
            written.map_err(|error| failed(actor, &error))?;
            let answer = mapping.advise(mapping.all(), Advice::PageOut);
            is_taken(actor, SIDE, mapping.all(), answer)?;
        }
        let read = mapping.read_at(at, &mut found);
        read.map_err(|error| failed(actor, &error))?;
        if found != expected {
            return Err(failed(actor, &"other bytes were read than were written"));
        }
    }
    life.did.note(Did::Map);
    match mapping.unmap() {
        Ok(()) | Err(UnmapError::Notifier(_)) => Ok(()),
        Err(error) => Err(failed(actor, &error)),
    }
}
