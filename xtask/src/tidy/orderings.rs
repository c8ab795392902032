//! The rule about memory orderings: each one above `Relaxed` says what it pairs with.

use super::Report;
use super::source::{PathUse, Source, is_ident, line_of};

const ABOVE_RELAXED: &[&str] = &["Acquire", "Release", "AcqRel", "SeqCst"];

/// A comment this many lines above still speaks of the ordering.
const LINES_ABOVE_MAX: usize = 4;

/// Words by which the documentation of a function speaks of its ordering.
const ORDERING_WORDS: &[&str] = &["pairs", "acquire", "release", "order"];

/// Checks one file.
pub(super) fn check(source: &Source, report: &mut Report<'_>) {
    let paths = source.paths();
    let imported: Vec<&str> = paths
        .iter()
        .filter(|path| path.in_use)
        .flat_map(imports)
        .collect();
    let mut last = None;
    for path in paths.iter().filter(|path| !path.in_use) {
        let Some((name, before)) = path.segments.split_last() else {
            continue;
        };
        let is_ordering = match before.last() {
            Some(parent) => parent.ends_with("Ordering"),
            None => imported.contains(&name.as_str()),
        };
        let counts = is_ordering && ABOVE_RELAXED.contains(&name.as_str());
        if !counts || last == Some(path.line) {
            continue;
        }
        last = Some(path.line);
        if !is_explained(source, path.line) {
            let to_do = "say in a comment what it pairs with, and what it orders";
            report.add(path.line, format!("`{name}` without a comment"), to_do);
        }
    }
    check_aliases(source, report);
}

/// The names of orderings that a `use` brings in.
fn imports(path: &PathUse) -> Vec<&str> {
    match path.segments.as_slice() {
        [.., parent, star] if parent == "Ordering" && star == "*" => ABOVE_RELAXED.to_vec(),
        [.., parent, name] if parent == "Ordering" => vec![name.as_str()],
        _ => Vec::new(),
    }
}

fn is_explained(source: &Source, line: usize) -> bool {
    let first = line.saturating_sub(LINES_ABOVE_MAX);
    let near = source.lines[first..=line]
        .iter()
        .map(|line| line.comment.as_str());
    near.chain(source.comments_of(line)).any(speaks)
}

/// Whether a comment counts. One that documents an item must speak of ordering.
fn speaks(comment: &str) -> bool {
    if comment.is_empty() {
        return false;
    }
    let documents = comment.starts_with("///") || comment.starts_with("//!");
    let lower = comment.to_lowercase();
    !documents || ORDERING_WORDS.iter().any(|word| lower.contains(word))
}

/// A renamed `Ordering` could hide from the check above.
fn check_aliases(source: &Source, report: &mut Report<'_>) {
    source.each_level(&mut |tokens| {
        for three in tokens.windows(3) {
            let renamed = is_ident(Some(&three[0]), "Ordering") && is_ident(Some(&three[1]), "as");
            if renamed && !three[2].to_string().ends_with("Ordering") {
                let what = "an ordering under another name";
                report.add(line_of(&three[2]), what, "let the name end in `Ordering`");
            }
        }
    });
}
