//! The steps of a run as text: time goes down, one column a task. Where the columns are too many
//! for a terminal they overlap, which a line with one step can take.

use lockdep::scheduler::PointKind;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// One step of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Which task.
    pub task: u16,
    /// What it did.
    pub event: Event,
    /// The class of the object.
    pub class: &'static str,
    /// Which object of the class, from zero in the order of first use.
    pub object: u32,
    /// Virtual time.
    pub at_ns: u64,
}

/// What a task did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// It passed a point.
    Point(PointKind),
    /// It took a lock and let go of it, and nobody did anything in between: a line of a timeline
    /// that is [folded](super::Run::folded).
    Section(PointKind),
    /// It began to wait.
    Block(PointKind),
    /// It ended.
    End,
}

impl Event {
    /// A number for the digest.
    pub(super) fn code(self) -> u64 {
        match self {
            Self::Point(kind) => kind as u64,
            Self::Block(kind) => 64 + kind as u64,
            Self::Section(kind) => 192 + kind as u64,
            Self::End => 128,
        }
    }
}

/// The numbers of objects, in the order in which they are met.
#[derive(Default)]
pub(super) struct Objects {
    numbers: BTreeMap<(&'static str, usize), u32>,
    nr_of_class: BTreeMap<&'static str, u32>,
}

impl Objects {
    pub(super) fn number(&mut self, class: &'static str, addr: usize) -> u32 {
        *self.numbers.entry((class, addr)).or_insert_with(|| {
            let nr = self.nr_of_class.entry(class).or_default();
            *nr += 1;
            *nr - 1
        })
    }
}

/// The word for what is done at a point.
pub(super) fn word(kind: PointKind) -> &'static str {
    match kind {
        PointKind::Lock => "lock",
        PointKind::TryLock => "try",
        PointKind::Unlock => "unlock",
        PointKind::Read => "read",
        PointKind::TryRead => "try-read",
        PointKind::Write => "write",
        PointKind::TryWrite => "try-write",
        PointKind::Wait => "wait",
        PointKind::Notify => "notify",
        PointKind::Complete => "complete",
        PointKind::Signal => "signal",
        PointKind::Spin => "spin",
        PointKind::Sleep => "sleep",
        PointKind::Park => "park",
        PointKind::Unpark => "unpark",
        PointKind::User => "at",
        _ => "point",
    }
}

/// See [`Run::folded`](super::Run::folded).
pub(super) fn folded(steps: &[Step]) -> Vec<Step> {
    let mut lines: Vec<Step> = Vec::with_capacity(steps.len());
    for &step in steps {
        let same = |line: &&mut Step| {
            (line.task, line.class, line.object) == (step.task, step.class, step.object)
        };
        let last = lines.last_mut().filter(same);
        let joined = last.and_then(|line| Some((joined(line.event, step.event)?, line)));
        match joined {
            Some((event, line)) => line.event = event,
            None => lines.push(step),
        }
    }
    lines
}

/// Two steps of one task at one object as one, if they are that to a reader.
fn joined(first: Event, second: Event) -> Option<Event> {
    use PointKind::{Lock, Read, TryLock, TryRead, TryWrite, Unlock, Write};
    match (first, second) {
        (
            Event::Point(kind @ (Lock | Read | TryLock | TryRead | TryWrite | Write)),
            Event::Point(Unlock),
        ) => Some(Event::Section(kind)),
        (Event::Point(kind), Event::Block(waits)) if kind == waits => Some(second),
        _ => None,
    }
}

/// Steps in a row that a task shows at each end of a long stretch.
const STRETCH_ENDS: usize = 4;

/// So many lines from the end. The middle of a long stretch of one task is one line.
pub(super) fn render_end(task_names: &[Arc<str>], steps: &[Step], nr_lines: usize) -> String {
    let mut shown = Vec::new();
    for stretch in steps.chunk_by(|a, b| a.task == b.task) {
        let nr_left_out = stretch.len().saturating_sub(2 * STRETCH_ENDS);
        if nr_left_out < 2 {
            shown.extend(stretch.iter().map(|&step| (step, 0)));
            continue;
        }
        let (head, rest) = stretch.split_at(STRETCH_ENDS);
        let (middle, tail) = rest.split_at(nr_left_out);
        shown.extend(head.iter().map(|&step| (step, 0)));
        shown.push((middle[0], middle.len()));
        shown.extend(tail.iter().map(|&step| (step, 0)));
    }
    let last = &shown[shown.len().saturating_sub(nr_lines)..];
    render_lines(task_names, last)
}

/// One line a step.
pub(super) fn render(task_names: &[Arc<str>], steps: &[Step]) -> String {
    let lines: Vec<_> = steps.iter().map(|&step| (step, 0)).collect();
    render_lines(task_names, &lines)
}

/// A line for each step, or for as many of a task as the number says.
fn render_lines(task_names: &[Arc<str>], lines: &[(Step, usize)]) -> String {
    let cells: Vec<String> = lines.iter().map(cell).collect();
    let mut widths = vec![0; task_names.len()];
    for ((step, _), cell) in lines.iter().zip(&cells) {
        let (width, name) = (
            &mut widths[usize::from(step.task)],
            &task_names[usize::from(step.task)],
        );
        *width = cell.len().max(name.len()).max(*width);
    }
    let columns = columns(&widths);
    let mut text = format!("{:>12} ", "ns");
    for (nth, column) in columns.iter().enumerate() {
        let next = columns.get(nth + 1).map_or(usize::MAX, |next| next.start);
        let room = next.saturating_sub(column.start + 1);
        let (to, name) = (COLUMNS_FROM + column.start, &task_names[column.task]);
        // Names of tasks may be anything: cut between characters.
        let _ = write!(text, "{:1$}", "", to - text.chars().count());
        text.extend(name.chars().take(room));
    }
    text.push('\n');
    for ((step, _), cell) in lines.iter().zip(&cells) {
        let task = usize::from(step.task);
        let column = columns.iter().find(|column| column.task == task);
        let start = column.map_or(0, |column| column.start);
        let _ = writeln!(text, "{:>12}  {:start$}{cell}", step.at_ns, "");
    }
    text
}

/// Where the steps of a task stand.
struct Column {
    task: usize,
    /// Characters to the left of it, in the line after the time.
    start: usize,
}

/// The width of a terminal, and how much of it the time takes.
const TERMINAL: usize = 100;
const COLUMNS_FROM: usize = 14;

/// The columns of those who have any width, side by side, or as close as they have to be.
fn columns(widths: &[usize]) -> Vec<Column> {
    let mut columns = Vec::new();
    let mut start = 0;
    for (task, &width) in widths.iter().enumerate().filter(|(_, width)| **width > 0) {
        columns.push(Column { task, start });
        start += width + 1;
    }
    let widest = widths.iter().copied().max().unwrap_or(0);
    let last = columns.last().map_or(0, |column| column.start);
    let last_wanted = TERMINAL.saturating_sub(COLUMNS_FROM + widest);
    if COLUMNS_FROM + start > TERMINAL + 1 && last > last_wanted {
        for column in &mut columns {
            column.start = column.start * last_wanted / last;
        }
    }
    columns
}

fn cell((step, nr_more): &(Step, usize)) -> String {
    if *nr_more > 0 {
        return format!("({nr_more} steps)");
    }
    let (class, object) = (step.class, step.object);
    match step.event {
        Event::End => "ends".to_owned(),
        Event::Point(kind) => format!("{} {class}#{object}", word(kind)),
        Event::Section(kind) => format!("{}, unlock {class}#{object}", word(kind)),
        Event::Block(kind) => format!("... {} {class}#{object}", word(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_comes_between_is_one_step() {
        use PointKind::{Lock, Unlock, Wait};
        let step = |task, event, object| Step {
            task,
            event,
            class: "it",
            object,
            at_ns: 0,
        };
        let (lock, unlock) = (Event::Point(Lock), Event::Point(Unlock));
        let (wait, waits) = (Event::Point(Wait), Event::Block(Wait));
        let steps = [
            step(0, lock, 0),
            step(0, unlock, 0),
            // Another lock, and another task, in between.
            step(0, lock, 0),
            step(0, lock, 1),
            step(0, unlock, 1),
            step(0, unlock, 0),
            step(0, lock, 2),
            step(1, unlock, 2),
            step(1, wait, 3),
            step(1, waits, 3),
        ];
        let events: Vec<Event> = folded(&steps).iter().map(|step| step.event).collect();
        let section = Event::Section(Lock);
        let expected = [section, lock, section, unlock, lock, unlock, waits];
        assert_eq!(events, expected);
    }
}
