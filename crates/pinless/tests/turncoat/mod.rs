//! An owner of memory that answers with one mapping first, and ever after with another.

use pinless::{HostMapping, Mapping};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct Turncoat {
    mappings: [Mapping; 2],
    was_asked: AtomicBool,
}

impl Turncoat {
    pub(crate) fn new(mappings: [Mapping; 2]) -> Arc<Self> {
        let was_asked = AtomicBool::new(false);
        Arc::new(Self {
            mappings,
            was_asked,
        })
    }
}

impl AsRef<HostMapping> for Turncoat {
    fn as_ref(&self) -> &HostMapping {
        let nth = usize::from(self.was_asked.swap(true, Ordering::Relaxed));
        self.mappings[nth].host()
    }
}
