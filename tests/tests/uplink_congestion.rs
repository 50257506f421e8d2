//! An uplink that is slower than what is sent to it: who else feels it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::Nic;
use tandem_tests::frontend::frames::{mac, numbered, payload, raw};
use tandem_tests::frontend::spec::NetHdr;
use tandem_tests::lab::process::signal;
use tandem_tests::lab::{Need, say, scenario};
use tandem_tests::uplink::Rig;

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);
/// A station on the wire.
const W: [u8; 6] = mac(9);
const PORTS: &str = "[port.a]\nmac = \"52:54:00:00:00:01\"\n[port.b]\nmac = \"52:54:00:00:00:02\"";
const TIME: Duration = Duration::from_secs(2);
/// A turn of the sender, and frames of each kind in it: 4,000 a second to the neighbour, and 8,000 of
/// 1,400 bytes, which are 90 Mbit/s, to the wire.
const TURN: Duration = Duration::from_millis(2);
const TO_NEIGHBOUR: usize = 8;
const TO_WIRE: usize = 16;

/// Sends to the neighbour and to the wire in turn; how many of each kind the neighbour had of how many,
/// after [`TIME`].
fn delivered(a: &mut Nic, b: &mut Nic) -> (u64, u64) {
    let large = (NetHdr::default(), raw(A, W, &payload(1, 1386)));
    let small = (NetHdr::default(), numbered(A, B, 1));
    let turn: Vec<_> = (0..TO_NEIGHBOUR)
        .flat_map(|_| [small.clone(), large.clone(), large.clone()])
        .collect();
    assert_eq!(turn.len(), TO_NEIGHBOUR + TO_WIRE);
    let start = Instant::now();
    let (mut turns, mut came) = (0, 0);
    while start.elapsed() < TIME {
        // A sender that was kept waiting does not make up for it.
        a.send_burst(&turn);
        turns += 1;
        let next = start + TURN * turns;
        while Instant::now() < next {
            came += std::iter::from_fn(|| b.try_recv(0)).count() as u64;
            std::thread::sleep(TURN / 8);
        }
    }
    a.flush();
    came += std::iter::from_fn(|| b.try_recv(0)).count() as u64;
    (came, u64::from(turns) * TO_NEIGHBOUR as u64)
}

/// A VM that sends more to a slow uplink than that takes keeps at least nine tenths of what it sends
/// to its neighbour.
#[test]
fn a_slow_uplink_does_not_slow_the_neighbours() -> Result<()> {
    let name = "uplink_congestion::a_slow_uplink_does_not_slow_the_neighbours";
    scenario(name, &[Need::Root], |lab| {
        let rig = Rig::new(lab, 1, "", PORTS)?;
        let (mut a, mut b) = (rig.nic("a")?, rig.nic("b")?);
        let wire = rig.cables.socket(0)?;
        wire.send(&numbered(W, A, 0))?;
        a.recv();
        let (free, _) = delivered(&mut a, &mut b);
        rig.cables
            .near
            .run("tc qdisc add dev u0 root tbf rate 50mbit burst 32kb limit 1mb")?;
        let before = rig.team()?;
        let (slow, sent) = delivered(&mut a, &mut b);
        let after = rig.team()?;
        let lost = |team: &serde_json::Value| -> u64 {
            let drops = team["to_wire"]["drops"].as_object();
            let drops = drops.into_iter().flatten();
            drops.filter_map(|(_, count)| count.as_u64()).sum()
        };
        let lost = lost(&after) - lost(&before);
        say(&format!(
            "      the neighbour had {free} without, {slow} of {sent} with a slow uplink, which lost {lost}"
        ));
        ensure!(
            lost > 1000,
            "the uplink was not too slow: {lost} frames lost"
        );
        ensure!(slow * 10 >= free * 9, "{slow} frames instead of {free}");
        rig.daemon.stop()
    })
}

/// Frames from the wire wait while the daemon is kept from the CPU.
#[test]
fn frames_wait_for_a_daemon_that_is_kept_from_the_cpu() -> Result<()> {
    let name = "uplink_congestion::frames_wait_for_a_daemon_that_is_kept_from_the_cpu";
    scenario(name, &[Need::Root], |lab| {
        let mut rig = Rig::new(lab, 1, "", PORTS)?;
        let mut a = rig.nic("a")?;
        let wire = rig.cables.socket(0)?;
        let pid = rig.daemon.process().pid();
        signal(pid, "STOP")?;
        let sent = (0..500).try_for_each(|seed| wire.send(&raw(W, A, &payload(seed, 1400))));
        signal(pid, "CONT")?;
        sent?;
        for seed in 0..500 {
            ensure!(
                a.recv().1 == raw(W, A, &payload(seed, 1400)),
                "frame {seed}"
            );
        }
        rig.daemon.stop()
    })
}
