//! The rule about guarantees: a test that `ARCHITECTURE.md` names for one exists.

use super::Report;
use super::source::{Source, is_ident};
use proc_macro2::TokenTree;
use std::collections::BTreeSet;

/// Adds the names of the functions in `source`.
pub(super) fn collect_functions(source: &Source, names: &mut BTreeSet<String>) {
    source.each_level(&mut |tokens| {
        for two in tokens.windows(2) {
            if let (true, TokenTree::Ident(name)) = (is_ident(Some(&two[0]), "fn"), &two[1]) {
                names.insert(name.to_string());
            }
        }
    });
}

/// Checks the rows `| G1 | guarantee | tests |`.
pub(super) fn check(architecture: &str, functions: &BTreeSet<String>, report: &mut Report<'_>) {
    for (at, line) in architecture.lines().enumerate() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [number, _, tests] = cells[..] else {
            continue;
        };
        let digits = number.strip_prefix('G').unwrap_or_default();
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        for test in tests.split('`').skip(1).step_by(2) {
            if !functions.contains(test) {
                let what = format!("{number} is shown by `{test}`, which does not exist");
                report.add(at, what, "name the test that shows it");
            }
        }
    }
}
