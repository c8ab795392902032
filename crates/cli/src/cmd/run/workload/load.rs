//! Loading: files go into memory, through io_uring where there is one.

use super::{Actor, Over};
use crate::cmd::run::corpus::Piece;
use crate::cmd::run::model::BLOCK_BYTES;
use crate::cmd::run::tenant::offset_of;
use core::sync::atomic::Ordering;
use pinless::io_uring::OpError;
use pinless::{Access, PAGE_SIZE, PageRun};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

const LOAD: &str = "load a file";
const VERIFY: &str = "verify what was loaded";

/// Loads the tenant's memory, `chunk_pages` at a time, and compares it with the input.
pub(crate) fn run(actor: &Actor<'_>, chunk_pages: u32) -> Result<(), Over> {
    let nr_pages = actor.tenant.mapping.vma().nr_pages();
    let mut first = 0;
    while first < nr_pages {
        actor.go_on()?;
        let run = PageRun::new(first, chunk_pages.min(nr_pages - first));
        load(actor, run)?;
        verify(actor, run)?;
        actor.tally.op();
        first = run.end();
    }
    Ok(())
}

fn load(actor: &Actor<'_>, run: PageRun) -> Result<(), Over> {
    let model = &actor.tenant.model;
    let mut at = offset_of(run.first);
    let pieces = model
        .corpus()
        .pieces(model.origin() + at, run.len_bytes() as u64);
    for piece in pieces {
        let is_loaded = through_ring(actor, at, &piece)?;
        if !is_loaded {
            actor
                .tenant
                .mapping
                .write_at(at, piece.bytes)
                .map_err(|error| actor.failed(LOAD, run.first, &error))?;
        }
        at += piece.bytes.len() as u64;
    }
    Ok(())
}

/// Reads a part of a file into memory; false when there is no ring, or the file is not what it was.
fn through_ring(actor: &Actor<'_>, at: u64, piece: &Piece<'_>) -> Result<bool, Over> {
    let page = (at / PAGE_SIZE as u64) as u32;
    let Some(device) = &actor.tenant.ring else {
        return Ok(false);
    };
    let Ok(file) = File::open(piece.path) else {
        return Ok(false);
    };
    let bytes = at..at + piece.bytes.len() as u64;
    let read = device
        .ring
        .read_fixed(&device.area, file.as_fd(), piece.file_offset, bytes);
    match read {
        Ok(()) => Ok(true),
        // The file has become shorter.
        Err(OpError::Short { .. }) => Ok(false),
        Err(error) => Err(actor.failed(LOAD, page, &error)),
    }
}

/// Compares what was loaded with the input. Where a file changed since the input was gathered, the
/// input is put into its place.
fn verify(actor: &Actor<'_>, run: PageRun) -> Result<(), Over> {
    let tenant = actor.tenant;
    let mut found = vec![0; run.len_bytes()];
    let guard = tenant
        .mapping
        .guard(run, Access::Write)
        .map_err(|error| actor.failed(VERIFY, run.first, &error))?;
    guard
        .read(0, &mut found)
        .map_err(|error| actor.failed(VERIFY, run.first, &error))?;
    let mut expected = vec![0; run.len_bytes()];
    let at = tenant.model.origin() + offset_of(run.first);
    tenant.model.corpus().copy(at, &mut expected);
    if found != expected {
        if !has_changed(actor, run).unwrap_or(true) {
            let wrong = found.iter().zip(&expected).position(|(a, b)| a != b);
            let block = (wrong.unwrap_or(0) / BLOCK_BYTES) as u64;
            let first = u64::from(run.first) * (PAGE_SIZE / BLOCK_BYTES) as u64;
            let bytes = &found[block as usize * BLOCK_BYTES..][..BLOCK_BYTES];
            let checked = tenant.model.check(first + block, 0, bytes);
            return checked.map_err(|mismatch| actor.mismatch(VERIFY, &mismatch));
        }
        guard
            .write(0, &expected)
            .map_err(|error| actor.failed(LOAD, run.first, &error))?;
        tenant
            .nr_pages_changed
            .fetch_add(run.nr.into(), Ordering::Relaxed);
    }
    actor.tally.verified(found.len());
    Ok(())
}

/// Whether a file behind these pages is no longer what it was.
fn has_changed(actor: &Actor<'_>, run: PageRun) -> io::Result<bool> {
    let model = &actor.tenant.model;
    let at = model.origin() + offset_of(run.first);
    for piece in model.corpus().pieces(at, run.len_bytes() as u64) {
        let mut now = vec![0; piece.bytes.len()];
        File::open(piece.path)?.read_exact_at(&mut now, piece.file_offset)?;
        if now != piece.bytes {
            return Ok(true);
        }
    }
    Ok(false)
}
