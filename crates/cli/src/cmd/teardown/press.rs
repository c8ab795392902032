//! A process of ours in the group that takes up what the limit leaves.
//!
//! Where a limit below what is in use is refused (cgroup v1), a program that has all its memory
//! in place and does not grow would never hit it. This process does it instead. It is the last
//! one that the kernel would choose: it is small, and where that is allowed, exempt.

use super::TeardownError;
use crate::exit::Exit;
use pinless_host::memcg::Memcg;
use pinless_host::process;
use std::process::{Child, Command, Stdio};

/// The name of the part in which this program is the presser.
pub(crate) const PART: &str = "__teardown-press";

/// What is taken beyond the room that is left, so that the limit is hit.
const BEYOND: u64 = 2 << 20;
const PAGE_BYTES: usize = 4096;

/// The process, as long as this lives.
pub(super) struct Presser(Child);

impl Presser {
    pub(super) fn start(memcg: &Memcg, room_bytes: u64) -> Result<Self, TeardownError> {
        let failed = |error| TeardownError::Start {
            program: "the helper that takes up the rest".to_owned(),
            error,
        };
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command
            .arg(PART)
            .arg((room_bytes + BEYOND).to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let entry = memcg.entry().map_err(TeardownError::Group)?;
        process::spawn_in(&mut command, entry, None)
            .map(Self)
            .map_err(failed)
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether somebody else ended it.
    pub(super) fn is_dead(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Presser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The life of a presser.
pub(crate) fn main(bytes: u64) -> Exit {
    // Refused without privilege; then being small has to do.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let mut memory = vec![0_u8; usize::try_from(bytes).unwrap_or(0)];
    for page in memory.chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
    loop {
        std::thread::park();
    }
}
