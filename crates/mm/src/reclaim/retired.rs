//! Mappings whose last user was a fault.
//!
//! A fault that reclaims uses mappings of others, and one of them may be unmapped and let go of
//! meanwhile. What its end destroys is the program's, too: it must not run in a fault, which may
//! be in a signal handler. So the fault leaves the mapping here, and the worker destroys it.

use crate::mm_struct::Vma;
use lockdep::sync::Mutex;
use std::sync::Arc;

/// Mappings that the worker is to destroy.
#[derive(Debug)]
pub(crate) struct Retired {
    vmas: Mutex<Vec<Vma>>,
}

impl Retired {
    pub(super) fn new() -> Self {
        Self {
            vmas: Mutex::new("mm.reclaim.retired", Vec::new()),
        }
    }

    /// There are `nr` mappings: from now on that many can be left here without allocating.
    pub(crate) fn make_room(&self, nr: usize) {
        self.vmas.lock().reserve(nr);
    }

    /// Lets go of a mapping in a fault. True when the worker has something to do now.
    pub(super) fn let_go(&self, vma: Arc<Vma>) -> bool {
        let Some(last) = Arc::into_inner(vma) else {
            return false;
        };
        let mut vmas = self.vmas.lock();
        debug_assert!(
            vmas.len() < vmas.capacity(),
            "there is room for every mapping"
        );
        vmas.push(last);
        true
    }

    /// Destroys what was left here.
    pub(super) fn destroy(&self) {
        loop {
            // Not under the lock: the end of a mapping runs code of the machine's.
            let Some(vma) = self.vmas.lock().pop() else {
                return;
            };
            drop(vma);
        }
    }
}
