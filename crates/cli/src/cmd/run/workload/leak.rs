//! The leak: pages that are written once, that nothing can make smaller, and that are never freed.

use super::{Actor, Over};
use crate::cmd::run::tenant::offset_of;
use pinless::{FaultMode, Mapping, PAGE_SIZE, Pinless};

const LEAK: &str = "leak";

/// Takes memory until the tenant is killed for it. The mapping is given to the caller: it is the
/// reaper who is to free it.
pub(crate) fn run(mut actor: Actor<'_>, pinless: &Pinless, nr_pages: u32) -> Option<Mapping> {
    let mapped = pinless.map(&actor.tenant.mm, nr_pages, FaultMode::Service);
    let mapping = match mapped {
        Ok(mapping) => mapping,
        Err(error) => {
            let failure = actor.failure(LEAK, None, &error);
            actor.judge.fail(failure);
            return None;
        }
    };
    let mut page = 0;
    let mut contents = [0; PAGE_SIZE];
    actor.repeat(|actor| {
        if page == nr_pages {
            let what = "it took more than there is, and was not killed";
            actor.judge.fail(actor.failure(LEAK, Some(page - 1), &what));
            return Err(Over);
        }
        actor.rng.fill(&mut contents);
        mapping
            .write_at(offset_of(page), &contents)
            .map_err(|error| actor.failed(LEAK, page, &error))?;
        page += 1;
        Ok(())
    });
    Some(mapping)
}
