//! A report as JSON.

use crate::cmd::run::report::Report;
use std::fs::File;
use std::io::{self, Write};

/// The report as text that ends in a line feed.
pub(crate) fn text(report: &Report) -> String {
    let json = serde_json::to_string_pretty(report).expect("a report is numbers and strings");
    json + "\n"
}

/// Writes the report to a file.
pub(crate) fn write(report: &Report, mut file: File) -> io::Result<()> {
    file.write_all(text(report).as_bytes())
}
