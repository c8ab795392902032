//! The peer's side: the kernel's memory cgroup with a hard limit, and compressed swap (zram).
//! A [keeper](super::keeper) switches both on and off.

use super::super::report::BenchError;
use super::keeper::{Answer, SetUp, write};
use super::program::{LIMIT_BYTES, NR_PAGES, PAGE_BYTES, Region};
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// Ordinary memory of a process.
pub(super) struct Ordinary(Vec<AtomicU64>);

const WORDS: usize = PAGE_BYTES / size_of::<u64>();

impl Ordinary {
    pub(super) fn new() -> Self {
        Self(
            (0..NR_PAGES as usize * WORDS)
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    fn word(&self, page: u32, word: usize) -> &AtomicU64 {
        &self.0[page as usize * WORDS + word]
    }
}

impl Region for Ordinary {
    fn fill(&self, page: u32, contents: &[u8; PAGE_BYTES]) -> Result<(), BenchError> {
        for (at, bytes) in contents.as_chunks().0.iter().enumerate() {
            self.word(page, at)
                .store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        Ok(())
    }

    fn read(&self, page: u32, word: usize) -> Result<u64, BenchError> {
        Ok(self.word(page, word).load(Ordering::Relaxed))
    }

    fn write(&self, page: u32, word: usize, value: u64) -> Result<(), BenchError> {
        self.word(page, word).store(value, Ordering::Relaxed);
        Ok(())
    }

    fn attached(&self, body: &mut dyn FnMut() -> Result<(), BenchError>) -> Result<(), BenchError> {
        body()
    }

    fn peak_bytes(&self) -> Option<u64> {
        None
    }
}

/// A limit and compressed swap that are there while this lives.
pub(super) struct Peer {
    set_up: SetUp,
    keeper: Child,
}

impl Peer {
    /// Sets both up; the error says why this machine cannot.
    pub(super) fn start() -> Result<Self, BenchError> {
        let own = |error: io::Error| BenchError(format!("cannot start the keeper: {error}"));
        let program = std::env::current_exe().map_err(own)?;
        let mut keeper = Command::new(program)
            .args([super::PART, super::KEEPER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(own)?;
        let mut line = String::new();
        if let Some(stdout) = keeper.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(own)?;
        }
        match serde_json::from_str(&line) {
            Ok(Answer::Ready(set_up)) => Ok(Self { set_up, keeper }),
            Ok(Answer::Refused(why)) => {
                let _ = keeper.wait();
                Err(BenchError(why))
            }
            Err(error) => {
                let _ = keeper.wait();
                Err(BenchError(format!("the keeper answered nonsense: {error}")))
            }
        }
    }

    /// Puts a process into the group, and starts counting anew.
    pub(super) fn admit(&self, process: u32) -> Result<(), BenchError> {
        // Old kernels let the peak of a group not be reset: then it is that of all runs.
        let _ = fs::write(self.set_up.group.join(&self.set_up.peak), "0");
        write(&self.set_up.zram.join("mem_used_max"), "0")?;
        write(
            &self.set_up.group.join("cgroup.procs"),
            &process.to_string(),
        )
    }

    /// The most memory that the process took since: in the group, and in the compressed swap.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        let frames = fs::read_to_string(self.set_up.group.join(&self.set_up.peak)).ok()?;
        let frames: u64 = frames.trim().parse().ok()?;
        let pool = fs::read_to_string(self.set_up.zram.join("mm_stat")).ok()?;
        // orig_data_size compr_data_size mem_used_total mem_limit mem_used_max ...
        let pool: u64 = pool.split_whitespace().nth(4)?.parse().ok()?;
        Some(frames.min(LIMIT_BYTES) + pool)
    }

    /// Under which conditions it was measured.
    pub(super) fn about(&self) -> String {
        format!(
            "peer: memory cgroup {} with zram (lz4) swap, swappiness {}",
            self.set_up.group.display(),
            self.set_up.swappiness
        )
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let is_clean = self.keeper.wait().is_ok_and(|status| status.success());
        if !is_clean {
            eprintln!("the limit or the swap of the peer could not be switched off, see above");
        }
    }
}
