//! A process of ours in the group that takes up what the limit leaves.
//!
//! Where a limit below what is in use is refused (cgroup v1), a program that has all its memory
//! in place and does not grow would never hit it. This process does it instead. It is the last
//! one that the kernel would choose: it is small, and where that is allowed, exempt.

use super::TeardownError;
use crate::exit::{self, Exit};
use pinless_host::memcg::Memcg;
use pinless_host::process;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

/// The name of the part in which this program is the presser.
pub(crate) const PART: &str = "__teardown-press";

/// What is taken beyond the room that is left, so that the limit is hit.
const BEYOND: u64 = 2 << 20;
const PAGE_BYTES: usize = 4096;

/// The process, as long as this lives. It is in the group and has started before the limit is set:
/// a process that starts under the limit would need the memory that is not there.
pub(super) struct Presser {
    child: Child,
    orders: ChildStdin,
}

impl Presser {
    pub(super) fn start(memcg: &Memcg) -> Result<Self, TeardownError> {
        let failed = |error| TeardownError::Start {
            program: "the helper that takes up the rest".to_owned(),
            error,
        };
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command
            .arg(PART)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let entry = memcg.entry().map_err(TeardownError::Group)?;
        let mut child = process::spawn_in(&mut command, entry, None).map_err(failed)?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(orders), Some(mut answers)) = (orders, answers) else {
            unreachable!("both are piped");
        };
        let presser = Self { child, orders };
        answers.read_exact(&mut [0]).map_err(failed)?;
        Ok(presser)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it take up the room that is left, and a little more.
    pub(super) fn press(&mut self, room_bytes: u64) {
        // If it is gone, that is found out by waiting for the kill.
        let _ = writeln!(self.orders, "{}", room_bytes + BEYOND);
    }

    /// Whether somebody else ended it.
    pub(super) fn is_dead(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Presser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The life of a presser.
pub(crate) fn main() -> Exit {
    // Refused without privilege; then being small has to do.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    exit::print_text("\n");
    let mut line = String::new();
    let bytes = match std::io::stdin().read_line(&mut line) {
        Ok(1..) => line.trim().parse().unwrap_or(0),
        // Whoever started it has gone.
        _ => return Exit::Held,
    };
    let mut memory = vec![0_u8; bytes];
    for page in memory.chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
    loop {
        std::thread::park();
    }
}
