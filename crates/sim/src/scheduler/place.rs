//! Where an exploration stands in the source, and the words by which one of its runs is asked for.
//!
//! The variable [`VARIABLE`] holds words `key=value`: `at=FILE:LINE` picks the exploration,
//! `strategy=`, `seed=` or `seeds=FROM..TO` say how it runs, `schedule=` asks for one run, and any
//! other key sets an option. Without `at` the words are for every exploration of the process.

use super::report::Run;
use super::strategy::Strategy;
use core::ops::Range;
use core::panic::Location;
use std::fmt::Write;
use std::thread;

/// The variable of the environment that explorations look at.
pub(super) const VARIABLE: &str = "PINLESS_SIM";

/// Choices that are printed; a longer schedule is named by its seed and its strategy.
pub(super) const CHOICES_MAX: usize = 200;

/// An exploration, as the source has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    file: &'static str,
    line: u32,
    /// The thread that explores: in a test, its name.
    test: Option<String>,
}

/// What the environment asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Wish {
    pub(super) seeds: Option<Range<u64>>,
    pub(super) strategy: Option<Strategy>,
    pub(super) schedule: Option<Vec<u16>>,
    pub(super) knobs: Vec<(String, u64)>,
}

impl Place {
    pub(super) fn new(location: &'static Location<'static>) -> Self {
        let name = thread::current().name().map(str::to_owned);
        Self {
            file: location.file(),
            line: location.line(),
            test: name.filter(|name| name != "main"),
        }
    }

    /// What the environment asks of this exploration.
    ///
    /// # Panics
    ///
    /// If it is not understood.
    pub(super) fn wish(&self) -> Wish {
        let words = std::env::var(VARIABLE).unwrap_or_default();
        self.parse(&words)
            .unwrap_or_else(|word| panic!("{VARIABLE}: what is `{word}`?"))
    }

    /// What `words` ask of this exploration, or the word that is not understood.
    pub(super) fn parse(&self, words: &str) -> Result<Wish, String> {
        let mut wish = Wish::default();
        for word in words.split_whitespace() {
            let known = word.split_once('=').and_then(|(key, value)| match key {
                "at" if value != self.word() => Some(true),
                "at" => Some(false),
                _ => wish.set(key, value).map(|()| false),
            });
            match known {
                Some(true) => return Ok(Wish::default()),
                Some(false) => {}
                None => return Err(word.to_owned()),
            }
        }
        Ok(wish)
    }

    fn word(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// The line for a shell that makes `run` again.
    pub(super) fn command(&self, run: &Run) -> String {
        let mut text = format!("{VARIABLE}='at={} seed={}", self.word(), run.seed);
        for (name, value) in &run.knobs {
            let _ = write!(text, " {name}={value}");
        }
        let groups = groups(&run.schedule);
        let _ = match groups.len() {
            0..=CHOICES_MAX => write!(text, " schedule={}", groups.join(".")),
            _ => write!(text, " strategy={}", run.strategy),
        };
        text.push_str("' cargo test");
        if let Ok(package) = std::env::var("CARGO_PKG_NAME") {
            let _ = write!(text, " -p {package}");
        }
        if let Some(test) = &self.test {
            let _ = write!(text, " -- --exact {test}");
        }
        text
    }
}

impl Wish {
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "seed" => {
                let seed: u64 = value.parse().ok()?;
                self.seeds = Some(seed..seed.checked_add(1)?);
            }
            "seeds" => {
                let (from, to) = value.split_once("..")?;
                self.seeds = Some(from.parse().ok()?..to.parse().ok()?);
            }
            "strategy" => self.strategy = Some(value.parse().ok()?),
            "schedule" => self.schedule = Some(schedule(value)?),
            _ => self.knobs.push((key.to_owned(), value.parse().ok()?)),
        }
        Some(())
    }
}

/// Equal choices in a row: `2x5` for five times 2.
fn groups(schedule: &[u16]) -> Vec<String> {
    let rows = schedule.chunk_by(|a, b| a == b);
    rows.map(|row| match row.len() {
        1 => row[0].to_string(),
        nr => format!("{}x{nr}", row[0]),
    })
    .collect()
}

fn schedule(text: &str) -> Option<Vec<u16>> {
    let mut schedule = Vec::new();
    for group in text.split('.').filter(|group| !group.is_empty()) {
        let (task, nr) = group.split_once('x').unwrap_or((group, "1"));
        let (task, nr): (u16, usize) = (task.parse().ok()?, nr.parse().ok()?);
        schedule.extend(std::iter::repeat_n(task, nr));
    }
    Some(schedule)
}
