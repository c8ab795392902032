//! A program whose pages outlive it, as those that a driver never lets go of: teardown must
//! find it stuck.
//!
//! ```text
//! mkfifo /tmp/fifo; sleep 60 <>/tmp/fifo &
//! pinless teardown --limit 4M -- target/debug/examples/page_keeper /tmp/fifo
//! ```
//!
//! It lends pages of its memory to a named pipe that somebody else holds open, without a copy.
//! Then it takes memory until it is killed. The pages stay in the pipe, and charged.

use std::error::Error;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::os::fd::AsRawFd;

const PAGE_BYTES: usize = 4096;
/// As much as a pipe may hold. Under a limit of 4 MiB it is told from charges kept in stock.
const LENT_BYTES: usize = 1 << 20;
const MIB: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("say which pipe")?;
    let pipe = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: integers go in and come out.
    let room = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, LENT_BYTES as i32) };
    if room == -1 {
        return Err(std::io::Error::last_os_error().into());
    }
    // Never freed: the pages must not come to other use while they are in the pipe.
    let lent = Box::leak(vec![1_u8; LENT_BYTES + PAGE_BYTES].into_boxed_slice());
    let start = lent.as_ptr().align_offset(PAGE_BYTES);
    for page in lent[start..start + LENT_BYTES].chunks(PAGE_BYTES) {
        let vector = libc::iovec {
            iov_base: page.as_ptr().cast_mut().cast(),
            iov_len: page.len(),
        };
        // SAFETY: one vector over a page that is never freed and no longer written to.
        let lent = unsafe { libc::vmsplice(pipe.as_raw_fd(), &vector, 1, libc::SPLICE_F_NONBLOCK) };
        if lent == -1 {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    let mut taken = Vec::new();
    loop {
        taken.push(black_box(vec![1_u8; MIB]));
    }
}
