//! A simulated file under the store: it can fail, tear, flip, be slow or full.

use crate::Rng;
use core::fmt;
use core::time::Duration;
use lockdep::sync::ShortLock;
use pinless_mm::swap::{BackingFile, Buffer, CLUSTER_BYTES, Cluster, FileError, FileOp};

/// What the device does wrong. Each `one_in` is the share of operations that it hits: one in so
/// many, never for zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileFaults {
    /// Reads that end in an error.
    pub read_error_one_in: u64,
    /// So many clusters, from the first on, cannot be read.
    pub unreadable: u32,
    /// Writes that end in an error; the cluster is half written.
    pub write_error_one_in: u64,
    /// Writes that are acknowledged, though only a part reached the cluster.
    pub torn_one_in: u64,
    /// Writes after which one bit of the cluster changes.
    pub flip_one_in: u64,
    /// Clusters that can be written before the device is full; `None` for all.
    pub clusters_max: Option<u32>,
    /// How long each operation takes.
    pub latency: Duration,
}

/// The error number of failed operations (`EIO`).
const EIO: i32 = 5;

/// A file in memory.
pub struct SimFile {
    nr_clusters: u32,
    nr_buffers: u32,
    state: ShortLock<State>,
}

struct State {
    faults: FileFaults,
    rng: Rng,
    clusters: Vec<u8>,
    buffers: Vec<u8>,
    /// How the operation in each buffer ended, until it is waited for.
    ended: Vec<Option<Result<(), FileError>>>,
    nr_reads: u64,
    nr_writes: u64,
}

impl SimFile {
    /// A file of `nr_clusters` clusters, with `nr_buffers` staging buffers.
    pub fn new(nr_clusters: u32, nr_buffers: u32, seed: u64) -> Self {
        crate::lock_order::prime();
        let state = State {
            faults: FileFaults::default(),
            rng: Rng::new(seed),
            clusters: vec![0; nr_clusters as usize * CLUSTER_BYTES],
            buffers: vec![0; nr_buffers as usize * CLUSTER_BYTES],
            ended: vec![None; nr_buffers as usize],
            nr_reads: 0,
            nr_writes: 0,
        };
        Self {
            nr_clusters,
            nr_buffers,
            state: ShortLock::new("sim.file", state),
        }
    }

    /// From now on the device does this wrong.
    pub fn set_faults(&self, faults: FileFaults) {
        self.state.lock().faults = faults;
    }

    /// Reads and writes so far.
    pub fn nr_operations(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.nr_reads, state.nr_writes)
    }
}

impl State {
    fn write(&mut self, buffer: Buffer, cluster: Cluster) -> Result<(), FileError> {
        self.nr_writes += 1;
        let faults = self.faults;
        if faults.clusters_max.is_some_and(|max| cluster >= max) {
            return Err(FileError::Full);
        }
        let is_failed = self.rng.one_in(faults.write_error_one_in);
        let is_torn = is_failed || self.rng.one_in(faults.torn_one_in);
        let len = if is_torn {
            self.rng.below(CLUSTER_BYTES as u64) as usize
        } else {
            CLUSTER_BYTES
        };
        let (from, to) = (bytes_of(buffer).start, bytes_of(cluster).start);
        self.clusters[to..to + len].copy_from_slice(&self.buffers[from..from + len]);
        if self.rng.one_in(faults.flip_one_in) {
            let bit = self.rng.below(CLUSTER_BYTES as u64 * 8) as usize;
            self.clusters[to + bit / 8] ^= 1 << (bit % 8);
        }
        match is_failed {
            true => Err(FileError::Device { errno: EIO }),
            false => Ok(()),
        }
    }

    fn read(
        &mut self,
        buffer: Buffer,
        cluster: Cluster,
        (offset, len): (u32, u32),
    ) -> Result<(), FileError> {
        self.nr_reads += 1;
        let (offset, len) = (offset as usize, len as usize);
        assert!(offset + len <= CLUSTER_BYTES, "a read leaves its cluster");
        if cluster < self.faults.unreadable || self.rng.one_in(self.faults.read_error_one_in) {
            return Err(FileError::Device { errno: EIO });
        }
        let (from, to) = (
            bytes_of(cluster).start + offset,
            bytes_of(buffer).start + offset,
        );
        self.buffers[to..to + len].copy_from_slice(&self.clusters[from..from + len]);
        Ok(())
    }
}

/// The bytes of the cluster or buffer with this number.
fn bytes_of(number: u32) -> core::ops::Range<usize> {
    let first = number as usize * CLUSTER_BYTES;
    first..first + CLUSTER_BYTES
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile")
            .field("nr_clusters", &self.nr_clusters)
            .finish_non_exhaustive()
    }
}

impl BackingFile for SimFile {
    fn nr_clusters(&self) -> u32 {
        self.nr_clusters
    }

    fn nr_buffers(&self) -> u32 {
        self.nr_buffers
    }

    fn with_buffer(&self, buffer: Buffer, work: &mut dyn FnMut(&mut [u8])) {
        let mut state = self.state.lock();
        assert!(
            state.ended[buffer as usize].is_none(),
            "buffer {buffer} was touched while an operation is under way in it"
        );
        work(&mut state.buffers[bytes_of(buffer)]);
    }

    fn submit(&self, buffer: Buffer, op: FileOp) {
        let mut state = self.state.lock();
        let result = match op {
            FileOp::Write { cluster } => state.write(buffer, cluster),
            FileOp::Read {
                cluster,
                offset,
                len,
            } => state.read(buffer, cluster, (offset, len)),
        };
        let before = state.ended[buffer as usize].replace(result);
        assert!(
            before.is_none(),
            "an operation began in buffer {buffer} while another is under way in it"
        );
    }

    fn wait(&self, buffer: Buffer) -> Result<(), FileError> {
        let latency = self.state.lock().faults.latency;
        if !latency.is_zero() {
            lockdep::sync::sleep("sim.file.device", latency);
        }
        let ended = self.state.lock().ended[buffer as usize].take();
        ended.expect("waited for an operation that was not begun")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `fill` to cluster 1 and reads it back: how both ended, and the bytes that differ.
    fn check(
        faults: FileFaults,
        fill: u8,
    ) -> (Result<(), FileError>, Result<(), FileError>, usize) {
        let file = SimFile::new(4, 3, 11);
        file.set_faults(faults);
        file.with_buffer(0, &mut |bytes| bytes.fill(fill));
        file.submit(0, FileOp::Write { cluster: 1 });
        let written = file.wait(0);
        let whole = FileOp::Read {
            cluster: 1,
            offset: 0,
            len: CLUSTER_BYTES as u32,
        };
        file.submit(1, whole);
        let read = file.wait(1);
        let mut differing = 0;
        file.with_buffer(1, &mut |bytes| {
            differing = bytes.iter().filter(|&&byte| byte != fill).count();
        });
        assert_eq!(file.nr_operations(), (1, 1));
        (written, read, differing)
    }

    #[test]
    fn a_file_keeps_what_is_written_unless_it_is_told_not_to() {
        let error = Err(FileError::Device { errno: EIO });
        let none = FileFaults::default();
        assert_eq!(check(none, 7), (Ok(()), Ok(()), 0));
        let with = |change: fn(&mut FileFaults)| {
            let mut faults = none;
            change(&mut faults);
            check(faults, 7)
        };
        assert_eq!(with(|faults| faults.read_error_one_in = 1).1, error);
        assert_eq!(with(|faults| faults.unreadable = 2).1, error);
        assert_eq!(with(|faults| faults.unreadable = 1).1, Ok(()));
        assert_eq!(with(|faults| faults.write_error_one_in = 1).0, error);
        let (written, _, differing) = with(|faults| faults.torn_one_in = 1);
        assert!(written.is_ok() && differing > 0, "{differing} bytes");
        assert_eq!(with(|faults| faults.flip_one_in = 1).2, 1);
        assert_eq!(
            with(|faults| faults.clusters_max = Some(1)).0,
            Err(FileError::Full)
        );
        assert_eq!(
            with(|faults| faults.clusters_max = Some(2)),
            (Ok(()), Ok(()), 0)
        );
    }
}
