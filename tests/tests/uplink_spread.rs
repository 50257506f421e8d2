//! How flows are spread over members: evenly, each in order, and no more moved than must be.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::Nic;
use tandem_tests::frontend::frames::{mac, payload};
use tandem_tests::frontend::spec::NetHdr;
use tandem_tests::lab::{Need, long, say, scenario};
use tandem_tests::uplink::{Ears, Flows, Outcome, Rig};

const A: [u8; 6] = mac(1);
const PORTS: &str = "[port.a]\nmac = \"52:54:00:00:00:01\"\n";

fn send(a: &mut Nic, frames: Vec<Vec<u8>>) {
    let frames: Vec<_> = frames.into_iter().map(|f| (NetHdr::default(), f)).collect();
    frames.chunks(32).for_each(|burst| a.send_burst(burst));
    a.flush();
}

/// The member that each flow leaves by: of `count` flows, a frame each.
fn homes(rig: &Rig, a: &mut Nic, members: &[usize], count: u16) -> Result<Vec<usize>> {
    let mut ears = Ears::default();
    for &i in members {
        ears.add(i, rig.cables.socket(i)?);
    }
    let mut flows = Flows::from_one(A, count, 1);
    send(a, flows.one_each());
    let outcome = Outcome::of(&flows, ears.stop()?);
    ensure!(outcome.lost() == 0, "{} frames lost", outcome.lost());
    ensure!(outcome.duplicates() == 0, "frames came twice");
    Ok(outcome.0.iter().filter_map(|fate| fate.home()).collect())
}

/// Of a thousand flows by transport ports no member of four has more than 1.3 times its share, and those
/// of the members that work stay where they are when another fails, and when it is back.
#[test]
fn a_thousand_flows_over_four_members() -> Result<()> {
    let name = "uplink_spread::a_thousand_flows_over_four_members";
    scenario(name, &[Need::Root], |lab| {
        let rig = Rig::new(lab, 4, "mode = \"static\"", PORTS)?;
        let mut a = rig.nic("a")?;
        let before = homes(&rig, &mut a, &[0, 1, 2, 3], 1000)?;
        let share = |homes: &[usize], i| homes.iter().filter(|home| **home == i).count();
        let shares: Vec<_> = (0..4).map(|i| share(&before, i)).collect();
        say(&format!("      {shares:?} flows by the members"));
        ensure!(shares.iter().all(|n| *n <= 325), "{shares:?}");
        rig.cables.cut(2)?;
        rig.wait_state(2, "down")?;
        let without = homes(&rig, &mut a, &[0, 1, 3], 1000)?;
        for (before, now) in before.iter().zip(&without) {
            ensure!(*before == 2 || before == now, "from {before} to {now}");
        }
        let gained: Vec<_> = (0..4).map(|i| share(&without, i)).collect();
        say(&format!("      {gained:?} without one"));
        ensure!(gained.iter().all(|n| *n <= 433), "{gained:?}");
        rig.cables.mend(2)?;
        rig.wait_state(2, "active")?;
        let back = homes(&rig, &mut a, &[0, 1, 2, 3], 1000)?;
        ensure!(back == before, "flows did not come home");
        rig.daemon.stop()
    })
}

/// Flows move from a busy member to one that is less, and no frame overtakes another of its flow.
#[test]
fn dynamic_distribution_keeps_the_order() -> Result<()> {
    let name = "uplink_spread::dynamic_distribution_keeps_the_order";
    scenario(name, &[Need::Root], |lab| {
        let team = "mode = \"static\"\ndistribution = \"dynamic\"";
        let rig = Rig::new(lab, 2, team, PORTS)?;
        let mut a = rig.nic("a")?;
        let rounds = if long() { 200 } else { 1 };
        for round in 0..rounds {
            keeps_the_order(&rig, &mut a, round)?;
        }
        let moved = rig.team()?["moved"].as_u64().unwrap_or(0);
        say(&format!("      {moved} moves between members"));
        ensure!(moved >= 20, "only {moved} moves: nothing was tried");
        rig.daemon.stop()
    })
}

/// Some 50,000 frames of flows that come and go in bursts.
fn keeps_the_order(rig: &Rig, a: &mut Nic, seed: u32) -> Result<()> {
    const FLOWS: u16 = 32;
    /// Longer than a flow must be quiet before it may move.
    const ROUND: Duration = Duration::from_millis(25);
    let ears = Ears::new([rig.cables.socket(0)?, rig.cables.socket(1)?]);
    let mut flows = Flows::from_one(A, FLOWS, 1);
    for round in 0..100 {
        let begun = Instant::now();
        // Which flows have something to say differs from one tenth of a second to the next.
        let speaks = payload(seed * 1000 + round / 4, FLOWS.into());
        for flow in (0..FLOWS.into()).filter(|flow| speaks[*flow] & 1 != 0) {
            let burst = flows.burst(flow, 32);
            send(a, burst);
        }
        std::thread::sleep(ROUND.saturating_sub(begun.elapsed()));
    }
    let outcome = Outcome::of(&flows, ears.stop()?);
    let (lost, twice, late) = (outcome.lost(), outcome.duplicates(), outcome.reordered());
    ensure!(
        (lost, twice, late) == (0, 0, 0),
        "of {} frames {lost} lost, {twice} twice, {late} late",
        flows.sent()
    );
    Ok(())
}
