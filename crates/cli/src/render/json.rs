//! A report as JSON.

use serde::Serialize;
use std::fs::File;
use std::io::{self, Write};

/// The report as text that ends in a line feed.
pub(crate) fn text(report: &impl Serialize) -> String {
    let json = serde_json::to_string_pretty(report).expect("a report is numbers and strings");
    json + "\n"
}

/// Writes the report to a file.
pub(crate) fn write(report: &impl Serialize, mut file: File) -> io::Result<()> {
    file.write_all(text(report).as_bytes())
}
