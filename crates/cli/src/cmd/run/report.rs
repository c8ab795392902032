//! Everything that is told of a run: made once, shown as a table and as JSON.

use super::corpus::Corpus;
use super::judge::Failure;
use super::oom_story::Oom;
use super::stage::{Course, Stage};
use super::tenant::{Dma, RingDevice, Tenant};
use super::verify::Verified;
use pinless::PAGE_SIZE;
use pinless::mmu_notifier::{Event, Mode};
use pinless_mm::histogram::Summary;
use serde::Serialize;
use std::path::Path;

/// A run as it was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    /// Ended by Ctrl-C: what was not reached is not judged.
    pub(crate) interrupted: bool,
    pub(crate) failures: Vec<Failure>,
    /// With those that are not told one by one.
    pub(crate) nr_failures: u64,
    pub(crate) notes: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) input: Input,
    pub(crate) managed_bytes: u64,
    pub(crate) load_seconds: f64,
    pub(crate) work_seconds: f64,
    pub(crate) operations: u64,
    pub(crate) bytes_verified: u64,
    /// Pages that did not hold what they must, at any check.
    pub(crate) hash_mismatches: u64,
    pub(crate) stale_dma: u64,
    pub(crate) charge_peak_bytes: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) zswap_peak_bytes: u64,
    pub(crate) zswap_limit_bytes: u64,
    /// Resident memory that is not managed, early in the work and before the leak.
    pub(crate) rss_other_start_bytes: u64,
    pub(crate) rss_other_end_bytes: u64,
    pub(crate) faults: Faults,
    /// Frames taken back.
    pub(crate) evictions: u64,
    pub(crate) compression_ratio: f64,
    pub(crate) invalidations: Invalidations,
    /// Non-blockable invalidations that were refused.
    pub(crate) refusals: u64,
    /// Waits for a device that did not let go in time.
    pub(crate) stuck: u64,
    pub(crate) oom: Option<Oom>,
    pub(crate) devices: Vec<Device>,
    pub(crate) tenants: Vec<TenantReport>,
}

/// What was loaded.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Input {
    pub(crate) path: String,
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    pub(crate) unreadable: u64,
    /// Pages whose file changed while it was loaded.
    pub(crate) changed_pages: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Faults {
    pub(crate) soft: Latency,
    pub(crate) hard: Latency,
    pub(crate) zero: u64,
    pub(crate) write_protect: u64,
    /// Faults that had to wait for a frame.
    pub(crate) waited: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
}

/// Brackets that reached somebody.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Invalidations {
    pub(crate) total: u64,
    pub(crate) by_event: Vec<ByEvent>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ByEvent {
    pub(crate) event: &'static str,
    pub(crate) nonblock: u64,
    pub(crate) blockable: u64,
}

/// A device, whatever its kind: what does not apply to it is 0.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) operations: u64,
    pub(crate) bytes_verified: u64,
    /// Times that it asked the memory manager for a page.
    pub(crate) faults: u64,
    pub(crate) retries: u64,
    pub(crate) invalidations: u64,
    pub(crate) refusals: u64,
    pub(crate) stale: u64,
    pub(crate) errors: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct TenantReport {
    pub(crate) name: String,
    pub(crate) access: String,
    pub(crate) bytes: u64,
    pub(crate) operations: u64,
    pub(crate) bytes_verified: u64,
    pub(crate) killed: bool,
    /// Of what was read at the end, and of what had to be there; none after Ctrl-C.
    pub(crate) memory_hash: Option<String>,
    pub(crate) model_hash: Option<String>,
    pub(crate) pages_wrong: u64,
    pub(crate) pages_unreadable: u64,
}

impl Input {
    pub(crate) fn new(path: &Path, corpus: &Corpus) -> Self {
        Self {
            path: path.display().to_string(),
            files: corpus.nr_files(),
            bytes: corpus.len(),
            unreadable: corpus.nr_unreadable,
            changed_pages: 0,
        }
    }
}

impl Report {
    pub(crate) fn new(stage: &Stage, course: &Course) -> Self {
        let memcg = stage.pinless.memcg();
        let (stat, frames, zswap) = (memcg.stat(), memcg.frames(), memcg.zswap());
        let tenants = &stage.tenants;
        let sum = |of: fn(&Tenant) -> u64| -> u64 { tenants.iter().map(of).sum() };
        let mut input = stage.input.clone();
        input.changed_pages = sum(|t| get(&t.nr_pages_changed));
        let nr_failures = stage.judge.nr_failures();
        Self {
            ok: nr_failures == 0,
            interrupted: stage.is_interrupted(),
            failures: stage.judge.failures(),
            nr_failures,
            notes: notes(stage, &input),
            seed: stage.plan.seed,
            input,
            managed_bytes: stage.plan.managed_bytes(),
            load_seconds: course.loaded.as_secs_f64(),
            work_seconds: course.worked.as_secs_f64(),
            operations: sum(Tenant::ops),
            bytes_verified: sum(Tenant::verified_bytes),
            hash_mismatches: stage.judge.nr_mismatches(),
            stale_dma: stale_dma(stage),
            charge_peak_bytes: frames.peak() * PAGE_SIZE as u64,
            limit_bytes: frames.max() * PAGE_SIZE as u64,
            zswap_peak_bytes: zswap.peak_bytes(),
            zswap_limit_bytes: zswap.max_bytes(),
            rss_other_start_bytes: course.rss_other.0,
            rss_other_end_bytes: course.rss_other.1,
            faults: Faults {
                soft: stat.soft_fault.into(),
                hard: stat.hard_fault.into(),
                zero: stat.pgfault_zero,
                write_protect: stat.pgfault_wp,
                waited: stat.pgfault_waited,
            },
            evictions: stat.pgsteal,
            compression_ratio: course.compression_ratio,
            invalidations: Invalidations::new(tenants),
            refusals: sum(|t| t.mm.notifiers().stats().refusals),
            stuck: stat.reclaim_stuck + sum(|t| get(&t.nr_stuck)),
            oom: memcg.oom_reports().first().map(Oom::new),
            devices: tenants.iter().flat_map(devices).collect(),
            tenants: tenant_reports(tenants, &course.verified),
        }
    }

    /// Something did not hold after all.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.ok = false;
        self.nr_failures += 1;
        self.failures.push(failure);
    }
}

fn get(counter: &core::sync::atomic::AtomicU64) -> u64 {
    counter.load(core::sync::atomic::Ordering::Relaxed)
}

/// Device accesses through translations that were no longer valid, whoever saw them.
pub(super) fn stale_dma(stage: &Stage) -> u64 {
    let stat = stage.pinless.memcg().stat();
    let devices = stage.tenants.iter().flat_map(Tenant::dma_devices);
    let seen: u64 = devices.map(|dma| dma.device.stats().stale).sum();
    seen.max(stat.stale_dma + stat.stale_dma_traps)
}

fn notes(stage: &Stage, input: &Input) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(stage.plan.note());
    if let Some(error) = stage.no_ring.get() {
        notes.push(format!("without io_uring: {error}"));
    } else if !stage.plan.with_io_uring {
        notes.push("without io_uring, as asked for".to_owned());
    }
    if input.unreadable > 0 {
        notes.push(format!("{} files could not be read", input.unreadable));
    }
    if input.changed_pages > 0 {
        notes.push(format!(
            "files changed while they were loaded ({} pages)",
            input.changed_pages
        ));
    }
    if let Some(fault) = stage.plan.inject {
        notes.push(format!("broken on purpose: {fault:?}"));
    }
    notes
}

impl From<Summary> for Latency {
    fn from(summary: Summary) -> Self {
        Self {
            count: summary.count,
            p50_ns: summary.p50_ns,
            p99_ns: summary.p99_ns,
        }
    }
}

impl Invalidations {
    fn new(tenants: &[Tenant]) -> Self {
        let stats: Vec<_> = tenants.iter().map(|t| t.mm.notifiers().stats()).collect();
        let count = |event, mode| stats.iter().map(|stats| stats.starts(event, mode)).sum();
        let by_event = Event::ALL.map(|event| ByEvent {
            event: event.name(),
            nonblock: count(event, Mode::NonBlock),
            blockable: count(event, Mode::Blockable),
        });
        Self {
            total: stats.iter().map(|stats| stats.starts_total()).sum(),
            by_event: by_event.into(),
        }
    }
}

fn devices(tenant: &Tenant) -> impl Iterator<Item = Device> {
    let ring = tenant.ring.iter().map(|ring| ring_device(tenant, ring));
    tenant.dma_devices().map(dma_device).chain(ring)
}

fn dma_device(dma: &Dma) -> Device {
    let stats = dma.device.stats();
    Device {
        name: dma.device.name().to_owned(),
        kind: dma.kind,
        operations: stats.reads + stats.writes,
        bytes_verified: dma.tally.verified_bytes(),
        faults: stats.faults,
        retries: stats.retries,
        invalidations: stats.invalidations,
        refusals: stats.refusals,
        stale: stats.stale,
        errors: 0,
    }
}

fn ring_device(tenant: &Tenant, device: &RingDevice) -> Device {
    let stats = device.ring.stats();
    Device {
        name: format!("{}/io_uring", tenant.name),
        kind: "io_uring",
        operations: stats.ops,
        bytes_verified: device.tally.verified_bytes() + tenant.loading.verified_bytes(),
        faults: stats.registrations,
        retries: stats.bypasses,
        invalidations: stats.revocations,
        refusals: stats.refusals,
        stale: stats.strays,
        errors: stats.op_errors + stats.registration_errors,
    }
}

fn tenant_reports(tenants: &[Tenant], verified: &[Verified]) -> Vec<TenantReport> {
    let reports = tenants.iter().zip(verified).map(|(tenant, verified)| {
        let hash = |hash: u64| verified.is_complete.then(|| format!("{hash:016x}"));
        TenantReport {
            name: tenant.name.clone(),
            access: tenant.access.to_string(),
            bytes: tenant.mapping.len() as u64,
            operations: tenant.ops(),
            bytes_verified: tenant.verified_bytes(),
            killed: verified.is_killed,
            memory_hash: hash(verified.memory_hash),
            model_hash: hash(verified.model_hash),
            pages_wrong: verified.pages_wrong,
            pages_unreadable: verified.pages_unreadable,
        }
    });
    reports.collect()
}
