//! Two stories in two columns of a terminal.

use crate::args::Bytes;
use crate::cmd::run::scenario::{Stories, Story};
use core::fmt::Write;

/// Columns of one story; two of them and a gap are 80.
const COLUMN: usize = 38;
const GAP: &str = "    ";

/// Both stories as text that ends in a line feed.
pub(crate) fn picture(stories: &Stories) -> String {
    let columns = stories.stories.each_ref().map(lines);
    let mut text = format!(
        "{} of frames. One address space leaks while its device hangs; another one\n\
         then asks for a little more.\n\n",
        Bytes(stories.limit_bytes)
    );
    let nr_lines = columns.iter().map(Vec::len).max().unwrap_or(0);
    for line in 0..nr_lines {
        let [left, right] = columns
            .each_ref()
            .map(|column| column.get(line).map_or("", String::as_str));
        let row = format!("{left:COLUMN$}{GAP}{right}");
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

fn lines(story: &Story) -> Vec<String> {
    let mut lines = vec![format!("THE REAPER {}", story.reaper), String::new()];
    for (nr, kill) in (1..).zip(&story.kills) {
        for (at, line) in kill.lines().iter().enumerate() {
            let mark = if at == 0 {
                format!("{nr}.")
            } else {
                String::new()
            };
            wrap(&format!("{mark:3}"), line, &mut lines);
        }
        lines.push(String::new());
    }
    let end = if story.bystander_lives {
        "The bystander lives, and has its bytes."
    } else {
        "The bystander, who did nothing, is dead."
    };
    wrap("", end, &mut lines);
    lines
}

/// Adds a line, broken between words: `mark` stands before it, and room for it before the rest.
fn wrap(mark: &str, text: &str, lines: &mut Vec<String>) {
    let indent = " ".repeat(mark.chars().count());
    let mut line = mark.to_owned();
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMN {
            lines.push(core::mem::replace(&mut line, indent.clone()));
        } else if line.chars().count() > indent.len() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
}
