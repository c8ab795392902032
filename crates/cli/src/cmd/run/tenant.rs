//! A tenant: an address space with memory, the devices that use it, and the model of both.

use super::RunError;
use super::corpus::Corpus;
use super::model::Model;
use super::plan::CpuAccess;
use super::witness::{self, Watched, Witness};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use pinless::io_uring::{Area, Kind, Ring, SetupError};
use pinless::mmu_notifier::{Ranges, Subscription};
use pinless::{MapOptions, Mapping, MmHandle, PAGE_SIZE, Pinless};
use pinless_devices::{Attached, Bugs, DeviceMemory, DmaDevice, ModelInfo};
use std::fs::File;
use std::sync::{Arc, OnceLock};

/// Operations that a ring can have at a time. The work has one, loading has one.
const RING_ENTRIES: u32 = 8;

/// Registered buffers of a ring: few, so that slots are also taken back for other pages.
const RING_SLOTS: u32 = 64;

/// What one actor did.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    ops: AtomicU64,
    verified_bytes: AtomicU64,
}

impl Tally {
    pub(crate) const fn new() -> Self {
        Self {
            ops: AtomicU64::new(0),
            verified_bytes: AtomicU64::new(0),
        }
    }

    /// An operation was done.
    pub(crate) fn op(&self) {
        self.ops.fetch_add(1, Ordering::Relaxed);
    }

    /// So many bytes were compared with the model, and were right.
    pub(crate) fn verified(&self, bytes: usize) {
        self.verified_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn ops(&self) -> u64 {
        self.ops.load(Ordering::Relaxed)
    }

    pub(crate) fn verified_bytes(&self) -> u64 {
        self.verified_bytes.load(Ordering::Relaxed)
    }
}

/// A device that does DMA.
pub(crate) struct Dma {
    pub(crate) device: Arc<dyn DmaDevice>,
    /// The driver.
    pub(crate) kind: &'static str,
    /// Whether pages must be registered before they are transferred.
    pub(crate) must_register: bool,
    pub(crate) tally: Tally,
    attached: Attached,
}

/// Which driver a device has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Driver {
    pub(crate) model: &'static ModelInfo,
    /// How the report calls the kind.
    pub(crate) kind: &'static str,
    /// The device's name after that of its tenant.
    pub(crate) name: &'static str,
}

/// What a tenant is to be like.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) access: CpuAccess,
    pub(crate) nr_pages: u32,
    /// What its contents follow from.
    pub(crate) seed: u64,
    pub(crate) drivers: Vec<Driver>,
    pub(crate) hanging: Option<Driver>,
    pub(crate) with_io_uring: bool,
}

/// The io_uring device.
pub(crate) struct RingDevice {
    pub(crate) ring: Ring,
    pub(crate) area: Area,
    /// Where memory is written to and read back from. It has no name any more.
    pub(crate) file: File,
    pub(crate) tally: Tally,
}

/// A tenant. What uses the memory comes before the memory, so that it is dropped first.
pub(crate) struct Tenant {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) access: CpuAccess,
    pub(crate) model: Model,
    /// Used by the threads of the program.
    pub(crate) cpu: Tally,
    pub(crate) loading: Tally,
    /// Pages whose file had changed between the gathering and the loading.
    pub(crate) nr_pages_changed: AtomicU64,
    /// Waits for a device that did not let go in time.
    pub(crate) nr_stuck: AtomicU64,
    pub(crate) witness: Arc<Witness>,
    /// The device hangs now.
    pub(crate) is_hung: AtomicBool,
    pub(crate) dma: Vec<Dma>,
    /// The device that is going to hang: the leaking tenant has one.
    pub(crate) hanging: Option<Dma>,
    pub(crate) ring: Option<RingDevice>,
    witness_subscription: Subscription,
    pub(crate) mapping: Mapping,
    pub(crate) mm: MmHandle,
}

impl Tenant {
    /// Sets a tenant up; its memory is not loaded yet. `no_ring` gets the reason when there is
    /// no io_uring here.
    pub(crate) fn create(
        pinless: &Pinless,
        shape: Shape,
        corpus: &Arc<Corpus>,
        no_ring: &OnceLock<SetupError>,
    ) -> Result<Self, RunError> {
        let Shape {
            index,
            name,
            access,
            nr_pages,
            seed,
            ..
        } = shape;
        let mm = pinless.new_mm(&name);
        let options = MapOptions::of_pages(nr_pages).fault_mode(access.fault_mode());
        let mut witness = None;
        let mapping = pinless
            .map_through(&mm, options, |machine| {
                let new = Witness::new(machine.base(), machine.nr_pages());
                witness = Some(Arc::clone(&new));
                Arc::new(Watched {
                    machine,
                    witness: new,
                })
            })
            .map_err(RunError::Map)?;
        let witness = witness.expect("the layer was put in");
        let range = mapping.vma().base()..mapping.vma().address(nr_pages);
        let witness_subscription = mm.notifiers().subscribe(
            witness::NAME,
            Ranges::Only(vec![range]),
            Arc::clone(&witness),
        );
        let ring = match shape.with_io_uring {
            true => RingDevice::create(&mapping, no_ring)?,
            false => None,
        };
        let attach = |driver: &Driver| attach(&mapping, &name, driver);
        let dma = shape.drivers.iter().map(attach).collect();
        let hanging = shape.hanging.as_ref().map(attach);
        Ok(Self {
            index,
            name,
            access,
            model: Model::new(index, nr_pages, seed, Arc::clone(corpus)),
            cpu: Tally::default(),
            loading: Tally::default(),
            nr_pages_changed: AtomicU64::new(0),
            nr_stuck: AtomicU64::new(0),
            witness,
            is_hung: AtomicBool::new(false),
            dma,
            hanging,
            ring,
            witness_subscription,
            mapping,
            mm,
        })
    }

    /// All its DMA devices.
    pub(crate) fn dma_devices(&self) -> impl Iterator<Item = &Dma> {
        self.dma.iter().chain(&self.hanging)
    }

    /// Everybody who works on its memory.
    pub(crate) fn tallies(&self) -> impl Iterator<Item = &Tally> {
        let ring = self.ring.iter().map(|ring| &ring.tally);
        let dma = self.dma_devices().map(|dma| &dma.tally);
        [&self.cpu].into_iter().chain(dma).chain(ring)
    }

    /// Operations done so far.
    pub(crate) fn ops(&self) -> u64 {
        self.tallies().map(Tally::ops).sum()
    }

    /// Bytes compared so far.
    pub(crate) fn verified_bytes(&self) -> u64 {
        let work: u64 = self.tallies().map(Tally::verified_bytes).sum();
        work + self.loading.verified_bytes()
    }

    /// Lets the hanging device go on, and stops every device. Ends the engines.
    pub(crate) fn stop_devices(&self) {
        for dma in self.dma_devices() {
            dma.device.hang(false);
            dma.device.stop();
        }
    }

    /// Takes it down: devices first, then the memory, then the address space. Says how many pins
    /// were left when nobody was there any more who could have any.
    pub(crate) fn close(self) -> u64 {
        self.witness.disarm();
        let Self {
            dma,
            hanging,
            ring,
            witness_subscription,
            mapping,
            mm,
            ..
        } = self;
        for dma in dma.into_iter().chain(hanging) {
            dma.attached.detach();
        }
        drop(ring);
        drop(witness_subscription);
        let nr_pins = mm.nr_pins();
        drop(mapping);
        drop(mm);
        nr_pins
    }
}

fn attach(mapping: &Mapping, tenant: &str, driver: &Driver) -> Dma {
    let memory = Arc::clone(mapping.vma()) as Arc<dyn DeviceMemory>;
    let name = format!("{tenant}/{}", driver.name);
    let attached = driver.model.attach(&memory, &name, Bugs::NONE);
    Dma {
        device: Arc::clone(&attached.device),
        kind: driver.kind,
        must_register: driver.model.must_register,
        tally: Tally::default(),
        attached,
    }
}

impl RingDevice {
    /// `None` when io_uring cannot be had here.
    fn create(mapping: &Mapping, no_ring: &OnceLock<SetupError>) -> Result<Option<Self>, RunError> {
        let ring = match Ring::new(RING_ENTRIES, RING_SLOTS, Kind::Shared) {
            Ok(ring) => ring,
            Err(error) => {
                let _ = no_ring.set(error);
                return Ok(None);
            }
        };
        let area = ring
            .attach(mapping.host(), mapping.vma())
            .expect("the mapping is in the books with these pages");
        let file = super::temp_file().map_err(RunError::TempFile)?;
        Ok(Some(Self {
            ring,
            area,
            file,
            tally: Tally::default(),
        }))
    }
}

/// Where a page begins in its mapping.
pub(crate) fn offset_of(page: pinless::PageIndex) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}
