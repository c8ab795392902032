//! One address space from its first page to its last, with all who use it.

use super::acts;
use super::report::{Did, Done};
use super::stage::Stage;
use crate::args::Injection;
use crate::cmd::run::RunError;
use crate::cmd::run::judge::Failure;
use crate::cmd::run::rng::Rng;
use crate::cmd::run::tenant::{Tally, Tenant};
use crate::cmd::run::verify;
use crate::cmd::run::workload::{Actor, Over, load, ring};
use core::sync::atomic::Ordering;
use pinless::{Pinless, mmu_notifier};
use std::sync::Arc;
use std::thread::Scope;

/// Threads of a life that use its memory as a program does.
const THREADS: u32 = 2;

/// Steps of a thread in its life, at least; up to four times as many.
const STEPS: u64 = 500;

/// Pages of one transfer of a ring, and of one step of loading.
const CHUNK_PAGES: u32 = 8;

/// Who acts in a life: the numbers of their streams.
const LOADER: u32 = 0;
const VERIFIER: u32 = 1;
const RING: u32 = 2;
const FIRST_THREAD: u32 = 10;
const FIRST_DEVICE: u32 = 20;

/// What those who act in a life share.
pub(super) struct Life<'a> {
    pub(super) pinless: &'a Pinless,
    pub(super) did: &'a Done,
    seed: u64,
}

/// Lives one life in a slot.
pub(super) fn live(stage: &Stage, slot: u32, nr: u32) -> Result<(), RunError> {
    let shape = stage.plan.shape_of(slot, nr);
    let life = Life {
        pinless: &stage.pinless,
        did: &stage.did,
        seed: shape.seed,
    };
    let tenant = Tenant::create(&stage.pinless, shape, &stage.corpus, &stage.no_ring)?;
    tenant.witness.arm();
    let inject = tenant.mm.notifiers();
    match stage.plan.inject {
        Some(Injection::SkipNotifier) => inject.inject(mmu_notifier::Inject::SkipNotifier),
        Some(Injection::LateEnd) => inject.inject(mmu_notifier::Inject::LateEnd),
        // Those of the store are the whole run's.
        Some(Injection::LostStore | Injection::CorruptSlot) | None => {}
    }
    *stage.slots[slot as usize].lock() = Some(Arc::clone(&tenant.mm));
    std::thread::scope(|scope| {
        let _curtain = Curtain(&tenant);
        act(stage, &life, &tenant, scope);
    });
    *stage.slots[slot as usize].lock() = None;
    judge(stage, &tenant);
    stage.did.end_of(&tenant);
    let (name, is_killed) = (tenant.name.clone(), tenant.mm.is_killed());
    let nr_pins = tenant.close();
    if nr_pins > 0 {
        let what = format!("{nr_pins} pins are left, and nobody to have them");
        stage.judge.fail(about(&name, "close", what));
    }
    stage
        .did
        .note(if is_killed { Did::DieEarly } else { Did::Live });
    Ok(())
}

fn act<'scope>(
    stage: &'scope Stage,
    life: &'scope Life<'scope>,
    tenant: &'scope Tenant,
    scope: &'scope Scope<'scope, '_>,
) {
    let judge = &stage.judge;
    for dma in &tenant.dma {
        for _ in 0..dma.device.nr_servers() {
            judge.spawn(scope, dma.device.name(), || dma.device.serve());
        }
    }
    let loader = life.actor(stage, tenant, "loader", &tenant.loading, LOADER);
    if load::run(&loader, CHUNK_PAGES).is_err() {
        return;
    }
    let mut threads = Vec::new();
    for thread in 0..THREADS {
        let mut actor = life.actor(stage, tenant, "thread", &tenant.cpu, FIRST_THREAD + thread);
        let drawn = acts::draw(&mut actor.rng);
        let body = move || repeat(&mut actor, |actor| acts::step(life, &drawn, actor));
        threads.push(judge.spawn(scope, "thread", body));
    }
    for (stream, dma) in (FIRST_DEVICE..).zip(&tenant.dma) {
        let mut actor = life.actor(stage, tenant, dma.device.name(), &dma.tally, stream);
        // One step of a device is many transfers.
        let body = move || repeat(&mut actor, |actor| acts::transfer(life, dma, actor));
        threads.push(judge.spawn(scope, dma.kind, body));
    }
    if let Some(device) = &tenant.ring {
        let mut actor = life.actor(stage, tenant, "io_uring", &device.tally, RING);
        let body = move || {
            repeat(&mut actor, |actor| {
                life.did.note(Did::IoUring);
                ring::step(actor, device, CHUNK_PAGES)
            });
        };
        threads.push(judge.spawn(scope, "ring", body));
    }
    for thread in threads.into_iter().flatten() {
        // A panic of it is known to the judge.
        let _ = thread.join();
    }
    let verifier = life.actor(stage, tenant, "the last check", &tenant.loading, VERIFIER);
    verify::verify(&verifier, || stage.is_interrupted() || judge.is_stopped());
}

/// Repeats a step as often as the actor's stream says, or until the work is over.
fn repeat(actor: &mut Actor<'_>, mut step: impl FnMut(&mut Actor<'_>) -> Result<(), Over>) {
    let nr_steps = STEPS + actor.rng.below(3 * STEPS);
    for _ in 0..nr_steps {
        if actor.go_on().is_err() || step(actor).is_err() {
            return;
        }
        actor.tally.op();
    }
}

impl<'a> Life<'a> {
    fn actor(
        &self,
        stage: &'a Stage,
        tenant: &'a Tenant,
        name: &str,
        tally: &'a Tally,
        stream: u32,
    ) -> Actor<'a> {
        Actor {
            judge: &stage.judge,
            tenant,
            name: name.to_owned(),
            tally,
            rng: Rng::new(self.seed, tenant.index, stream),
        }
    }
}

/// What has to be true when all have stopped.
fn judge(stage: &Stage, tenant: &Tenant) {
    if let Some(failure) = tenant.witness.verdict(&tenant.name) {
        stage.judge.fail(failure);
    }
    for dma in &tenant.dma {
        let stale = dma.device.stats().stale;
        if stale > 0 {
            let what = format!("{stale} accesses through stale translations");
            stage.judge.fail(about(dma.device.name(), "DMA", what));
        }
    }
    let nr_stuck = tenant.nr_stuck.load(Ordering::Relaxed);
    stage.did.add(Did::Stuck, nr_stuck);
}

fn about(whose: &str, step: &'static str, what: String) -> Failure {
    Failure {
        whose: whose.to_owned(),
        actor: "pinless".to_owned(),
        step,
        page: None,
        what,
    }
}

/// However the scope is left, no engine is waited for in vain.
struct Curtain<'a>(&'a Tenant);

impl Drop for Curtain<'_> {
    fn drop(&mut self) {
        self.0.stop_devices();
    }
}
