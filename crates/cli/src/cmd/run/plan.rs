//! How much of everything: decided before anything is set up.

use super::RunError;
use super::corpus::Corpus;
use super::model::{BLOCKS_PER_PAGE, Model};
use super::tenant::{Driver, Shape};
use crate::args::{Bytes, FaultModes, Injection, RunArgs};
use core::fmt;
use core::time::Duration;
use pinless::{FaultMode, PAGE_SIZE};
use pinless_devices::model;
use pinless_mm::swap::{Owner, Scratch, Zswap};
use std::sync::Arc;

/// Managed memory, in multiples of the limit.
const OVERCOMMIT: f64 = 4.0;

/// Pages that one tenant needs below the limit: each of its actors may pin some at a time.
const TENANT_FRAMES_MIN: u64 = 64;

/// Pages looked at to find out how well the input compresses.
const SAMPLE_PAGES: u32 = 512;

/// The share of the compressed store that the tenants are meant to fill: slots come in sizes.
const STORE_SHARE: f64 = 0.95;

/// The share of the frames that is meant to hold pages at rest.
const FRAMES_SHARE: f64 = 0.9;

/// How a tenant's threads reach memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CpuAccess {
    Service,
    InThread,
    Guard,
}

impl CpuAccess {
    /// Who resolves the faults of the mapping.
    pub(crate) fn fault_mode(self) -> FaultMode {
        match self {
            Self::Service | Self::Guard => FaultMode::Service,
            Self::InThread => FaultMode::InThread,
        }
    }
}

impl fmt::Display for CpuAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "service",
            Self::InThread => "in-thread",
            Self::Guard => "guard",
        })
    }
}

/// The sizes and choices of one run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) limit_bytes: u64,
    pub(crate) zswap_bytes: u64,
    pub(crate) nr_tenants: u32,
    pub(crate) tenant_pages: u32,
    /// Pages of one transfer, and of one look at memory.
    pub(crate) chunk_pages: u32,
    pub(crate) duration: Duration,
    pub(crate) seed: u64,
    pub(crate) fault_modes: FaultModes,
    pub(crate) inject: Option<Injection>,
    pub(crate) with_io_uring: bool,
    /// How well the input compresses, with what the store adds to each page.
    pub(crate) sampled_ratio: f64,
}

impl Plan {
    pub(crate) fn new(args: &RunArgs, seed: u64, corpus: &Arc<Corpus>) -> Result<Self, RunError> {
        let nr_tenants = args.tenants;
        let limit_bytes = args.limit.0;
        let tenant_bytes = limit_bytes / u64::from(nr_tenants);
        let tenant_frames = tenant_bytes / PAGE_SIZE as u64;
        let needed = u64::from(nr_tenants) * TENANT_FRAMES_MIN * PAGE_SIZE as u64;
        if limit_bytes < needed {
            return Err(RunError::TooSmall {
                limit: args.limit,
                nr_tenants,
                needed: Bytes(needed),
            });
        }
        let zswap_bytes = args
            .zswap
            .map_or(limit_bytes.saturating_mul(2), |bytes| bytes.0);
        let sampled_ratio = sample_ratio(seed, corpus);
        let fitting =
            FRAMES_SHARE + STORE_SHARE * sampled_ratio * zswap_bytes as f64 / limit_bytes as f64;
        let tenant_pages = tenant_frames as f64 * fitting.min(OVERCOMMIT);
        if tenant_pages >= f64::from(pinless_mm::limits::MAPPING_PAGES_MAX) {
            return Err(RunError::TooLarge { limit: args.limit });
        }
        Ok(Self {
            limit_bytes,
            zswap_bytes,
            nr_tenants,
            tenant_pages: tenant_pages as u32,
            chunk_pages: (tenant_frames / 16).clamp(1, 16) as u32,
            duration: Duration::from_secs(args.seconds),
            seed,
            fault_modes: args.fault_mode,
            inject: args.inject,
            with_io_uring: !args.no_io_uring,
            sampled_ratio,
        })
    }

    /// All memory of the tenants together.
    pub(crate) fn managed_bytes(&self) -> u64 {
        u64::from(self.nr_tenants) * u64::from(self.tenant_pages) * PAGE_SIZE as u64
    }

    /// The most that a plan for these arguments manages.
    pub(crate) fn managed_bytes_max(args: &RunArgs) -> u64 {
        (args.limit.0 as f64 * OVERCOMMIT) as u64
    }

    /// The tenant that is going to leak.
    pub(crate) fn leaker(&self) -> u32 {
        self.nr_tenants - 1
    }

    /// What this tenant is to be like.
    pub(crate) fn shape_of(&self, tenant: u32) -> Shape {
        let driver = |model_name, kind, name| Driver {
            model: model(model_name).expect("a model of the table"),
            kind,
            name,
        };
        let hanging = || driver("test_hmm-now", "hanging template", "nic");
        Shape {
            index: tenant,
            name: format!("tenant-{tenant}"),
            access: self.access_of(tenant),
            nr_pages: self.tenant_pages,
            seed: self.seed,
            drivers: vec![
                driver("test_hmm-now", "template", "template"),
                driver("umem_odp-now", "odp", "odp"),
            ],
            hanging: (tenant == self.leaker()).then(hanging),
            with_io_uring: self.with_io_uring,
        }
    }

    /// Pages that the leak may take: more than there is room for, if nothing of it compresses.
    pub(crate) fn leak_pages(&self) -> u32 {
        let bytes = self.limit_bytes + self.zswap_bytes;
        let pages = bytes.div_ceil(PAGE_SIZE as u64) + 1;
        u32::try_from(pages).map_or(pinless_mm::limits::MAPPING_PAGES_MAX, |pages| {
            pages.min(pinless_mm::limits::MAPPING_PAGES_MAX)
        })
    }

    pub(crate) fn access_of(&self, tenant: u32) -> CpuAccess {
        match (self.fault_modes, tenant % 3) {
            (FaultModes::Service, _) | (FaultModes::Mixed, 0) => CpuAccess::Service,
            (FaultModes::InThread, _) | (FaultModes::Mixed, 1) => CpuAccess::InThread,
            (FaultModes::Guard, _) | (FaultModes::Mixed, _) => CpuAccess::Guard,
        }
    }

    /// What differs from what was asked for, in words.
    pub(crate) fn note(&self) -> Option<String> {
        let factor = self.managed_bytes() as f64 / self.limit_bytes as f64;
        (factor < OVERCOMMIT * 0.99).then(|| {
            format!(
                "managed memory is {factor:.1} x the limit instead of {OVERCOMMIT:.0} x: the input \
                 compresses only {:.2} : 1",
                self.sampled_ratio
            )
        })
    }
}

/// How much smaller the store makes pages of the input.
fn sample_ratio(seed: u64, corpus: &Arc<Corpus>) -> f64 {
    let store = Zswap::new(u64::from(SAMPLE_PAGES) * PAGE_SIZE as u64 * 2);
    let mut scratch = Scratch::new();
    let model = Model::new(0, SAMPLE_PAGES, seed, Arc::clone(corpus));
    let stride = (corpus.len() / (u64::from(SAMPLE_PAGES) * PAGE_SIZE as u64)).max(1);
    for sample in 0..u64::from(SAMPLE_PAGES) {
        let first = sample * stride * BLOCKS_PER_PAGE;
        let mut page = [0; PAGE_SIZE];
        for (index, into) in (0..).zip(page.chunks_mut(super::model::BLOCK_BYTES)) {
            // As they are loaded: what is written over them compresses better.
            into.copy_from_slice(&model.contents(first + index, 0));
        }
        let owner = Owner::new(0, sample as u32);
        // It cannot be full; if it were, the estimate would be made of fewer pages.
        let _ = store.store(owner, &page, &mut scratch);
    }
    let stats = store.stats();
    stats.original_bytes as f64 / stats.compressed_bytes.max(1) as f64
}
