//! What the kernel logs from now on.
//!
//! Linux counterpart: `kernel/printk/printk.c`, `/dev/kmsg`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// Longer records do not exist.
const RECORD_BYTES_MAX: usize = 8192;

/// A place in the kernel's log: it begins at the end, and goes forward by reading.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
}

impl Kmsg {
    /// Opens the log at its end.
    ///
    /// # Errors
    ///
    /// Where `/dev/kmsg` is not there or may not be read (`kernel.dmesg_restrict`).
    pub fn from_now() -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file })
    }

    /// The lines that were logged since the last call, without their headers. Lines that were
    /// overwritten before they were read are passed over.
    pub fn drain(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = [0; RECORD_BYTES_MAX];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => return lines,
                Ok(len) => lines.extend(message(&String::from_utf8_lossy(&record[..len]))),
                // EPIPE: records were overwritten; the next read goes on with the oldest.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return lines,
            }
        }
    }
}

/// The text of a record: what stands behind the first semicolon, to the end of the line.
fn message(record: &str) -> Option<String> {
    let (_, text) = record.split_once(';')?;
    Some(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_and_the_dictionary_are_cut_off() {
        let record = "6,339,5140900,-;oom_reaper: reaped; 1 task\n SUBSYSTEM=memory\n";
        assert_eq!(
            message(record).as_deref(),
            Some("oom_reaper: reaped; 1 task")
        );
        assert_eq!(message("no record"), None);
    }
}
