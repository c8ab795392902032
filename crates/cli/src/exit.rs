//! Exit codes, and the one line that goes with each bad end.

use crate::args::Cli;
use clap::CommandFactory;
use clap::error::ErrorKind;
use lockdep::sync::Mutex;
use serde::Serialize;
use std::fmt;

/// What the shell sees. Scripts know the numbers: none of them changes its meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(into = "u8")]
pub(crate) enum Exit {
    /// Everything held.
    Held = 0,
    /// Something did not hold; the report says what.
    Failed = 1,
    /// The command was asked for something that cannot be done.
    BadUse = 2,
    /// A teardown: memory came back late.
    Slow = 3,
    /// A teardown: the kernel complained.
    Complaint = 4,
    /// A teardown: memory did not come back.
    Stuck = 5,
    /// A teardown: the kernel's reaper gave up.
    ReaperGaveUp = 6,
    /// A teardown: a second process was killed too early.
    SecondVictim = 7,
    /// The user ended it before it could show everything; what it had shown so far held.
    Interrupted = 130,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}

/// Where the last panic came from.
static PANIC: Mutex<Option<String>> = Mutex::new("cli.panic", None);

/// Says in one line why nothing was done.
pub(crate) fn bad_use(why: &dyn fmt::Display) -> Exit {
    eprint_line(&format!("pinless: {why}"));
    Exit::BadUse
}

/// What clap found wrong, in one line; or the help that was asked for.
pub(crate) fn of_arguments(error: &clap::Error) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print_text(&error.to_string());
            Exit::Held
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            bad_use(&"say what to do: `pinless run` is the main job, `pinless --help` tells more")
        }
        _ => {
            let text = error.to_string();
            let first: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.is_empty())
                .collect();
            let line = first.join(" ");
            let line = line.strip_prefix("error: ").unwrap_or(&line);
            bad_use(&format_args!(
                "{line} (see `pinless {}--help`)",
                command_word()
            ))
        }
    }
}

/// The command that was asked for, if there is such a one, and a space.
fn command_word() -> String {
    let word = std::env::args().nth(1).unwrap_or_default();
    let is_command = Cli::command().find_subcommand(&word).is_some();
    if is_command {
        word + " "
    } else {
        String::new()
    }
}

/// Keeps panics off the terminal; [`take_panic`] tells them.
pub(crate) fn silence_panics() {
    std::panic::set_hook(Box::new(|info| {
        let mut last = PANIC.lock();
        // The first one is the cause, what follows is fallout.
        last.get_or_insert_with(|| info.to_string().replace('\n', " "));
    }));
}

/// What the first panic said, once.
pub(crate) fn take_panic() -> Option<String> {
    PANIC.lock().take()
}

/// A panic of the command itself: a bug of Pinless, told in one line.
pub(crate) fn of_panic() -> Exit {
    let what = take_panic().unwrap_or_else(|| "unknown".to_owned());
    eprint_line(&format!("pinless: a bug of pinless: {what}"));
    Exit::Failed
}

/// Prints a line on stderr; nobody may be reading, and that is no failure.
pub(crate) fn eprint_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Prints text on stdout; nobody may be reading, and that is no failure.
pub(crate) fn print_text(text: &str) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}
