//! A report as JSON, beside its picture or instead of it.

use crate::exit;
use core::fmt;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What `--json` asked for.
pub(crate) enum Json {
    /// Nothing: the report is shown as a picture.
    No,
    /// The JSON on standard output, and no picture.
    Stdout,
    /// The picture, and the JSON in this file.
    File(File, PathBuf),
}

/// The file for the report cannot be made or written.
#[derive(Debug)]
pub(crate) struct JsonError {
    path: PathBuf,
    error: io::Error,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "the report cannot be written to {path}: {}", self.error)
    }
}

impl std::error::Error for JsonError {}

impl Json {
    /// Opens the file, `-` being standard output. To be called before the work: to fail after it
    /// would be a pity.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, JsonError> {
        let Some(path) = path else {
            return Ok(Self::No);
        };
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        match File::create(path) {
            Ok(file) => Ok(Self::File(file, path.into())),
            Err(error) => Err(JsonError::new(path.into(), error)),
        }
    }

    /// Shows the report as it was asked for.
    pub(crate) fn show<R: Serialize>(
        self,
        report: &R,
        picture: impl FnOnce(&R) -> String,
    ) -> Result<(), JsonError> {
        match self {
            Self::No => exit::print_text(&picture(report)),
            Self::Stdout => exit::print_text(&text(report)),
            Self::File(mut file, path) => {
                exit::print_text(&picture(report));
                return file
                    .write_all(text(report).as_bytes())
                    .map_err(|error| JsonError::new(path, error));
            }
        }
        Ok(())
    }
}

impl JsonError {
    fn new(path: PathBuf, error: io::Error) -> Self {
        Self { path, error }
    }
}

/// The report as text that ends in a line feed.
fn text(report: &impl Serialize) -> String {
    let json = serde_json::to_string_pretty(report).expect("a report is numbers and strings");
    json + "\n"
}
