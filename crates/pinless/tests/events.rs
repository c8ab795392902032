//! What happens is told, and figures are given, under the kernel's names.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

use pinless::event::{Event, Record, Source};
use pinless::mmu_notifier::{Context, Notifier, Range};
use pinless::{Access, Advice, Builder, MapOptions, PAGE_SIZE, PageRun, Pinless};
use std::sync::{Arc, mpsc};

const FRAMES: u32 = 64;

fn build(with: impl FnOnce(Builder) -> Builder) -> Option<Pinless> {
    let builder = Builder::new(u64::from(FRAMES) * PAGE_SIZE as u64);
    let built = with(builder).build();
    built
        .inspect_err(|error| println!("skipped: no userfaultfd: {error}"))
        .ok()
}

fn use_memory(pinless: &Pinless) {
    struct Refuses;
    impl Notifier for Refuses {
        fn start<C: Context>(&self, _: &Range, cx: &C) -> Result<(), C::Refusal> {
            cx.would_block()
        }
    }
    let mm = pinless.new_mm("watched");
    let options = MapOptions::of_pages(4 * FRAMES);
    let memory = pinless.map(&mm, options).expect("a mapping");
    for page in 0..4 * u64::from(FRAMES) {
        let offset = page * PAGE_SIZE as u64;
        memory.store_u64(offset, page).expect("a frame");
    }
    memory.load_u64(0).expect("a frame");
    let first = PageRun::new(0, 8);
    memory.advise(first, Advice::DontNeed).expect("no device");
    let subscription = memory.subscribe("slow device", Arc::new(Refuses));
    // More than there are frames, beside a device that is asked without blocking first.
    for page in 0..4 * u64::from(FRAMES) {
        memory.load_u64(page * PAGE_SIZE as u64).expect("a frame");
    }
    drop(subscription);
    pinless.memcg().kill(&mm);
}

#[test]
fn each_kind_of_event_is_told() {
    let (tell, told) = mpsc::channel::<Record>();
    let watched = build(|builder| {
        builder.on_event(move |record| tell.send(record.clone()).expect("it is listened to"))
    });
    let Some(pinless) = watched else { return };
    use_memory(&pinless);
    let lost = pinless.events_lost();
    drop(pinless);
    let records: Vec<Record> = told.iter().collect();
    assert_eq!(lost, 0, "{} events", records.len());
    let has = |what: &str, is: fn(&Event) -> bool| {
        assert!(records.iter().any(|record| is(&record.event)), "no {what}");
    };
    let zero = |event: &Event| {
        matches!(
            event,
            Event::Fault {
                from: Source::Zero,
                ..
            }
        )
    };
    has("fault of zeros", zero);
    let store = |event: &Event| {
        matches!(
            event,
            Event::Fault {
                from: Source::Store,
                ..
            }
        )
    };
    has("fault from the store", store);
    has("eviction", |event| {
        matches!(event, Event::Evict { pages: 1.., .. })
    });
    has("bracket", |event| matches!(event, Event::Bracket { .. }));
    let refusal = |event: &Event| match event {
        Event::Refusal { holder, .. } => &**holder == "slow device",
        _ => false,
    };
    has("refusal", refusal);
    has("kill", |event| matches!(event, Event::Kill { .. }));
}

#[test]
fn figures_have_the_names_of_the_kernel() {
    let Some(pinless) = build(|builder| builder) else {
        return;
    };
    let before = pinless.metrics();
    use_memory(&pinless);
    let after = pinless.metrics();
    let grown = |name| after.get(name).expect(name) > before.get(name).expect(name);
    for name in [
        "pgmajfault",
        "pgsteal",
        "pgdeactivate",
        "reclaim_refused",
        "oom_kill",
    ] {
        assert!(grown(name), "{name}");
    }
    let bytes = u64::from(FRAMES) * PAGE_SIZE as u64;
    assert_eq!(after.get("memory.max"), Some(bytes));
    assert!(after.get("memory.peak").is_some_and(|peak| peak <= bytes));
    assert_eq!(after.get("events_lost"), Some(0));
    assert_eq!(after.get("memory.size"), None);
}

/// Every line is a name, perhaps labels, and a number; and each family has its type first.
#[test]
fn figures_are_written_as_prometheus_reads_them() {
    let Some(pinless) = build(|builder| builder) else {
        return;
    };
    use_memory(&pinless);
    let text = pinless.metrics().to_string();
    let mut family = "";
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            family = name;
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect("a value");
        let plain = name.split('{').next().expect("the first of at least one");
        assert!(
            plain.starts_with(family) && plain.starts_with("pinless_"),
            "{line}"
        );
        let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        assert!(plain.chars().all(is_letter), "{line}");
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
    }
    let max = u64::from(FRAMES) * PAGE_SIZE as u64;
    assert!(
        text.contains(&format!("\npinless_memory_max_bytes {max}\n")),
        "{text}"
    );
    assert!(text.contains("pinless_fault_seconds{kind=\"hard\",quantile=\"0.99\"} "));
}

/// Whose the pinned pages are, also while an operation goes on after its guard.
#[test]
fn figures_name_who_pins() {
    let Some(pinless) = build(|builder| builder) else {
        return;
    };
    let mm = pinless.new_mm("pinned");
    let memory = pinless.map(&mm, 4 * PAGE_SIZE as u64).expect("a mapping");
    let (odd, nic) = (mm.pin_holder("a \"b\"\\\n"), mm.pin_holder("nic0"));
    let pin = |holder, run| memory.pin_for(holder, run, Access::Write).expect("frames");
    let _pins = (pin(&odd, PageRun::new(0, 1)), pin(&nic, PageRun::new(0, 3)));
    let guard = memory.guard(PageRun::new(3, 1), Access::Write);
    let guard = guard.expect("a frame");
    let io = guard.begin_io_for(&nic).expect("room for a pin");
    drop(guard);
    let metrics = pinless.metrics();
    assert_eq!(metrics.get("pins"), Some(5));
    let holders = metrics.pin_holders().iter();
    let holders: Vec<_> = holders.map(|by| (&*by.holder, by.pages)).collect();
    assert_eq!(holders, [("nic0", 4), ("a \"b\"\\\n", 1)]);
    let text = metrics.to_string();
    for line in [
        "pinless_pins 5",
        "pinless_pins_by{holder=\"nic0\"} 4",
        r#"pinless_pins_by{holder="a \"b\"\\\n"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    io.complete();
}
