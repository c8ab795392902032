//! Spans and events reach the `tracing` crate.

use pinless::mmu_notifier::{Context, Notifier, Range};
use pinless::sync::Mutex;
use pinless::{Advice, MapOptions, PAGE_SIZE, Pinless};
use std::collections::BTreeSet;
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Remembers the names of spans and the messages of events.
#[derive(Clone)]
struct Heard {
    words: Arc<Mutex<BTreeSet<String>>>,
}

impl Heard {
    fn note(&self, word: &str) {
        self.words.lock().insert(word.to_owned());
    }
}

impl Visit for &Heard {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.note(&format!("{value:?}"));
        }
    }
}

impl Subscriber for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "pinless"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.note(&format!("span {}", span.metadata().name()));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut &*self);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Refuses;

impl Notifier for Refuses {
    fn start<C: Context>(&self, _: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.would_block()
    }
}

#[test]
fn spans_and_events_are_heard() {
    let heard = Heard {
        words: Arc::new(Mutex::new("heard", BTreeSet::new())),
    };
    tracing::subscriber::set_global_default(heard.clone()).expect("the first");
    let built = Pinless::builder(64 * PAGE_SIZE as u64)
        .trace_events()
        .build();
    let pinless = match built {
        Ok(pinless) => pinless,
        Err(error) => return println!("skipped: no userfaultfd: {error}"),
    };
    let mm = pinless.new_mm("traced");
    let options = MapOptions::of_pages(256);
    let memory = pinless.map(&mm, options).expect("a mapping");
    for page in 0..256 {
        let run = pinless::PageRun::single(page);
        let guard = memory.guard(run, pinless::Access::Write);
        guard.expect("a frame").store_u64(0, 1).expect("inside");
    }
    // More than there are frames, beside a device that is asked without blocking first.
    let subscription = memory.subscribe("slow device", Arc::new(Refuses));
    for page in 0..256 {
        memory.load_u64(page * PAGE_SIZE as u64).expect("a frame");
    }
    drop(subscription);
    let all = memory.all();
    memory.advise(all, Advice::DontNeed).expect("no device");
    memory.unmap().expect("nobody holds it");
    pinless.memcg().kill(&mm);
    drop(mm);
    drop(pinless);
    let words = heard.words.lock();
    for word in ["span map", "span guard", "span advise", "span unmap"] {
        assert!(words.contains(word), "no {word} in {words:?}");
    }
    for word in ["fault", "evict", "bracket", "refusal", "kill"] {
        assert!(words.contains(word), "no {word} in {words:?}");
    }
}
