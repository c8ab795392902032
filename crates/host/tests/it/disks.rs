//! Devices that fail under a real file: what they do to a page is an error of that page, and of no
//! other (G13).

use crate::child::{assert_ended_well, run};
use crate::fake::skip;
use crate::world::{World, offset_of};
use pinless_host::{AccessError, FaultMode, SwapFile, attach_thread};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::fault::{FaultError, StoreError};
use pinless_mm::limits::Limits;
use pinless_mm::swap::{BackingFile, Buffer, CLUSTER_BYTES, FileError, FileOp};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

const NR_PAGES: u32 = 160;
const NR_CLUSTERS: u32 = 32;

/// A file beside the test program: on a device, not in memory.
fn swap_file() -> Option<SwapFile> {
    let program = std::env::current_exe().unwrap();
    SwapFile::create_in(program.parent().unwrap(), NR_CLUSTERS, 3)
        .inspect_err(|error| skip(&error.to_string()))
        .ok()
}

/// The file without a name that this process has open, once more: to break what is in it. In a
/// process with one such file.
fn nameless() -> File {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let is_nameless = |path: &std::path::Path| {
        let target = std::fs::read_link(path).unwrap_or_default();
        let len = std::fs::metadata(path).map_or(0, |file| file.len());
        target.to_string_lossy().ends_with("(deleted)")
            && len == u64::from(NR_CLUSTERS) * CLUSTER_BYTES as u64
    };
    let path = links.map(|link| link.path()).find(|path| is_nameless(path));
    let path = path.expect("the file under the store is open");
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// Contents of which half can be compressed away.
fn contents_of(page: u32) -> Vec<u8> {
    let mut state = u64::from(page) + 1;
    let mut contents: Vec<u8> = core::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 33) as u8
    })
    .take(PAGE_SIZE / 2)
    .collect();
    contents.resize(PAGE_SIZE, 7);
    contents
}

/// What became of the pages: those whose contents are lost.
struct Found {
    lost: Vec<u32>,
    nr_right: u32,
}

/// Fills pages, so that most of them go to the file; has `harm` done to it, and reads them.
fn use_file(file: Arc<dyn BackingFile>, harm: impl FnOnce(&World)) -> Option<Found> {
    let mut limits = Limits::new(16 * PAGE_SIZE as u64);
    // All has room here, and is too much for it not to be written.
    limits.zswap_max_bytes = 88 * PAGE_SIZE as u64;
    let world = World::new(NR_PAGES, limits, FaultMode::InThread, Some(file))?;
    let _attached = attach_thread().unwrap();
    for page in 0..NR_PAGES {
        let written = world.mapping.write_at(offset_of(page), &contents_of(page));
        written.expect("room");
    }
    harm(&world);
    let mut found = Found {
        lost: Vec::new(),
        nr_right: 0,
    };
    for page in 0..NR_PAGES {
        let mut contents = vec![0; PAGE_SIZE];
        match world.mapping.read_at(offset_of(page), &mut contents) {
            Ok(()) => {
                assert!(contents == contents_of(page), "wrong data in page {page}");
                found.nr_right += 1;
            }
            Err(AccessError::Fault {
                error: FaultError::Lost { page: named, cause },
                ..
            }) => {
                assert!(
                    named == page && cause != StoreError::Unreadable,
                    "{cause:?}"
                );
                found.lost.push(page);
            }
            Err(error) => panic!("page {page}: {error}"),
        }
    }
    assert_eq!(world.stat().oom_kill, 0);
    Some(found)
}

/// Waits until the first cluster is on the disk, and its pages have no other copy. How many follow
/// depends on what was stored when the worker had its turn.
fn wait_for_cluster(world: &World) {
    world.wait_until("a cluster was written", || world.stat().zswpwb >= 1);
}

#[test]
fn a_full_disk_loses_nothing() {
    let output = run("disks::a_full_disk_loses_nothing", "full disk", || {
        let Some(file) = swap_file() else { return };
        let limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the calls take numbers and a structure that lives.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
        let found = use_file(Arc::new(file), |world| {
            let file = world.memcg.file().expect("there is one");
            world.wait_until("the device is full", || file.stats().write_errors > 0);
            assert_eq!((file.stats().retired, file.stats().read_errors), (0, 0));
        });
        let Some(found) = found else { return };
        assert_eq!((found.lost.len(), found.nr_right), (0, NR_PAGES));
    });
    assert_ended_well(&output);
}

#[test]
fn a_bit_that_flips_on_the_disk_is_an_error_of_one_page() {
    let output = run(
        "disks::a_bit_that_flips_on_the_disk_is_an_error_of_one_page",
        "flipped bit",
        || {
            let Some(file) = swap_file() else { return };
            let found = use_file(Arc::new(file), |world| {
                wait_for_cluster(world);
                let (disk, mut byte) = (nameless(), [0]);
                // In the contents of the first page of the first cluster.
                disk.read_exact_at(&mut byte, 100).unwrap();
                disk.write_all_at(&[byte[0] ^ 4], 100).unwrap();
                disk.sync_all().unwrap();
            });
            let Some(found) = found else { return };
            assert_eq!((found.lost.len(), found.nr_right), (1, NR_PAGES - 1));
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_torn_write_loses_what_was_not_written() {
    let output = run(
        "disks::a_torn_write_loses_what_was_not_written",
        "torn write",
        || {
            let Some(file) = swap_file() else { return };
            let found = use_file(Arc::new(file), |world| {
                wait_for_cluster(world);
                let disk = nameless();
                // The second half of the first cluster was never written.
                let half = CLUSTER_BYTES / 2;
                disk.write_all_at(&vec![0; half], half as u64).unwrap();
                disk.sync_all().unwrap();
            });
            let Some(found) = found else { return };
            let nr_lost = found.lost.len() as u32;
            // A page takes a bit more than half of its bytes there.
            let in_half = (CLUSTER_BYTES / PAGE_SIZE) as u32;
            assert!((in_half / 2..=in_half + 1).contains(&nr_lost), "{nr_lost}");
            assert_eq!(found.nr_right, NR_PAGES - nr_lost);
        },
    );
    assert_ended_well(&output);
}

/// A file on a device that takes its time.
#[derive(Debug)]
struct Slow(SwapFile);

impl BackingFile for Slow {
    fn nr_clusters(&self) -> u32 {
        self.0.nr_clusters()
    }

    fn nr_buffers(&self) -> u32 {
        self.0.nr_buffers()
    }

    fn with_buffer(&self, buffer: Buffer, work: &mut dyn FnMut(&mut [u8])) {
        self.0.with_buffer(buffer, work);
    }

    fn submit(&self, buffer: Buffer, op: FileOp) {
        self.0.submit(buffer, op);
    }

    fn wait(&self, buffer: Buffer) -> Result<(), FileError> {
        std::thread::sleep(Duration::from_millis(10));
        self.0.wait(buffer)
    }
}

#[test]
fn a_slow_disk_is_slow_and_nothing_else() {
    let Some(file) = swap_file() else { return };
    let found = use_file(Arc::new(Slow(file)), wait_for_cluster);
    let Some(found) = found else { return };
    assert_eq!((found.lost.len(), found.nr_right), (0, NR_PAGES));
}
