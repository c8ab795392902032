//! Memory that two processes map: what is taken away, both miss, and nothing is lost.
//!
//! The processes tell each other things through words of that memory.

use crate::child::{assert_ended_well, run, start};
use crate::fake::{Fake, Memory, Side, managed, mapping, pattern, word_of};
use pinless_host::{
    AccessError, Client, FaultMode, FaultService, HostMapping, Share, ShareError, attach_thread,
};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::fault::{FaultError, StoreError};
use pinless_mm::primary_mmu::{Access, MmuError, PrimaryMmu};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const NR_PAGES: u32 = 64;
const ALL: PageRun = PageRun {
    first: 0,
    nr: NR_PAGES,
};
/// How often each process counts up its word in each page.
const NR_ROUNDS: u64 = 40;
/// The words: of the owner, of the client, and where the client says that it has begun.
const OWNER: usize = 100;
const CLIENT: usize = 300;
const BEGUN: usize = 500;

const fn shared(faults: FaultMode) -> Side {
    Side {
        memory: Memory::Shared,
        faults,
    }
}

fn offset(page: u32, word: usize) -> u64 {
    u64::from(page) * PAGE_SIZE as u64 + 8 * word as u64
}

/// The standard input of a process that was started with a socket, or a file, as that.
fn inherited() -> OwnedFd {
    // SAFETY: descriptor 0 is open, and this process uses it for nothing else.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// A mapping that a second process shares.
struct Pair {
    mapping: HostMapping,
    fake: Arc<Fake>,
    share: Share,
    child: Child,
}

/// Shares a mapping with a second process, in which `client` runs. `test` is the name of the test,
/// in this file, that calls this.
fn pair(side: Side, test: &str, client: fn(Client)) -> Option<Pair> {
    let (mapping, fake) = managed(NR_PAGES, side)?;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let name = format!("{test}-{:?}", side.faults);
    let child = start(
        &format!("sharing::{test}"),
        &name,
        OwnedFd::from(theirs),
        || {
            client(Client::join(UnixStream::from(inherited())).unwrap());
        },
    );
    let service = FaultService::start(1).unwrap();
    let share = mapping.share(ours, &service).unwrap();
    Some(Pair {
        mapping,
        fake,
        share,
        child,
    })
}

/// The status of a process that has ended, or nothing.
fn ended(child: &mut Child) -> Option<ExitStatus> {
    let status = child.try_wait().unwrap();
    std::thread::yield_now();
    status
}

/// Counts up a word of each page, which must be found as it was left.
fn count_up(word: usize, load: impl Fn(u64) -> u64, store: impl Fn(u64, u64)) {
    for round in 0..NR_ROUNDS {
        for page in ALL.pages() {
            let at = offset(page, word);
            let expected = match round {
                0 => word_of(page, word),
                _ => round,
            };
            assert_eq!(load(at), expected, "page {page} round {round}");
            // What is next to it is somebody else's, or nobody's.
            assert_eq!(load(at + 8), word_of(page, word + 1), "page {page}");
            store(at, round + 1);
        }
    }
}

#[test]
fn two_processes_lose_no_write_with_service_threads() {
    let test = "two_processes_lose_no_write_with_service_threads";
    check_two_processes(FaultMode::Service, test);
}

#[test]
fn two_processes_lose_no_write_in_the_faulting_thread() {
    let test = "two_processes_lose_no_write_in_the_faulting_thread";
    check_two_processes(FaultMode::InThread, test);
}

/// Both write while pages are taken away.
fn check_two_processes(faults: FaultMode, test: &str) {
    let Some(mut pair) = pair(shared(faults), test, |client| {
        let load = |at| client.load_u64(at).unwrap();
        count_up(CLIENT, load, |at, value| {
            client.store_u64(at, value).unwrap()
        });
    }) else {
        return;
    };
    let (mapping, fake) = (&pair.mapping, &pair.fake);
    let mut nr_taken = 0;
    let status = std::thread::scope(|scope| {
        let owner = scope.spawn(|| {
            let _attached = attach_thread().unwrap();
            let load = |at| mapping.load_u64(at).unwrap();
            count_up(OWNER, load, |at, value| {
                mapping.store_u64(at, value).unwrap()
            });
        });
        let status = loop {
            nr_taken += fake.detach(ALL);
            fake.store(ALL);
            if let Some(status) = ended(&mut pair.child) {
                break status;
            }
        };
        owner.join().unwrap();
        status
    });
    assert!(status.success(), "{status}");
    assert!(nr_taken > 0);
    let _attached = attach_thread().unwrap();
    for page in ALL.pages() {
        for word in [OWNER, CLIENT] {
            assert_eq!(mapping.load_u64(offset(page, word)), Ok(NR_ROUNDS));
        }
    }
    drop(pair.share);
}

#[test]
fn a_client_is_refused_what_is_lost_and_everything_when_the_owner_lets_go() {
    let test = "a_client_is_refused_what_is_lost_and_everything_when_the_owner_lets_go";
    let Some(pair) = pair(shared(FaultMode::InThread), test, |client| {
        let refused = |page| {
            Err(AccessError::OwnerRefused {
                offset: offset(page, 0),
                page,
            })
        };
        // The owner says when.
        while client.load_u64(offset(1, BEGUN)) != Ok(1) {
            std::thread::yield_now();
        }
        assert_eq!(client.load_u64(offset(3, 0)), refused(3));
        client.store_u64(offset(0, BEGUN), 1).unwrap();
        let mut nr_refused = 0;
        while nr_refused == 0 {
            for page in (0..NR_PAGES).filter(|page| *page != 3) {
                let found = client.load_u64(offset(page, 0));
                if found != Ok(word_of(page, 0)) {
                    assert_eq!(found, refused(page));
                    nr_refused += 1;
                }
            }
        }
        for page in ALL.pages() {
            assert_eq!(client.load_u64(offset(page, 0)), refused(page));
        }
    }) else {
        return;
    };
    let _attached = attach_thread().unwrap();
    let cause = StoreError::Corrupt;
    pair.fake.refuse(3, FaultError::Lost { page: 3, cause });
    pair.mapping.store_u64(offset(1, BEGUN), 1).unwrap();
    while pair.mapping.load_u64(offset(0, BEGUN)) != Ok(1) {
        pair.fake.detach(PageRun::new(0, 2));
        std::thread::yield_now();
    }
    drop(pair.share);
    let mut child = pair.child;
    // What the owner does with its pages meanwhile keeps no access of the client's from its end.
    let status = loop {
        for page in ALL.pages().filter(|page| *page != 3) {
            pair.mapping.load_u64(offset(page, 0)).unwrap();
        }
        pair.fake.detach(ALL);
        if let Some(status) = ended(&mut child) {
            break status;
        }
    };
    assert!(status.success(), "{status}");
}

/// No access waits for ever, and what one of them was refused is there when somebody else gets it.
#[test]
fn a_client_for_which_there_is_no_frame_gets_an_error() {
    let test = "a_client_for_which_there_is_no_frame_gets_an_error";
    let Some(mut pair) = pair(shared(FaultMode::InThread), test, |client| {
        // The owner says when.
        while client.load_u64(offset(1, BEGUN)) != Ok(1) {
            std::thread::yield_now();
        }
        let refused = AccessError::OwnerRefused {
            offset: offset(3, 0),
            page: 3,
        };
        assert_eq!(client.load_u64(offset(3, 0)), Err(refused));
        client.store_u64(offset(0, BEGUN), 1).unwrap();
        while client.load_u64(offset(3, 0)) != Ok(word_of(3, 0)) {
            std::thread::yield_now();
        }
    }) else {
        return;
    };
    let _attached = attach_thread().unwrap();
    let waited = std::time::Duration::ZERO;
    pair.fake.refuse(3, FaultError::NoFrame { waited });
    pair.mapping.store_u64(offset(1, BEGUN), 1).unwrap();
    while pair.mapping.load_u64(offset(0, BEGUN)) != Ok(1) {
        std::thread::yield_now();
    }
    pair.fake.books.lock().refused.remove(&3);
    assert_eq!(pair.mapping.load_u64(offset(3, 0)), Ok(word_of(3, 0)));
    assert!(pair.child.wait().unwrap().success());
    drop(pair.share);
}

/// A page that is protected is somebody's: whoever stores it would miss the write.
#[test]
fn a_client_cannot_write_what_the_machine_refuses() {
    let test = "a_client_cannot_write_what_the_machine_refuses";
    let Some(mut pair) = pair(shared(FaultMode::InThread), test, |client| {
        client.load_u64(offset(3, 0)).unwrap();
        client.store_u64(offset(1, BEGUN), 1).unwrap();
        while client.load_u64(offset(2, BEGUN)) != Ok(1) {
            std::thread::yield_now();
        }
        client.store_u64(offset(3, CLIENT), 7).unwrap();
        client.store_u64(offset(0, BEGUN), 1).unwrap();
    }) else {
        return;
    };
    let _attached = attach_thread().unwrap();
    let (mapping, fake) = (&pair.mapping, &pair.fake);
    while mapping.load_u64(offset(1, BEGUN)) != Ok(1) {
        std::thread::yield_now();
    }
    fake.refuse(3, FaultError::Machine(MmuError::NoMemory));
    let nr_refused = fake.nr_faults();
    mapping.store_u64(offset(2, BEGUN), 1).unwrap();
    while fake.nr_faults() < nr_refused + 8 && mapping.load_u64(offset(0, BEGUN)) != Ok(1) {
        std::thread::yield_now();
    }
    let written = mapping.load_u64(offset(3, CLIENT));
    assert_eq!(written, Ok(word_of(3, CLIENT)));
    fake.books.lock().refused.remove(&3);
    assert!(pair.child.wait().unwrap().success());
    assert_eq!(mapping.load_u64(offset(3, CLIENT)), Ok(7));
    drop(pair.share);
}

#[test]
fn a_client_that_stands_still_keeps_no_memory_and_holds_up_nobody() {
    let test = "a_client_that_stands_still_keeps_no_memory_and_holds_up_nobody";
    let Some(mut pair) = pair(shared(FaultMode::Service), test, |client| {
        for page in ALL.pages() {
            client.store_u64(offset(page, CLIENT), 7).unwrap();
        }
        client.store_u64(offset(0, BEGUN), 1).unwrap();
        while client.store_u64(offset(1, CLIENT), 8).is_ok() {}
    }) else {
        return;
    };
    while pair.mapping.load_u64(offset(0, BEGUN)) != Ok(1) {
        std::thread::yield_now();
    }
    let process = pair.child.id() as i32;
    // SAFETY: the calls take numbers and a place for the answer.
    unsafe {
        libc::kill(process, libc::SIGSTOP);
        let mut status = 0;
        assert_eq!(
            libc::waitpid(process, &mut status, libc::WUNTRACED),
            process
        );
        assert!(libc::WIFSTOPPED(status));
    }
    for page in ALL.pages() {
        pair.mapping.store_u64(offset(page, OWNER), 9).unwrap();
    }
    assert_eq!(pair.fake.detach(ALL), NR_PAGES as usize);
    pair.fake.store(ALL);
    for page in ALL.pages() {
        assert!(!pair.mapping.mmu().is_present(page));
        assert_eq!(pair.mapping.load_u64(offset(page, OWNER)), Ok(9));
        let written = pair.mapping.load_u64(offset(page, CLIENT)).unwrap();
        assert!(
            written == 7 || page == 1 && written == 8,
            "page {page}: {written}"
        );
    }
    // SAFETY: as above.
    unsafe { libc::kill(process, libc::SIGCONT) };
    drop(pair.share);
    assert!(pair.child.wait().unwrap().success());
}

/// Fails if a client were not shut: its accesses would wait for ever, or read zeros.
#[test]
fn when_the_owner_dies_its_clients_get_errors_and_never_zeros() {
    let test = "sharing::when_the_owner_dies_its_clients_get_errors_and_never_zeros";
    let Some(probed) = mapping(1, shared(FaultMode::Service)) else {
        return;
    };
    drop(probed);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut owner = start(test, "dying-owner", OwnedFd::from(theirs), || {
        let (mapping, _fake) = managed(NR_PAGES, shared(FaultMode::Service)).unwrap();
        let service = FaultService::start(1).unwrap();
        let _share = mapping
            .share(UnixStream::from(inherited()), &service)
            .unwrap();
        loop {
            std::thread::park();
        }
    });
    let client = Client::join(ours).unwrap();
    let mut contents = [0; PAGE_SIZE];
    client.read_at(offset(2, 0), &mut contents).unwrap();
    assert!(contents == pattern(2));
    owner.kill().unwrap();
    owner.wait().unwrap();
    for page in ALL.pages().filter(|page| *page != 2) {
        let refused = AccessError::OwnerRefused {
            offset: offset(page, 0),
            page,
        };
        assert_eq!(client.load_u64(offset(page, 0)), Err(refused));
    }
}

/// Why the file is handed to nobody but a client.
#[test]
fn without_a_client_a_process_reads_zeros_and_the_owner_notices() {
    let test = "sharing::without_a_client_a_process_reads_zeros_and_the_owner_notices";
    // As many as no other mapping of these tests has.
    const NR_OWN: u32 = 61;
    let Some((mapping, _fake)) = managed(NR_OWN, shared(FaultMode::Service)) else {
        return;
    };
    let stolen = stolen_file(NR_OWN);
    let mut child = start(test, "thief", stolen, || {
        let file = inherited();
        // SAFETY: a new mapping at an address of the kernel's choice, of which one word is read.
        let found = unsafe {
            let address = libc::mmap(
                std::ptr::null_mut(),
                NR_OWN as usize * PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(address, libc::MAP_FAILED);
            address.cast::<u64>().add(512 + 1).read_volatile()
        };
        assert_eq!(
            found,
            0,
            "the stored contents of page 1 are {}",
            word_of(1, 1)
        );
    });
    assert!(child.wait().unwrap().success());
    let found = mapping.load_u64(offset(1, 1));
    let noticed = AccessError::Fault {
        offset: offset(1, 1),
        page: 1,
        error: FaultError::NoFrame {
            waited: std::time::Duration::ZERO,
        },
    };
    // A service thread cannot hand its reason on.
    assert_eq!(found, Err(noticed));
    let filled = mapping.mmu().map_filled(1, &pattern(1), Access::Read);
    assert_eq!(filled, Err(MmuError::ForeignFill { page: 1 }));
    assert_eq!(mapping.load_u64(offset(2, 1)), Ok(word_of(2, 1)));
}

/// The file behind the shared mapping of so many pages, as a debugger could get at it.
fn stolen_file(nr_pages: u32) -> std::fs::File {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut ours = files.filter(|entry| {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let is_ours = target.to_string_lossy().starts_with("/memfd:pinless");
        let len = std::fs::metadata(entry.path()).map_or(0, |data| data.len());
        is_ours && len == offset(nr_pages, 0)
    });
    let path = ours.next().unwrap().path();
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

#[test]
fn what_cannot_be_shared_says_why() {
    let service = FaultService::start(1).unwrap();
    let stream = || UnixStream::pair().unwrap().0;
    let Some((private, _fake)) = managed(1, FaultMode::InThread) else {
        return;
    };
    let why = |mapping: &HostMapping| mapping.share(stream(), &service).map(drop);
    assert_eq!(why(&private), Err(ShareError::NotShareable));
    let unattached = mapping(1, shared(FaultMode::InThread)).unwrap();
    assert_eq!(why(&unattached), Err(ShareError::NotAttached));
    let (attached, _fake) = managed(1, shared(FaultMode::InThread)).unwrap();
    let gone = why(&attached);
    assert!(matches!(gone, Err(ShareError::Os { .. })), "{gone:?}");
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut &theirs, &[1; 64]).unwrap();
    let nonsense = attached.share(ours, &service).map(drop);
    assert_eq!(nonsense, Err(ShareError::Nonsense));
    // What says the right words, with the wrong descriptor or the wrong address.
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    for base in [0, 1, 1 << 40] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        answer(&theirs, base, &[file.as_fd()]);
        let nonsense = attached.share(ours, &service).map(drop);
        assert_eq!(nonsense, Err(ShareError::Nonsense), "{base:#x}");
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut &theirs, &[1; 64]).unwrap();
    assert_eq!(Client::join(ours).map(drop), Err(ShareError::Nonsense));
}

/// What a client sends beside the one descriptor that it should is not kept.
#[test]
fn a_client_that_sends_several_descriptors_leaves_none_behind() {
    let test = "sharing::a_client_that_sends_several_descriptors_leaves_none_behind";
    // In a process of its own, where nobody else opens any.
    let output = run(test, "several", || {
        let Some((mapping, _fake)) = managed(1, shared(FaultMode::InThread)) else {
            return;
        };
        let service = FaultService::start(1).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let nr_open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        for nr in [1, 2, 3, 12] {
            let before = nr_open();
            let (ours, theirs) = UnixStream::pair().unwrap();
            answer(&theirs, 0, &vec![file.as_fd(); nr]);
            let nonsense = mapping.share(ours, &service).map(drop);
            assert_eq!(nonsense, Err(ShareError::Nonsense), "{nr} descriptors");
            drop(theirs);
            assert_eq!(nr_open(), before, "{nr} descriptors");
        }
    });
    assert_ended_well(&output);
}

/// A signal that the program handles is no reason to give up, however often it comes.
#[test]
fn a_signal_ends_no_wait_for_the_other_process() {
    let test = "sharing::a_signal_ends_no_wait_for_the_other_process";
    const NR_SIGNALS: usize = 1000;
    static NR_HANDLED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn count(_signal: i32) {
        NR_HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    // In a process of its own, whose signals are nobody else's.
    let output = run(test, "signals", || {
        let Some(probed) = mapping(1, shared(FaultMode::Service)) else {
            return;
        };
        drop(probed);
        // SAFETY: zero is a valid value of the action, whose handler only counts.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = count as *const () as usize;
            assert_eq!(
                libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()),
                0
            );
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let joining = std::thread::spawn(|| Client::join(theirs).map(drop));
        for nth in 1..=NR_SIGNALS {
            // SAFETY: the thread is not joined yet, so its name is good.
            unsafe { libc::pthread_kill(joining.as_pthread_t(), libc::SIGUSR1) };
            while NR_HANDLED.load(Ordering::Relaxed) < nth && !joining.is_finished() {
                std::thread::yield_now();
            }
        }
        drop(ours);
        // What it was told: nothing, and that nobody is there.
        assert_eq!(joining.join().unwrap(), Err(ShareError::Nonsense));
    });
    assert_ended_well(&output);
}

/// Says what a client says, with that address and at most twelve descriptors.
fn answer(stream: &UnixStream, base: u64, descriptors: &[BorrowedFd<'_>]) {
    let mut words = [u64::from_be_bytes(*b"pinless\x01").to_le(), base.to_le()];
    let mut part = libc::iovec {
        iov_base: words.as_mut_ptr().cast(),
        iov_len: size_of_val(&words),
    };
    let mut control = [0_u64; 8];
    let len = 4 * descriptors.len() as u32;
    // SAFETY: zero is a valid value of the header; what it points to outlives the call, and the
    // control data has room for so many descriptors (asserted), which the macros place.
    let sent = unsafe {
        let mut message: libc::msghdr = core::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(len) as usize;
        assert!(message.msg_controllen <= size_of_val(&control));
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(len) as usize;
        let place = libc::CMSG_DATA(header).cast::<i32>();
        for (nth, descriptor) in descriptors.iter().enumerate() {
            place.add(nth).write_unaligned(descriptor.as_raw_fd());
        }
        libc::sendmsg(stream.as_raw_fd(), &raw const message, 0)
    };
    assert_eq!(sent, 16);
}
