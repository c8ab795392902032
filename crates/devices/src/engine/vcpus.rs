//! Processors with translation buffers of their own, which they consult without any lock, and the
//! flush that makes all of them forget.
//!
//! A flush raises a number and waits for every processor that is running since before: what a
//! processor has cached is of the number that it saw when it began to run. Nobody relies on a flush
//! that somebody else is still waiting for.
//!
//! Linux counterpart: kvm_flush_remote_tlbs() and kvm_make_all_cpus_request()

use super::Tlb;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use lockdep::scheduler::scheduler_point;
use lockdep::sync::{ShortLock, spin_wait};
use pinless_mm::addr::PageIndex;
use pinless_mm::bus::BusAddr;
use pinless_mm::primary_mmu::Access;

/// All processors of one guest.
pub struct Vcpus {
    generation: AtomicU64,
    vcpus: Vec<Vcpu>,
}

struct Vcpu {
    is_taken: AtomicBool,
    is_running: AtomicBool,
    /// The generation of what its buffer holds.
    seen: AtomicU64,
    /// Only who has taken the processor looks here.
    tlb: ShortLock<Tlb>,
}

/// A processor that runs; it stops when this is dropped.
#[must_use = "the processor stops when this is dropped"]
pub struct Running<'a> {
    vcpu: &'a Vcpu,
}

impl Vcpus {
    /// `nr` processors over a mapping of `nr_pages`.
    pub fn new(nr: usize, nr_pages: u32) -> Self {
        let new = |_| Vcpu {
            is_taken: AtomicBool::new(false),
            is_running: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            tlb: ShortLock::new("devices.vcpu.tlb", Tlb::new(nr_pages)),
        };
        Self {
            generation: AtomicU64::new(0),
            vcpus: (0..nr).map(new).collect(),
        }
    }

    /// Runs a processor that is free, if there is one. Between two exits its time is bounded.
    pub fn enter(&self) -> Option<Running<'_>> {
        // Acquire pairs with the Release in the drop: what its last user cached is there.
        let take = |vcpu: &&Vcpu| !vcpu.is_taken.swap(true, Ordering::Acquire);
        let vcpu = self.vcpus.iter().find(take)?;
        scheduler_point("devices.vcpu.enter", 0);
        // SeqCst, like the two in `flush`: either the flush sees that this one runs, or this one
        // sees the new generation.
        vcpu.is_running.store(true, Ordering::SeqCst);
        // SeqCst: see above.
        let generation = self.generation.load(Ordering::SeqCst);
        if vcpu.seen.load(Ordering::Relaxed) != generation {
            let mut tlb = vcpu.tlb.lock();
            let all = tlb.all();
            tlb.zap(all);
            drop(tlb);
            // Release pairs with the Acquire in `flush`: its buffer is empty by then.
            vcpu.seen.store(generation, Ordering::Release);
        }
        Some(Running { vcpu })
    }

    /// Makes every processor forget, and returns when none uses what it knew before. Spins for no
    /// longer than one access takes. The table that buffers are filled from has changed already.
    pub fn flush(&self) {
        // SeqCst: see `enter`.
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        for vcpu in &self.vcpus {
            spin_wait("devices.vcpu.ack", 0, || {
                // SeqCst and Acquire: see `enter`.
                !vcpu.is_running.load(Ordering::SeqCst)
                    || vcpu.seen.load(Ordering::Acquire) >= generation
            });
        }
    }

    /// Waits until no processor runs.
    pub fn wait_idle(&self) {
        for vcpu in &self.vcpus {
            // Acquire pairs with the Release in the drop.
            spin_wait("devices.vcpu.idle", 0, || {
                !vcpu.is_taken.load(Ordering::Acquire)
            });
        }
    }
}

impl Running<'_> {
    /// What the processor has cached.
    pub fn get(&self, page: PageIndex, access: Access) -> Option<BusAddr> {
        self.vcpu.tlb.lock().get(page, access)
    }

    /// Caches an entry of the table.
    pub fn fill(&self, at: BusAddr) {
        self.vcpu.tlb.lock().install(at);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Release: its accesses come before what the flush lets happen.
        self.vcpu.is_running.store(false, Ordering::Release);
        // Release pairs with the Acquire in `enter`.
        self.vcpu.is_taken.store(false, Ordering::Release);
    }
}
