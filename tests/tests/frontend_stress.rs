//! Several VMs at once, each in a thread of its own, while ports come and go:
//! those that stay lose nothing, and every frame is accounted for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::memory::{DirtyLog, RegionSpec};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::Order;
use tandem_tests::frontend::spec::{self, NetHdr};

/// The ports, with addresses known from the start.
const PORTS: &[&str] = &[
    "a,mac=52:54:00:00:00:01",
    "b,mac=52:54:00:00:00:02",
    "c,mac=52:54:00:00:00:03",
    "d,mac=52:54:00:00:00:04",
];

/// How long the disturbance lasts.
const WHILE: Duration = Duration::from_millis(700);

/// Two VMs that play ball in bursts until told to stop; each checks that nothing is lost and nothing
/// comes twice. Gives the number of frames each way.
fn play(mut one: Nic, mut two: Nic, addresses: [u8; 2], stop: &AtomicBool) -> u64 {
    let [first, second] = addresses.map(mac);
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) || next == 0 {
        let burst = |src, dst| -> Vec<_> {
            let frames = (next..next + 32).map(|i| (NetHdr::default(), numbered(src, dst, i)));
            frames.collect()
        };
        one.send_burst(&burst(first, second));
        two.send_burst(&burst(second, first));
        for i in next..next + 32 {
            assert_eq!(number_of(&two.recv().1), i);
            assert_eq!(number_of(&one.recv().1), i);
        }
        next += 32;
    }
    one.flush();
    two.flush();
    next
}

/// Runs `disturb` on the daemon again and again while a and b play, then checks the accounts.
fn disturbed(mut disturb: impl FnMut(&Rig, u64) -> Result<()>) -> Result<()> {
    let rig = Rig::new(PORTS)?;
    let config = Config::with(spec::MRG_RXBUF | spec::EVENT_IDX);
    let (a, b) = (rig.nic("a", &config)?, rig.nic("b", &config)?);
    let stop = AtomicBool::new(false);
    let (result, played) = std::thread::scope(|scope| {
        let game: ScopedJoinHandle<'_, u64> = scope.spawn(|| play(a, b, [1, 2], &stop));
        let end = Instant::now() + WHILE;
        let mut round = 0;
        let mut result = Ok(());
        while result.is_ok() && Instant::now() < end {
            result = disturb(&rig, round);
            round += 1;
        }
        stop.store(true, Ordering::Relaxed);
        (result, game.join().expect("the game"))
    });
    result?;
    let counters = rig.settled()?;
    for port in ["a", "b"] {
        assert_eq!(counters.ports[port].drops(), 0, "{counters:#?}");
        assert_eq!(counters.ports[port].from_vm, played);
    }
    Ok(())
}

/// VMs on c come, are sent to, send themselves, and are killed in the middle.
#[test]
fn vms_come_and_go() -> Result<()> {
    let mut d: Option<Nic> = None;
    disturbed(|rig, round| {
        if d.is_none() {
            d = Some(rig.nic("d", &Config::default())?);
        }
        let Some(d) = &mut d else { unreachable!() };
        let config = Config {
            order: Order::ALL[round as usize % 3],
            transmit: (32, 2048),
            ..Config::with([0, spec::RING_PACKED, spec::MRG_RXBUF][round as usize % 3])
        };
        let mut c = rig.nic("c", &config)?;
        let burst: Vec<_> = (0..30)
            .map(|i| (NetHdr::default(), numbered(mac(4), mac(3), i)))
            .collect();
        d.send_burst(&burst);
        for i in 0..30 {
            c.send_plain(&numbered(mac(3), mac(4), i));
        }
        drop(c);
        rig.wait_disconnected("c")?;
        d.flush();
        while d.try_recv(0).is_some() {}
        Ok(())
    })
}

/// The rings of c are enabled and disabled, stopped and started, while d sends to it.
#[test]
fn rings_stop_and_start() -> Result<()> {
    let mut nics: Option<(Nic, Nic)> = None;
    disturbed(|rig, round| {
        if nics.is_none() {
            let c = rig.nic("c", &Config::with(spec::MRG_RXBUF))?;
            nics = Some((c, rig.nic("d", &Config::default())?));
        }
        let Some((c, d)) = &mut nics else {
            unreachable!()
        };
        let burst: Vec<_> = (0..30)
            .map(|i| (NetHdr::default(), numbered(mac(4), mac(3), i)))
            .collect();
        d.send_burst(&burst);
        if round.is_multiple_of(2) {
            c.session()?.enable(0, false)?;
            c.session()?.enable(0, true)?;
        } else {
            let bases = c.stop()?;
            while c.try_recv(0).is_some() {}
            assert_eq!(bases[0] as u16, c.pairs[0].rx.ring.used_base());
            c.resume(&bases)?;
        }
        d.flush();
        while c.try_recv(0).is_some() {}
        Ok(())
    })
}

/// Memory of c comes and goes, its dirty log changes, while d sends to it.
#[test]
fn memory_and_log_change() -> Result<()> {
    let mut nics: Option<(Nic, Nic)> = None;
    let mut log = DirtyLog::new(1 << 33)?;
    disturbed(|rig, round| {
        if nics.is_none() {
            let config = Config {
                regions: vec![
                    RegionSpec::new(0, 64 << 20),
                    RegionSpec::new(1 << 32, 1 << 20),
                ],
                buffer_region: Some(0),
                ..Config::default()
            };
            let mut c = rig.nic("c", &config)?;
            c.session()?.set_log(&log)?;
            let (setups, features) = (c.setups(&[0, 0]), c.features);
            c.session()?.start_logging(features, &setups)?;
            nics = Some((c, rig.nic("d", &Config::default())?));
        }
        let Some((c, d)) = &mut nics else {
            unreachable!()
        };
        let burst: Vec<_> = (0..30)
            .map(|i| (NetHdr::default(), numbered(mac(4), mac(3), 100 * round + i)))
            .collect();
        d.send_burst(&burst);
        let ram = c.ram.clone();
        c.session()?.remove_region(&ram, 1)?;
        c.session()?.add_region(&ram, 1)?;
        let next = DirtyLog::new(1 << 33)?;
        c.session()?.set_log(&next)?;
        let marked = log.dirty_pages();
        for i in 0..30 {
            assert_eq!(number_of(&c.recv().1), 100 * round + i, "none is lost");
        }
        assert_eq!(log.dirty_pages(), marked, "the old log was written");
        log = next;
        Ok(())
    })
}

/// Three VMs send to one as fast as they can: what does not fit is dropped and counted, what
/// arrives is in order for each sender.
#[test]
fn three_to_one() -> Result<()> {
    let rig = Rig::new(PORTS)?;
    let config = Config::with(spec::MRG_RXBUF | spec::EVENT_IDX);
    let mut a = rig.nic("a", &config)?;
    let mut senders = Vec::new();
    for (port, n) in [("b", 2), ("c", 3), ("d", 4)] {
        senders.push((rig.nic(port, &config)?, n));
    }
    let running = AtomicBool::new(true);
    let (sent, mut got) = std::thread::scope(|scope| {
        let threads: Vec<_> = senders
            .into_iter()
            .map(|(mut nic, n)| {
                scope.spawn(move || {
                    for i in 0..300 {
                        let burst: Vec<_> = (0..32)
                            .map(|k| (NetHdr::default(), numbered(mac(n), mac(1), 32 * i + k)))
                            .collect();
                        nic.send_burst(&burst);
                    }
                    nic.flush();
                    (nic, 300 * 32u64)
                })
            })
            .collect();
        let receiver = scope.spawn(|| {
            let mut last = [None; 8];
            let mut got = 0u64;
            let mut take = |a: &mut Nic| {
                while let Some((_, frame)) = a.try_recv(0) {
                    let sender = usize::from(frame[11]);
                    let number = Some(number_of(&frame));
                    assert!(number > last[sender], "{number:?} after {:?}", last[sender]);
                    last[sender] = number;
                    got += 1;
                }
            };
            while running.load(Ordering::Relaxed) {
                take(&mut a);
                let turn = Instant::now() + Duration::from_millis(1);
                a.pairs[0].rx.wait_used_until(turn);
            }
            take(&mut a);
            (a, got)
        });
        let sent: Vec<_> = threads
            .into_iter()
            .map(|t| t.join().expect("a sender"))
            .collect();
        running.store(false, Ordering::Relaxed);
        (sent, receiver.join().expect("the receiver"))
    });
    let counters = rig.settled()?;
    while got.0.try_recv(0).is_some() {
        got.1 += 1;
    }
    let total: u64 = sent.iter().map(|(_, n)| n).sum();
    let port = &counters.ports["a"];
    assert_eq!(port.to_vm, got.1, "delivered is what was received");
    assert_eq!(port.to_vm + port.drops(), total, "{counters:#?}");
    assert!(port.to_vm_drops.keys().all(|reason| reason == "ring_full"));
    Ok(())
}
