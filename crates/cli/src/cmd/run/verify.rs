//! The last check: all memory is read, hashed, and compared with the model.

use super::model::{BLOCK_BYTES, BLOCKS_PER_PAGE};
use super::plan::Plan;
use super::stage::Stage;
use super::tenant::{Tally, Tenant, offset_of};
use super::workload::Actor;
use crate::render::live::Live;
use core::time::Duration;
use pinless::{Access, PAGE_SIZE, PageIndex, PageRun};
use std::thread::Scope;
use xxhash_rust::xxh3::Xxh3;

const HASH: &str = "final hash";

/// What was found in a tenant's memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verified {
    pub(crate) is_killed: bool,
    /// All pages were looked at: not so after Ctrl-C.
    pub(crate) is_complete: bool,
    pub(crate) memory_hash: u64,
    pub(crate) model_hash: u64,
    pub(crate) bytes: u64,
    /// Pages with other contents than the model's.
    pub(crate) pages_wrong: u64,
    /// Pages that could not be read.
    pub(crate) pages_unreadable: u64,
}

/// Verifies every tenant, all at once.
pub(crate) fn run<'scope>(
    stage: &'scope Stage,
    scope: &'scope Scope<'scope, '_>,
    live: &Live,
) -> Vec<Verified> {
    let threads: Vec<_> = stage
        .tenants
        .iter()
        .map(|tenant| {
            let tally = &tenant.loading;
            let actor = stage.actor(tenant, "the last check".to_owned(), tally, 20);
            stage.judge.spawn(scope, "verify", move || {
                verify(&actor, || stage.is_interrupted())
            })
        })
        .collect();
    let progress = || -> u64 { stage.tenants.iter().map(|t| t.loading.ops()).sum() };
    let began = progress();
    let total = total_pages(&stage.plan);
    while threads.iter().flatten().any(|thread| !thread.is_finished()) {
        live.show("hash", progress() - began, total, &stage.figures());
        std::thread::sleep(Duration::from_millis(20));
    }
    threads
        .into_iter()
        .map(|thread| thread.and_then(|thread| thread.join().ok().flatten()))
        .map(Option::unwrap_or_default)
        .collect()
}

fn total_pages(plan: &Plan) -> u64 {
    u64::from(plan.nr_tenants) * u64::from(plan.tenant_pages)
}

/// Verifies a tenant, until it `is_interrupted`.
pub(crate) fn verify(actor: &Actor<'_>, is_interrupted: impl Fn() -> bool) -> Verified {
    let (tenant, tally): (&Tenant, &Tally) = (actor.tenant, actor.tally);
    let mut verified = Verified {
        is_killed: tenant.mm.is_killed(),
        ..Verified::default()
    };
    let (mut memory, mut model) = (Xxh3::new(), Xxh3::new());
    for page in 0..tenant.mapping.vma().nr_pages() {
        if is_interrupted() {
            return verified;
        }
        tally.op();
        let mut found = [0; PAGE_SIZE];
        if let Err(error) = read(tenant, page, &mut found) {
            if !tenant.mm.is_killed() {
                verified.pages_unreadable += 1;
                actor.judge.fail(actor.failure(HASH, Some(page), &*error));
            }
            continue;
        }
        let mut expected = found;
        let is_right = compare(actor, page, &found, &mut expected);
        verified.pages_wrong += u64::from(!is_right);
        verified.bytes += if is_right { PAGE_SIZE as u64 } else { 0 };
        memory.update(&found);
        model.update(&expected);
    }
    verified.is_complete = true;
    verified.memory_hash = memory.digest();
    verified.model_hash = model.digest();
    verified
}

/// Reads a page: of a living tenant through a guard, of a killed one as far as something is there.
fn read(
    tenant: &Tenant,
    page: PageIndex,
    into: &mut [u8; PAGE_SIZE],
) -> Result<(), Box<dyn std::error::Error>> {
    if tenant.mm.is_killed() {
        return Ok(tenant.mapping.read_at(offset_of(page), into)?);
    }
    let guard = tenant.mapping.guard(PageRun::single(page), Access::Read)?;
    Ok(guard.read(0, into)?)
}

/// Compares a page with the model; where the model does not know, because a write had failed, what
/// was found counts as expected.
fn compare(
    actor: &Actor<'_>,
    page: PageIndex,
    found: &[u8; PAGE_SIZE],
    expected: &mut [u8; PAGE_SIZE],
) -> bool {
    let model = &actor.tenant.model;
    let first = u64::from(page) * BLOCKS_PER_PAGE;
    let mut mismatch = None;
    for (index, into) in (0..).zip(expected.chunks_mut(BLOCK_BYTES)) {
        let block = first + index;
        let Some(version) = model.settled_version(block) else {
            continue;
        };
        into.copy_from_slice(&model.contents(block, version));
        let bytes = &found[index as usize * BLOCK_BYTES..][..BLOCK_BYTES];
        let checked = model.check(block, version, bytes);
        mismatch = mismatch.or(checked.err());
    }
    if let Some(mismatch) = &mismatch {
        actor.mismatch(HASH, mismatch);
    } else {
        actor.tally.verified(PAGE_SIZE);
    }
    mismatch.is_none()
}
