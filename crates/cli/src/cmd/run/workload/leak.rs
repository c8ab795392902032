//! The leak: pages that are written once, that nothing can make smaller, and that are never freed.

use super::{Actor, Over};
use pinless::{Access, Mapping, PAGE_SIZE, PageRun};

const LEAK: &str = "leak";

/// Threads that leak: one would hardly get on among all who want frames.
pub(crate) const THREADS: u32 = 2;

/// Takes memory, `chunk_pages` at a time, until the tenant is killed for it. Each of the threads
/// takes every so many-th chunk.
pub(crate) fn run(mut actor: Actor<'_>, mapping: &Mapping, thread: u32, chunk_pages: u32) {
    let nr_pages = mapping.vma().nr_pages();
    let mut chunk = thread;
    let mut contents = vec![0; chunk_pages as usize * PAGE_SIZE];
    actor.repeat(|actor| {
        let first = chunk * chunk_pages;
        if first >= nr_pages {
            let what = "it took more than there is, and was not killed";
            actor.judge.fail(actor.failure(LEAK, None, &what));
            return Err(Over);
        }
        let run = PageRun::new(first, chunk_pages.min(nr_pages - first));
        actor.rng.fill(&mut contents);
        let guard = mapping
            .guard(run, Access::Write)
            .map_err(|error| actor.failed(LEAK, first, &error))?;
        guard
            .write(0, &contents[..run.len_bytes()])
            .map_err(|error| actor.failed(LEAK, first, &error))?;
        chunk += THREADS;
        Ok(())
    });
}
