//! The real input: files, one after the other, repeated for as long as is asked.

use core::fmt;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The most bytes of input that are kept. What is loaded beyond that repeats it.
const CORPUS_BYTES_MAX: u64 = 256 << 20;

/// Folders that are no input: version control, and what builds leave behind.
const SKIPPED: [&str; 2] = [".git", "target"];

/// A file of the input.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// Where its bytes begin in the corpus.
    start: usize,
    len: usize,
}

/// A part of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) path: &'a Path,
    /// Where in the file it begins.
    pub(crate) file_offset: u64,
    /// Its bytes, as they were when the corpus was gathered.
    pub(crate) bytes: &'a [u8],
}

/// The input as it was read at start: what memory is compared with.
#[derive(Debug)]
pub(crate) struct Corpus {
    bytes: Vec<u8>,
    sources: Vec<Source>,
    /// Files that could not be read.
    pub(crate) nr_unreadable: u64,
}

/// Why there is no input.
#[derive(Debug)]
pub(crate) enum CorpusError {
    /// The path leads nowhere, or not to us.
    Path { path: PathBuf, error: io::Error },
    /// There is not one byte in it.
    Empty { path: PathBuf, nr_unreadable: u64 },
}

impl fmt::Display for CorpusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, error } => {
                write!(f, "the input {} cannot be read: {error}", path.display())
            }
            Self::Empty {
                path,
                nr_unreadable,
            } => {
                write!(f, "the input {} has no bytes to load", path.display())?;
                match nr_unreadable {
                    0 => f.write_str("; give --input a path with files"),
                    n => write!(f, ": {n} files in it cannot be read"),
                }
            }
        }
    }
}

impl std::error::Error for CorpusError {}

/// The directory that holds the repository around the current directory, or else that directory.
pub(crate) fn default_input() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let repository = here.ancestors().find(|path| path.join(".git").exists());
    repository.unwrap_or(&here).to_owned()
}

impl Corpus {
    /// Reads the files under `root` in the order of their names, up to `max_bytes`.
    ///
    /// # Errors
    ///
    /// See [`CorpusError`].
    pub(crate) fn gather(root: &Path, max_bytes: u64) -> Result<Self, CorpusError> {
        let mut corpus = Self {
            bytes: Vec::new(),
            sources: Vec::new(),
            nr_unreadable: 0,
        };
        let bytes_max = max_bytes.min(CORPUS_BYTES_MAX) as usize;
        let at_root = |error| CorpusError::Path {
            path: root.to_owned(),
            error,
        };
        let metadata = fs::metadata(root).map_err(at_root)?;
        if metadata.is_dir() {
            // A directory that cannot be listed is the user's to know of; one below it is skipped.
            let entries = list(root).map_err(at_root)?;
            corpus.add_all(entries, bytes_max);
        } else {
            corpus.add_file(root, bytes_max).map_err(at_root)?;
        }
        if corpus.bytes.is_empty() {
            return Err(CorpusError::Empty {
                path: root.to_owned(),
                nr_unreadable: corpus.nr_unreadable,
            });
        }
        Ok(corpus)
    }

    /// A corpus of one file that does not exist, for tests.
    #[cfg(test)]
    pub(crate) fn of_bytes(bytes: Vec<u8>) -> Self {
        let source = Source {
            path: PathBuf::from("test"),
            start: 0,
            len: bytes.len(),
        };
        Self {
            bytes,
            sources: vec![source],
            nr_unreadable: 0,
        }
    }

    /// Bytes before it repeats.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// How many files it has.
    pub(crate) fn nr_files(&self) -> usize {
        self.sources.len()
    }

    /// Copies from `at` on, in the endless repetition.
    pub(crate) fn copy(&self, at: u64, into: &mut [u8]) {
        let mut done = 0;
        let mut at = (at % self.len()) as usize;
        while done < into.len() {
            let nr = (self.bytes.len() - at).min(into.len() - done);
            into[done..done + nr].copy_from_slice(&self.bytes[at..at + nr]);
            done += nr;
            at = 0;
        }
    }

    /// The parts of files that make up `len` bytes from `at` on, in the endless repetition.
    pub(crate) fn pieces(&self, at: u64, len: u64) -> impl Iterator<Item = Piece<'_>> {
        let mut at = (at % self.len()) as usize;
        let mut left = len as usize;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let next = self.sources.partition_point(|source| source.start <= at);
            let source = &self.sources[next - 1];
            let skipped = at - source.start;
            let nr = (source.len - skipped).min(left);
            let piece = Piece {
                path: &source.path,
                file_offset: skipped as u64,
                bytes: &self.bytes[at..at + nr],
            };
            left -= nr;
            at = (at + nr) % self.bytes.len();
            Some(piece)
        })
    }

    fn add_all(&mut self, entries: Vec<fs::DirEntry>, bytes_max: usize) {
        for entry in entries {
            if self.bytes.len() >= bytes_max {
                return;
            }
            let path = entry.path();
            // Links are not followed: they may lead round in circles.
            let result = match entry.file_type() {
                Ok(kind) if kind.is_dir() && is_skipped(&path) => Ok(()),
                Ok(kind) if kind.is_dir() => {
                    list(&path).map(|entries| self.add_all(entries, bytes_max))
                }
                Ok(kind) if kind.is_file() => self.add_file(&path, bytes_max),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            self.nr_unreadable += u64::from(result.is_err());
        }
    }

    fn add_file(&mut self, path: &Path, bytes_max: usize) -> io::Result<()> {
        let start = self.bytes.len();
        let room = (bytes_max - start) as u64;
        let result = File::open(path).and_then(|file| file.take(room).read_to_end(&mut self.bytes));
        match result {
            Ok(0) => Ok(()),
            Ok(len) => {
                let path = path.to_owned();
                self.sources.push(Source { path, start, len });
                Ok(())
            }
            Err(error) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }
}

/// The entries of a directory in the order of their names.
fn list(path: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

fn is_skipped(path: &Path) -> bool {
    let name = path.file_name();
    SKIPPED
        .iter()
        .any(|skipped| name == Some(OsStr::new(skipped)))
        || path.join("CACHEDIR.TAG").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Corpus {
        let source = |path: &str, start, len| Source {
            path: PathBuf::from(path),
            start,
            len,
        };
        Corpus {
            bytes: b"abcdefg".to_vec(),
            sources: vec![source("x", 0, 3), source("y", 3, 4)],
            nr_unreadable: 0,
        }
    }

    #[track_caller]
    fn check(at: u64, len: u64, expected: &[(&str, u64, &str)]) {
        let corpus = corpus();
        let found: Vec<_> = corpus
            .pieces(at, len)
            .map(|piece| {
                let text = std::str::from_utf8(piece.bytes).expect("letters");
                (
                    piece.path.to_str().expect("letters"),
                    piece.file_offset,
                    text,
                )
            })
            .collect();
        assert_eq!(found, expected);
        let mut copied = vec![0; len as usize];
        corpus.copy(at, &mut copied);
        let joined: String = found.iter().map(|piece| piece.2).collect();
        assert_eq!(copied, joined.as_bytes());
    }

    #[test]
    fn pieces_and_copies_agree_over_every_seam() {
        check(0, 0, &[]);
        check(0, 3, &[("x", 0, "abc")]);
        check(2, 3, &[("x", 2, "c"), ("y", 0, "de")]);
        check(6, 3, &[("y", 3, "g"), ("x", 0, "ab")]);
        check(5, 9, &[("y", 2, "fg"), ("x", 0, "abc"), ("y", 0, "defg")]);
        check(7_000_003, 1, &[("y", 0, "d")]);
    }

    #[test]
    fn a_path_without_bytes_is_no_input() {
        let nowhere = Path::new("/nonexistent/pinless");
        let error = Corpus::gather(nowhere, 100).expect_err("nothing is there");
        assert!(matches!(error, CorpusError::Path { .. }), "{error}");
        let error = Corpus::gather(Path::new("/dev/null"), 100).expect_err("it is empty");
        assert!(matches!(error, CorpusError::Empty { .. }), "{error}");
    }
}
