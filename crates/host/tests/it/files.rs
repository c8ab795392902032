//! The file under the store, on a real device.

use crate::child::{assert_ended_well, run, words};
use crate::fake::skip;
use pinless_host::{SwapFile, SwapFileError};
use pinless_mm::swap::{BackingFile, CLUSTER_BYTES, Cluster, FileError, FileOp};
use std::path::Path;

/// A file beside the test program: on a device, not in memory.
fn file(nr_clusters: u32, nr_buffers: u32) -> Option<SwapFile> {
    let program = std::env::current_exe().unwrap();
    match SwapFile::create_in(program.parent().unwrap(), nr_clusters, nr_buffers) {
        Ok(file) => Some(file),
        Err(error @ SwapFileError::Buffers { .. }) => panic!("{error}"),
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}

fn pattern(cluster: Cluster, round: u32) -> Vec<u8> {
    let word = |nth: u32| {
        (u64::from(cluster) << 40 | u64::from(round) << 32 | u64::from(nth)).to_ne_bytes()
    };
    (0..CLUSTER_BYTES as u32 / 8).flat_map(word).collect()
}

fn write(file: &SwapFile, buffer: u32, cluster: Cluster, bytes: &[u8]) -> Result<(), FileError> {
    file.with_buffer(buffer, &mut |staged| staged.copy_from_slice(bytes));
    file.submit(buffer, FileOp::Write { cluster });
    file.wait(buffer)
}

fn read(
    file: &SwapFile,
    buffer: u32,
    (cluster, offset, len): (Cluster, u32, u32),
) -> Result<Vec<u8>, FileError> {
    let op = FileOp::Read {
        cluster,
        offset,
        len,
    };
    file.submit(buffer, op);
    file.wait(buffer)?;
    let mut found = Vec::new();
    let part = offset as usize..(offset + len) as usize;
    file.with_buffer(buffer, &mut |staged| found = staged[part.clone()].to_vec());
    Ok(found)
}

#[test]
fn clusters_come_back_as_they_were_written_whole_and_in_part() {
    let Some(file) = file(16, 4) else { return };
    assert_eq!((file.nr_clusters(), file.nr_buffers()), (16, 4));
    for round in 0..3 {
        for cluster in (0..16).rev() {
            let written = write(&file, cluster % 4, cluster, &pattern(cluster, round));
            assert_eq!(written, Ok(()), "cluster {cluster}");
        }
        for cluster in 0..16 {
            let expected = pattern(cluster, round);
            let all = (cluster, 0, CLUSTER_BYTES as u32);
            assert!(read(&file, (cluster + 1) % 4, all) == Ok(expected.clone()));
            let part = (cluster, 4096 * (cluster % 13), 3 * 4096);
            let place = part.1 as usize..(part.1 + part.2) as usize;
            assert!(read(&file, 0, part).as_deref() == Ok(&expected[place]));
        }
    }
    // What was never written is zeros, and no error.
    let Some(fresh) = self::file(2, 3) else {
        return;
    };
    assert!(read(&fresh, 0, (1, 0, 4096)) == Ok(vec![0; 4096]));
}

#[test]
fn operations_of_several_threads_keep_apart() {
    let Some(file) = file(64, 8) else { return };
    let file = &file;
    std::thread::scope(|scope| {
        for buffer in 0..8 {
            scope.spawn(move || {
                for round in 0..20 {
                    let cluster = buffer * 8 + round % 8;
                    file.with_buffer(buffer, &mut |staged| {
                        staged.copy_from_slice(&pattern(cluster, round));
                    });
                    file.submit(buffer, FileOp::Write { cluster });
                    // Whoever waits need not be who began.
                    let waited =
                        std::thread::scope(|other| other.spawn(|| file.wait(buffer)).join());
                    assert_eq!(waited.unwrap(), Ok(()));
                    let all = (cluster, 0, CLUSTER_BYTES as u32);
                    assert!(read(file, buffer, all) == Ok(pattern(cluster, round)));
                }
            });
        }
    });
}

#[test]
fn a_full_device_is_said_to_be_full_and_loses_nothing_else() {
    // The limit on the size of files stands in for the device's end. It is the process's.
    let output = run(
        "files::a_full_device_is_said_to_be_full_and_loses_nothing_else",
        "full",
        || {
            let Some(file) = file(8, 3) else { return };
            assert_eq!(write(&file, 0, 1, &pattern(1, 0)), Ok(()));
            let limit = libc::rlimit {
                rlim_cur: 4 * CLUSTER_BYTES as u64,
                rlim_max: libc::RLIM_INFINITY,
            };
            // SAFETY: the calls take numbers and a structure that lives.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
            }
            assert_eq!(write(&file, 0, 4, &pattern(4, 0)), Err(FileError::Full));
            assert_eq!(write(&file, 0, 3, &pattern(3, 0)), Ok(()));
            for cluster in [1, 3] {
                let all = (cluster, 0, CLUSTER_BYTES as u32);
                assert!(read(&file, 1, all) == Ok(pattern(cluster, 0)));
            }
            // Past its end there is nothing to read.
            let beyond = read(&file, 1, (8, 0, 4096));
            assert_eq!(beyond, Err(FileError::Short { bytes: 0 }));
        },
    );
    assert_ended_well(&output);
    let _ = words(&output);
}

#[test]
fn what_cannot_be_a_file_says_what_to_do() {
    let buffers = SwapFile::create_in(Path::new("/"), 1, 2).err();
    assert_eq!(buffers, Some(SwapFileError::Buffers { nr_buffers: 2 }));
    for folder in ["/no such folder", "/proc"] {
        let error = SwapFile::create_in(Path::new(folder), 1, 3).err();
        let error = error.expect("no file can be made there");
        assert!(matches!(error, SwapFileError::Open(_)), "{error:?}");
        assert!(error.to_string().contains("O_DIRECT"), "{error}");
    }
}
