//! The dirty log: every page the back-end writes is marked, whichever thread
//! writes it. Which pages those are is found by comparing memory before and
//! after; the driver keeps still in between.

use std::collections::BTreeSet;

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Layout, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered, payload, raw};
use tandem_tests::frontend::memory::{DirtyLog, LOG_PAGE, RegionSpec};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::Order;
use tandem_tests::frontend::spec::{self, NetHdr};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);

fn config(features: u64) -> Config {
    Config {
        regions: vec![
            RegionSpec::new(0, 4 << 20),
            RegionSpec::new(1 << 24, 16 << 20),
        ],
        ..Config::with(features)
    }
}

/// A copy of all guest memory.
struct Before(Vec<(u64, Vec<u8>)>);

impl Before {
    fn of(nic: &Nic) -> Self {
        let of = |i: usize| (nic.ram.region_info(i).guest_phys_addr, nic.ram.snapshot(i));
        Before((0..nic.ram.regions()).map(of).collect())
    }

    /// Pages that differ now, by address.
    fn changed(&self, nic: &Nic) -> BTreeSet<u64> {
        let now = Before::of(nic);
        let mut pages = BTreeSet::new();
        for ((gpa, old), (_, new)) in self.0.iter().zip(&now.0) {
            let size = LOG_PAGE as usize;
            for (i, (old, new)) in old.chunks(size).zip(new.chunks(size)).enumerate() {
                if old != new {
                    pages.insert(gpa + i as u64 * LOG_PAGE);
                }
            }
        }
        pages
    }
}

/// Fails with the addresses of the pages that were written and not marked.
fn assert_marked(log: &DirtyLog, pages: &BTreeSet<u64>) {
    let missing: Vec<_> = pages.iter().filter(|page| !log.is_dirty(**page)).collect();
    assert!(
        missing.is_empty(),
        "written but not marked: {missing:x?} of {pages:x?}"
    );
}

/// Starts logging as QEMU does: the log first, then features, then addresses with the flag.
fn start_logging(nic: &mut Nic, log: &DirtyLog) -> Result<()> {
    nic.session()?.set_log(log)?;
    let setups = nic.setups(&[0, 0]);
    let features = nic.features;
    nic.session()?.start_logging(features, &setups)?;
    nic.session()?.sync()
}

/// Ends it as QEMU does.
fn stop_logging(nic: &mut Nic) -> Result<()> {
    let setups = nic.setups(&[0, 0]);
    let features = nic.features;
    nic.session()?.stop_logging(features, &setups)?;
    nic.session()?.sync()
}

fn ping(a: &mut Nic, b: &mut Nic, number: u64) {
    a.send_plain(&numbered(A, B, number));
    assert_eq!(number_of(&b.recv().1), number);
    b.send_plain(&numbered(B, A, number));
    assert_eq!(number_of(&a.recv().1), number);
}

/// The life of a migration that is given up: logging on, traffic in both directions, off again.
fn migration(features: u64, layout: Layout) -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut a = rig.nic("a", &Config::with(spec::MRG_RXBUF))?;
    let config = Config {
        layout,
        ..config(features)
    };
    let mut b = rig.nic("b", &config)?;
    ping(&mut a, &mut b, 1);
    b.flush();
    let log = DirtyLog::new(b.ram.end())?;
    start_logging(&mut b, &log)?;

    // Receiving: the thread of a writes into b's memory.
    let before = Before::of(&b);
    for i in 0..20 {
        a.send_plain(&raw(A, B, &payload(i, 100 + 70 * i as usize)));
    }
    a.flush();
    rig.settled()?;
    let received = before.changed(&b);
    assert!(
        received.len() >= 8,
        "20 frames change more than {received:x?}"
    );
    assert_marked(&log, &received);
    for _ in 0..20 {
        b.recv();
    }

    // Sending: only the used ring is written, by the thread of b.
    let log = DirtyLog::new(b.ram.end())?;
    b.session()?.set_log(&log)?;
    for i in 0..20 {
        b.pairs[0]
            .tx
            .queue_frame(NetHdr::default(), &numbered(B, A, i), layout);
    }
    let before = Before::of(&b);
    b.pairs[0].tx.ring_bell();
    for i in 0..20 {
        assert_eq!(number_of(&a.recv().1), i);
    }
    rig.settled()?;
    let changed = before.changed(&b);
    let ring = b.pairs[0].tx.ring.parts();
    // The guest's own write, of the available index, the VMM knows of.
    let own = if features & spec::RING_PACKED == 0 {
        ring.avail
    } else {
        ring.desc
    } & !(LOG_PAGE - 1);
    let mut sent = changed.clone();
    if !same_page_has_used(features, &ring, own) {
        sent.remove(&own);
    }
    assert!(!sent.is_empty());
    assert_marked(&log, &sent);
    assert!(
        log.dirty_pages() <= 8,
        "only what was written: {}",
        log.dirty_pages()
    );
    b.flush();

    // Off: nothing is marked any more.
    stop_logging(&mut b)?;
    let marked = log.dirty_pages();
    for i in 0..20 {
        ping(&mut a, &mut b, i);
    }
    assert_eq!(log.dirty_pages(), marked, "marked after logging ended");
    Ok(())
}

/// Whether the page the guest wrote itself is one the device must mark all the same.
fn same_page_has_used(
    features: u64,
    ring: &tandem_tests::frontend::driver::Parts,
    page: u64,
) -> bool {
    features & spec::RING_PACKED != 0 || ring.used & !(LOG_PAGE - 1) == page
}

#[test]
fn split() -> Result<()> {
    migration(0, Layout::Together)
}

#[test]
fn split_mergeable_event_idx() -> Result<()> {
    migration(spec::MRG_RXBUF | spec::EVENT_IDX, Layout::HeaderApart)
}

#[test]
fn split_indirect() -> Result<()> {
    migration(spec::INDIRECT, Layout::Pieces(33))
}

#[test]
fn packed() -> Result<()> {
    migration(spec::RING_PACKED, Layout::Together)
}

#[test]
fn packed_mergeable_event_idx() -> Result<()> {
    migration(
        spec::RING_PACKED | spec::MRG_RXBUF | spec::EVENT_IDX,
        Layout::HeaderApart,
    )
}

/// The control: without LOG_ALL nothing is marked although memory changes, so the marks above come
/// from the feature, and the comparison finds what was not marked.
#[test]
fn nothing_is_marked_without_logging() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut a = rig.nic("a", &Config::default())?;
    let mut b = rig.nic("b", &config(0))?;
    ping(&mut a, &mut b, 1);
    let log = DirtyLog::new(b.ram.end())?;
    b.session()?.set_log(&log)?;
    let before = Before::of(&b);
    for i in 0..20 {
        a.send_plain(&numbered(A, B, i));
    }
    a.flush();
    rig.settled()?;
    let changed = before.changed(&b);
    assert!(changed.iter().filter(|page| !log.is_dirty(**page)).count() >= 2);
    assert_eq!(log.dirty_pages(), 0);
    Ok(())
}

/// A new log on a live ring: once it is acknowledged, the old one is never written again.
#[test]
fn log_is_exchanged_under_traffic() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut a = rig.nic("a", &Config::default())?;
    let mut b = rig.nic("b", &config(0))?;
    ping(&mut a, &mut b, 1);
    let mut log = DirtyLog::new(b.ram.end())?;
    start_logging(&mut b, &log)?;
    for round in 0..50 {
        let burst: Vec<_> = (0..30)
            .map(|i| (NetHdr::default(), numbered(A, B, i)))
            .collect();
        a.send_burst(&burst);
        let next = DirtyLog::new(b.ram.end())?;
        b.session()?.set_log(&next)?;
        let marked = log.dirty_pages();
        for i in 0..30 {
            assert_eq!(number_of(&b.recv().1), i, "round {round}");
        }
        assert_eq!(
            log.dirty_pages(),
            marked,
            "the old log was written after the answer"
        );
        log = next;
    }
    Ok(())
}

/// Memory that is plugged in while writes are logged: the VMM has a longer log for it first.
#[test]
fn memory_is_plugged_in_while_logging() -> Result<()> {
    const SECOND: u64 = 1 << 32;
    for (round, features) in [0, spec::RING_PACKED].into_iter().enumerate() {
        let rig = Rig::new(&["a", "b"])?;
        let mut a = rig.nic("a", &Config::default())?;
        let config = Config {
            regions: vec![
                RegionSpec::new(0, 64 << 20),
                RegionSpec::new(SECOND, 16 << 20),
            ],
            buffer_region: Some(1),
            ..Config::with(features)
        };
        let mut b = rig.nic("b", &config)?;
        let ram = b.ram.clone();
        b.session()?.remove_region(&ram, 1)?;
        let log = DirtyLog::new(64 << 20)?;
        start_logging(&mut b, &log)?;

        let log = DirtyLog::new(ram.end())?;
        b.session()?.set_log(&log)?;
        b.session()?.add_region(&ram, 1)?;
        b.session()?.sync()?;
        let before = Before::of(&b);
        for i in 0..20 {
            a.send_plain(&numbered(A, B, i));
        }
        a.flush();
        rig.settled()?;
        let changed = before.changed(&b);
        let (old, new): (Vec<u64>, Vec<u64>) = changed.iter().partition(|page| **page < SECOND);
        assert!(!old.is_empty() && new.len() >= 8, "{changed:x?}, {round}");
        assert_marked(&log, &changed);
    }
    Ok(())
}

/// A log too short for the memory is refused, or marks only what it has room for; nothing crashes.
#[test]
fn short_log() -> Result<()> {
    let rig = Rig::new(&["a", "b", "c"])?;
    let mut a = rig.nic("a", &Config::default())?;
    let mut c = rig.nic("c", &Config::default())?;
    let mut b = rig.nic("b", &config(0))?;
    ping(&mut a, &mut b, 1);
    // One page of log: 128 MiB; the memory goes on beyond when moved up.
    let high = Config {
        regions: vec![RegionSpec::new(1 << 36, 64 << 20)],
        ..Config::default()
    };
    drop(b);
    rig.wait_disconnected("b")?;
    let mut b = rig.nic("b", &high)?;
    let log = DirtyLog::new(4096)?;
    let accepted = start_logging(&mut b, &log);
    if accepted.is_ok() {
        for i in 0..20 {
            a.send_plain(&numbered(A, B, i));
        }
        a.flush();
    }
    assert_eq!(log.dirty_pages(), 0);
    c.send_plain(&numbered(mac(3), A, 2));
    assert_eq!(number_of(&a.recv().1), 2);
    Ok(())
}

/// cloud-hypervisor's way: rings paused first, a log for each round, bases asked at the end.
#[test]
fn cloud_hypervisor_migration() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut a = rig.nic("a", &Config::default())?;
    let config = Config {
        order: Order::CloudHypervisor,
        ..config(spec::IN_ORDER)
    };
    let mut b = rig.nic("b", &config)?;
    ping(&mut a, &mut b, 1);
    let log = DirtyLog::new(b.ram.end())?;
    start_logging(&mut b, &log)?;
    let before = Before::of(&b);
    for i in 0..20 {
        a.send_plain(&numbered(A, B, i));
    }
    a.flush();
    rig.settled()?;
    assert_marked(&log, &before.changed(&b));
    let last = DirtyLog::new(b.ram.end())?;
    b.session()?.enable(0, false)?;
    b.session()?.enable(1, false)?;
    b.session()?.set_log(&last)?;
    // Paused: frames for it are dropped or wait, memory stands still.
    let before = Before::of(&b);
    a.send_plain(&numbered(A, B, 99));
    a.flush();
    let bases = b.stop()?;
    rig.settled()?;
    assert_marked(&last, &before.changed(&b));
    for i in 0..20 {
        assert_eq!(number_of(&b.recv().1), i);
    }
    assert_eq!(bases[0] as u16, b.pairs[0].rx.ring.used_base());
    Ok(())
}
