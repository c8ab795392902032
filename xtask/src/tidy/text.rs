//! Rules about the text of a file: header, columns, characters, marks of unfinished work, bytes.

use super::lists::{
    COLUMNS_MAX, COUNTING_ALLOCATORS, FILE_BYTES_MAX, LONG_FILES, LONG_FUNCTIONS, NON_ASCII,
    STD_LOCKS,
};
use super::{Finding, Report};

/// Marks of unfinished work, put together here so that this file does not hold them.
const MARKS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Checks the text of one Rust file.
pub(super) fn check(text: &str, report: &mut Report<'_>) {
    if !text.starts_with("//!") {
        report.add(
            0,
            "no module header",
            "begin the file with `//!` and say what it is for",
        );
    }
    let ascii_only = !NON_ASCII.iter().any(|(path, _)| *path == report.path);
    for (at, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            report.add(
                at,
                format!("{columns} columns"),
                format!("use {COLUMNS_MAX} at most"),
            );
        }
        if let Some(c) = line.chars().find(|c| !c.is_ascii() && ascii_only) {
            report.add(
                at,
                format!("the character {c:?} is not ASCII"),
                "escape or replace it",
            );
        }
        for mark in MARKS.iter().filter(|mark| has_word(line, mark)) {
            report.add(
                at,
                format!("the mark {mark}"),
                "do it, or write what is so and why",
            );
        }
    }
}

/// Checks the size of a file of any kind.
pub(super) fn check_bytes(path: &str, bytes: u64, findings: &mut Vec<Finding>) {
    if bytes > FILE_BYTES_MAX {
        let what = format!("{bytes} bytes");
        let to_do = format!("keep files under {FILE_BYTES_MAX}; generate it, or cut it");
        Report { path, findings }.add(0, what, to_do);
    }
}

/// Checks that every path in the lists of exceptions still exists.
pub(super) fn check_lists(paths: &[String], findings: &mut Vec<Finding>) {
    let listed = COUNTING_ALLOCATORS
        .iter()
        .chain(NON_ASCII)
        .chain(STD_LOCKS)
        .map(|row| row.0)
        .chain(LONG_FILES.iter().map(|row| row.0))
        .chain(LONG_FUNCTIONS.iter().map(|row| row.0));
    for gone in listed.filter(|listed| !paths.iter().any(|path| path == listed)) {
        let mut report = Report {
            path: "xtask/src/tidy/lists.rs",
            findings,
        };
        report.add(
            0,
            format!("`{gone}` does not exist"),
            "take its row out of the list",
        );
    }
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part)
    })
}
