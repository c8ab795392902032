//! Keeps the processors of the machine from sleeping while faults come.
//!
//! A request of the kernel's power management (PM QoS) with a latency of zero has idle processors
//! poll in place of sleeping. Whoever is woken then runs at once, and who wakes it interrupts
//! nobody. Processors without a driver of cpuidle sleep nevertheless, and nothing is gained.
//!
//! Linux counterpart: `kernel/power/qos.c`.

use crate::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io::Write;

/// Takes requests: each open file is one, which ends when it is closed.
const DEVICE: &str = "/dev/cpu_dma_latency";

/// Processors are not to sleep at all.
const POLL_US: i32 = 0;
/// No request (`PM_QOS_DEFAULT_VALUE`).
const NONE_US: i32 = -1;

/// How long processors are kept awake after the last fault. Far longer than from one fault to the
/// next in a program that misses its memory, and too short for its power to matter.
const LINGER_MS: i32 = 10;
/// The time for `epoll_wait` that does not end.
pub(crate) const FOR_EVER_MS: i32 = -1;

/// A request to keep processors awake, which [a service](crate::FaultService::start_awake) makes
/// while there are faults and withdraws when there are none.
#[derive(Debug)]
pub struct CpuLatency {
    file: File,
    is_made: bool,
}

impl CpuLatency {
    /// Prepares a request, and makes none yet.
    ///
    /// # Errors
    ///
    /// `EACCES` where the device may not be written to, which is for root unless somebody has
    /// seen to it; `ENOENT` where there is none, as in many containers.
    pub fn open() -> Result<Self, Errno> {
        let file = OpenOptions::new().write(true).open(DEVICE);
        let errno = |error: std::io::Error| Errno(error.raw_os_error().unwrap_or(libc::EIO));
        file.map(Self::over).map_err(errno)
    }

    fn over(file: File) -> Self {
        Self {
            file,
            is_made: false,
        }
    }

    /// How long to wait for the next fault, in milliseconds as `epoll_wait` takes them, before
    /// there is [none](Self::withdraw).
    pub(crate) fn wait_ms(&self) -> i32 {
        if self.is_made { LINGER_MS } else { FOR_EVER_MS }
    }

    /// There are faults.
    pub(crate) fn make(&mut self) {
        self.tell(true, POLL_US);
    }

    /// There are none any more.
    pub(crate) fn withdraw(&mut self) {
        self.tell(false, NONE_US);
    }

    fn tell(&mut self, is_made: bool, latency_us: i32) {
        if self.is_made != is_made {
            // One that is not heard costs speed and nothing else.
            let _ = self.file.write_all(&latency_us.to_ne_bytes());
            self.is_made = is_made;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::{PipeReader, Read, pipe};
    use std::os::fd::OwnedFd;

    /// A request that tells a pipe.
    pub(crate) fn request() -> (CpuLatency, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        (CpuLatency::over(File::from(OwnedFd::from(writer))), reader)
    }

    /// The next latency that was asked for; waits for it.
    pub(crate) fn next_us(reader: &mut PipeReader) -> i32 {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).unwrap();
        i32::from_ne_bytes(bytes)
    }

    #[test]
    fn a_request_is_made_once_and_withdrawn_once() {
        let (mut request, mut reader) = request();
        assert_eq!(request.wait_ms(), FOR_EVER_MS);
        request.withdraw();
        request.make();
        request.make();
        assert_eq!(request.wait_ms(), LINGER_MS);
        request.withdraw();
        request.withdraw();
        assert_eq!(request.wait_ms(), FOR_EVER_MS);
        drop(request);
        let mut told = Vec::new();
        reader.read_to_end(&mut told).unwrap();
        assert_eq!(told, [0_i32.to_ne_bytes(), (-1_i32).to_ne_bytes()].concat());
    }
}
