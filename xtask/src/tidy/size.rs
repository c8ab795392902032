//! Rules about size: lines of a function, lines of a file. The lists of exceptions only shrink.

use super::Report;
use super::lists::{FILE_LINES_MAX, FUNCTION_LINES_MAX, LONG_FILES, LONG_FUNCTIONS};
use super::source::{Source, is_ident, is_punct, line_of};
use proc_macro2::{Delimiter, TokenTree};

/// Checks one file.
pub(super) fn check(source: &Source, report: &mut Report<'_>) {
    let lines = source.text.lines().count();
    let listed = LONG_FILES
        .iter()
        .find(|row| row.0 == source.path)
        .map(|row| row.1);
    ratchet(0, "the file", lines, FILE_LINES_MAX, listed, report);
    source.each_level(&mut |tokens| {
        for at in 0..tokens.len() {
            let Some((name, lines)) = function_at(&tokens[at..]) else {
                continue;
            };
            let is_row = |path: &str, listed: &str| path == source.path && listed == name;
            let row = LONG_FUNCTIONS.iter().find(|row| is_row(row.0, row.1));
            let what = format!("the function `{name}`");
            let line = line_of(&tokens[at]);
            ratchet(
                line,
                &what,
                lines,
                FUNCTION_LINES_MAX,
                row.map(|row| row.2),
                report,
            );
        }
    });
}

/// Compares a size with its bound, or with its row in the list.
fn ratchet(
    line: usize,
    what: &str,
    lines: usize,
    max: usize,
    listed: Option<usize>,
    report: &mut Report<'_>,
) {
    let to_do = match listed {
        None if lines > max => format!("split it: {max} at most"),
        Some(_) if lines <= max => "take its row out of the list".to_owned(),
        Some(listed) if lines > listed => format!("it was {listed}: split it, do not grow it"),
        Some(listed) if lines < listed => format!("lower its row in the list from {listed}"),
        _ => return,
    };
    report.add(line, format!("{what} has {lines} lines"), to_do);
}

/// The name and the lines of the function that begins here, if one does and it has a body.
fn function_at(tokens: &[TokenTree]) -> Option<(String, usize)> {
    if !is_ident(tokens.first(), "fn") {
        return None;
    }
    let name = tokens.get(1..)?.iter().find_map(|token| match token {
        TokenTree::Ident(name) => Some(name.to_string()),
        _ => None,
    })?;
    for token in &tokens[1..] {
        match token {
            TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                return Some((name, body.span_close().end().line - line_of(&tokens[0])));
            }
            _ if is_punct(Some(token), ';') => return None,
            _ => {}
        }
    }
    None
}
