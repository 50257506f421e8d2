//! Members of a team that fail and come back while frames flow, counted frame by frame.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::{Config, Layout, Nic};
use tandem_tests::frontend::frames::{mac, numbered, payload, raw};
use tandem_tests::frontend::spec::NetHdr;
use tandem_tests::lab::{Lab, Need, long, say, scenario};
use tandem_tests::uplink::rig::send_until;
use tandem_tests::uplink::socket::Heard;
use tandem_tests::uplink::{Arrival, Cables, Ears, Flows, Outcome, Rig};

const A: [u8; 6] = mac(1);
const PORTS: &str = "[port.a]\nmac = \"52:54:00:00:00:01\"\n";
const FLOWS: u16 = 100;
/// Frames a second.
const RATE: u32 = 10_000;
/// What a failover may cost the flows of the member that failed.
const LIMIT: Duration = Duration::from_millis(20);
/// Frames flow for so long before and after all that happens.
const CALM: Duration = Duration::from_millis(300);

const MODES: [&str; 2] = ["switch_independent", "static"];
const DISTRIBUTIONS: [&str; 5] = [
    "transport_ports",
    "ip_addresses",
    "mac_addresses",
    "port",
    "dynamic",
];

fn team(mode: &str, distribution: &str) -> String {
    format!("mode = \"{mode}\"\ndistribution = \"{distribution}\"")
}

/// A team of two with a VM on port `a`, to which all stations are known.
fn start(lab: &Lab, team: &str) -> Result<(Rig, Nic)> {
    let rig = Rig::new(lab, 2, team, PORTS)?;
    let mut a = rig.nic("a")?;
    rig.learn(&rig.cables.socket(0)?, &mut a, A, FLOWS)?;
    Ok((rig, a))
}

/// Sends a frame of each flow; the member each came by.
fn homes(rig: &Rig, a: &mut Nic) -> Result<Vec<usize>> {
    let mut sockets = [rig.cables.socket(0)?, rig.cables.socket(1)?];
    let mut flows = Flows::from_one(A, FLOWS, RATE);
    flows.one_each().iter().for_each(|f| a.send_plain(f));
    a.flush();
    let mut arrivals = Vec::new();
    let end = Instant::now() + Duration::from_secs(5);
    while arrivals.len() < FLOWS.into() && Instant::now() < end {
        for (by, socket) in sockets.iter_mut().enumerate() {
            let heard = socket.recv(Duration::from_millis(5))?;
            arrivals.extend(heard.and_then(|heard| Arrival::of(&heard, by)));
        }
    }
    let outcome = Outcome::of(&flows, arrivals);
    ensure!(outcome.lost() == 0, "{} frames lost", outcome.lost());
    ensure!(outcome.duplicates() == 0, "frames came twice");
    Ok(outcome.0.iter().filter_map(|fate| fate.home()).collect())
}

/// Frames of all flows from the VM while `script` runs, and what became of them.
fn under_traffic<T: Send>(
    rig: &Rig,
    a: &mut Nic,
    script: impl FnOnce(&mut Ears) -> Result<T> + Send,
) -> Result<(T, Outcome)> {
    let mut ears = Ears::new([rig.cables.socket(0)?, rig.cables.socket(1)?]);
    let mut flows = Flows::from_one(A, FLOWS, RATE);
    let outcome = std::thread::scope(|scope| {
        let script = scope.spawn(|| {
            std::thread::sleep(CALM);
            let outcome = script(&mut ears);
            std::thread::sleep(CALM);
            outcome
        });
        send_until(a, &mut flows, || script.is_finished());
        script.join()
    });
    let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let arrivals = ears.stop()?;
    ensure!(flows.sent() > 0, "nothing was sent");
    Ok((outcome, Outcome::of(&flows, arrivals)))
}

/// Cuts a member's cable, and mends it once that was noticed; when each was done.
fn cut_and_mend(rig: &Rig, member: usize) -> Result<(Instant, Instant)> {
    let cut = Instant::now();
    rig.cables.cut(member)?;
    rig.wait_state(member, "down")?;
    std::thread::sleep(CALM);
    let mend = Instant::now();
    rig.cables.mend(member)?;
    rig.wait_member(member, "comes back", |m| m["state"] != "down")?;
    Ok((cut, mend))
}

/// Pieces shorter than the header in front of a frame, as a guest's stack makes them of its data.
#[test]
fn frames_in_short_pieces_reach_the_wire() -> Result<()> {
    let name = "uplink_failover::frames_in_short_pieces_reach_the_wire";
    scenario(name, &[Need::Root], |lab| {
        let rig = Rig::new(lab, 1, "", PORTS)?;
        let mut socket = rig.cables.socket(0)?;
        for size in [5, 11, 512] {
            let config = Config {
                layout: Layout::Pieces(size),
                ..Config::default()
            };
            let mut a = Nic::start(&rig.daemon.socket("a"), &config)?;
            // More than is copied into a head, and a last piece of 5 bytes.
            let frame = raw(A, mac(2), &payload(1, 512 + 5 - NetHdr::LEN - 14));
            a.send_plain(&frame);
            socket.wait("the frame", |heard| *heard == frame)?;
        }
        Ok(())
    })
}

/// Every mode and distribution carries all flows both ways, and spreads them.
#[test]
fn every_mode_and_distribution_reaches_the_wire() -> Result<()> {
    let name = "uplink_failover::every_mode_and_distribution_reaches_the_wire";
    scenario(name, &[Need::Root], |lab| {
        let mut rig = Rig::new(lab, 2, "", PORTS)?;
        for mode in MODES {
            for distribution in DISTRIBUTIONS {
                rig.daemon.cli(&[
                    "team",
                    "set",
                    "team0",
                    "--mode",
                    mode,
                    "--distribution",
                    distribution,
                ])?;
                for i in 0..2 {
                    rig.wait_state(i, "active")?;
                }
                reaches(&mut rig, mode, distribution)?;
            }
        }
        rig.daemon.stop()
    })
}

fn reaches(rig: &mut Rig, mode: &str, distribution: &str) -> Result<()> {
    let mut a = rig.nic("a")?;
    let sockets = [rig.cables.socket(0)?, rig.cables.socket(1)?];
    for socket in &sockets {
        rig.learn(socket, &mut a, A, FLOWS)?;
    }
    let homes = homes(rig, &mut a)?;
    let first = homes.iter().filter(|home| **home == 0).count();
    say(&format!(
        "      {mode} {distribution}: {first} of {FLOWS} flows by u0"
    ));
    let fair = match distribution {
        "port" => [0, 100].contains(&first),
        // By what each member has had to do so far.
        "dynamic" => (1..=99).contains(&first),
        _ => (25..=75).contains(&first),
    };
    ensure!(
        fair,
        "{mode} {distribution}: {first} of {FLOWS} flows by u0"
    );
    drop(a);
    rig.daemon
        .wait_port("a", "loses its VMM", |port| !port.is_up())
}

fn say_lost(what: &str, outcome: &Outcome) {
    let (lost, time) = (outcome.lost(), outcome.loss_time());
    let time = time.as_secs_f64() * 1e3;
    say(&format!("      {what}: {lost} frames lost in {time:.1} ms"));
}

/// `mine` are the flows that may have lost frames, for a moment after `cut`.
fn judge(outcome: &Outcome, mine: &Outcome, cut: Instant, mend: Instant) -> Result<()> {
    let (lost, allowed) = (outcome.lost(), mine.lost_between(cut, mend));
    let (twice, late) = (outcome.duplicates(), outcome.reordered());
    ensure!(twice == 0, "{twice} frames came twice");
    ensure!(late == 0, "{late} frames came late");
    ensure!(
        lost == allowed,
        "{lost} frames lost, {allowed} of them by the member that failed while it had"
    );
    let time = mine.loss_time();
    ensure!(time <= LIMIT, "frames were lost for {time:?}");
    Ok(())
}

/// Only the flows of the member that failed lose frames, for a moment; nobody's come twice or in
/// another order, and when the member is back none is lost.
fn fails_over(lab: &Lab, mode: &str, distribution: &str) -> Result<()> {
    let (rig, mut a) = start(lab, &team(mode, distribution))?;
    fails_over_at(rig, &mut a, mode, distribution)
}

fn fails_over_at(rig: Rig, a: &mut Nic, mode: &str, distribution: &str) -> Result<()> {
    let failing = homes(&rig, a)?[0];
    let ((cut, mend), outcome) = under_traffic(&rig, a, |_| cut_and_mend(&rig, failing))?;
    let (mine, others) = (outcome.at_home(failing), outcome.at_home(1 - failing));
    say_lost(&format!("{mode} {distribution}"), &outcome);
    judge(&outcome, &mine, cut, mend)?;
    if distribution != "dynamic" {
        for fate in &mine.0 {
            let last = fate.arrivals.last().map(|arrival| arrival.by);
            ensure!(last == Some(failing), "a flow did not come home");
            ensure!(fate.members().len() == 2, "a flow did not move");
        }
        for fate in &others.0 {
            ensure!(fate.members().len() == 1, "a flow moved with no need");
        }
    }
    let member = rig.member(failing)?;
    ensure!(member["failovers"] == 1, "{member:#}");
    ensure!(!member["last_failover"]["reason"].is_null(), "{member:#}");
    rig.daemon.stop()
}

fn fails_over_as(name: &str, mode: &str, distribution: &str) -> Result<()> {
    scenario(name, &[Need::Root], |lab| {
        fails_over(lab, mode, distribution)
    })
}

#[test]
fn static_team_fails_over() -> Result<()> {
    let name = "uplink_failover::static_team_fails_over";
    fails_over_as(name, "static", "transport_ports")
}

#[test]
fn switch_independent_team_fails_over() -> Result<()> {
    let name = "uplink_failover::switch_independent_team_fails_over";
    fails_over_as(name, "switch_independent", "transport_ports")
}

#[test]
fn ports_fail_over() -> Result<()> {
    let name = "uplink_failover::ports_fail_over";
    fails_over_as(name, "switch_independent", "port")
}

#[test]
fn dynamic_team_fails_over() -> Result<()> {
    let name = "uplink_failover::dynamic_team_fails_over";
    fails_over_as(name, "switch_independent", "dynamic")
}

/// The standby member carries nothing, all while the other cannot, and nothing again.
#[test]
fn standby_takes_over_and_gives_back() -> Result<()> {
    let name = "uplink_failover::standby_takes_over_and_gives_back";
    scenario(name, &[Need::Root], |lab| {
        let (rig, mut a) = start(lab, "standby = \"u1\"")?;
        rig.wait_state(1, "standby")?;
        let ((cut, mend), outcome) = under_traffic(&rig, &mut a, |_| {
            let moments = cut_and_mend(&rig, 0)?;
            rig.wait_state(1, "standby")?;
            Ok(moments)
        })?;
        say_lost("standby", &outcome);
        ensure!(
            outcome.at_home(0).0.len() == usize::from(FLOWS),
            "not all by u0"
        );
        judge(&outcome, &outcome.at_home(0), cut, mend)?;
        for fate in &outcome.0 {
            let by: Vec<usize> = fate.arrivals.iter().map(|arrival| arrival.by).collect();
            let moves = by.windows(2).filter(|two| two[0] != two[1]).count();
            ensure!(
                moves == 2 && by.last() == Some(&0),
                "a flow moved {moves} times"
            );
        }
        rig.daemon.stop()
    })
}

/// A device that is removed, and made again under its name, is a member again by itself.
#[test]
fn device_is_removed_and_made_again() -> Result<()> {
    let name = "uplink_failover::device_is_removed_and_made_again";
    scenario(name, &[Need::Root], |lab| {
        let (rig, mut a) = start(lab, &team("static", "transport_ports"))?;
        let cables = &rig.cables;
        let ((cut, mend), outcome) = under_traffic(&rig, &mut a, |ears| {
            let cut = Instant::now();
            cables.remove(0)?;
            rig.wait_member(0, "is gone", |member| {
                let reason = member["reason"].as_str().unwrap_or_default();
                member["state"] == "down" && reason.contains("there is no device u0")
            })?;
            std::thread::sleep(CALM);
            cables.lay(0)?;
            ears.add(0, cables.socket(0)?);
            let mend = Instant::now();
            cables.mend(0)?;
            rig.wait_state(0, "active")?;
            Ok((cut, mend))
        })?;
        say_lost("device removed", &outcome);
        judge(&outcome, &outcome.at_home(0), cut, mend)?;
        let last = outcome.at_home(0).0[0]
            .arrivals
            .last()
            .map(|arrival| arrival.by);
        ensure!(last == Some(0), "a flow did not come home");
        rig.daemon.stop()
    })
}

/// Frames from the wire by one member do not notice that another fails and comes back.
#[test]
fn frames_from_the_wire_go_on() -> Result<()> {
    let name = "uplink_failover::frames_from_the_wire_go_on";
    scenario(name, &[Need::Root], |lab| {
        for mode in MODES {
            let (rig, mut a) = start(lab, &team(mode, "transport_ports"))?;
            let wire = rig.cables.socket(1)?;
            let mut flows = Flows::to_one(A, FLOWS, 2000);
            let done = AtomicBool::new(false);
            let heard = std::thread::scope(|scope| {
                let script = scope.spawn(|| -> Result<()> {
                    let outcome = cut_and_mend(&rig, 0);
                    done.store(true, Ordering::Release);
                    outcome.map(drop)
                });
                let sender = scope.spawn(|| -> Result<()> {
                    flows.begin();
                    while !done.load(Ordering::Acquire) {
                        flows.due().iter().try_for_each(|frame| wire.send(frame))?;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Ok(())
                });
                let mut own = Flows::from_one(A, FLOWS, 100);
                let both = || script.is_finished() && sender.is_finished();
                let heard = send_until(&mut a, &mut own, both);
                script
                    .join()
                    .and(sender.join())
                    .map(|end| end.map(|()| heard))
            });
            let mut heard = heard.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            // Behind all others.
            wire.send(&numbered(mac(9), A, u64::MAX))?;
            loop {
                let frame = a.recv().1;
                if frame[6..12] == mac(9) {
                    break;
                }
                heard.push(frame);
            }
            let arrivals = (heard.into_iter().zip(0..)).filter_map(|(frame, n)| {
                let at = Duration::from_nanos(n);
                let outgoing = false;
                Arrival::of(
                    &Heard {
                        at,
                        outgoing,
                        frame,
                    },
                    1,
                )
            });
            let outcome = Outcome::of(&flows, arrivals.collect());
            let (lost, duplicates) = (outcome.lost(), outcome.duplicates());
            let late = outcome.reordered();
            ensure!(
                (lost, duplicates, late) == (0, 0, 0),
                "{mode}: of {} frames {lost} lost, {duplicates} twice, {late} late",
                flows.sent()
            );
            rig.daemon.stop()?;
        }
        Ok(())
    })
}

/// AF_XDP, and members of two drivers.
#[test]
fn other_drivers_fail_over() -> Result<()> {
    let name = "uplink_failover::other_drivers_fail_over";
    scenario(name, &[Need::Root], |lab| {
        for drivers in [["af_xdp", "af_xdp"], ["af_packet", "af_xdp"]] {
            let member = |i: usize| format!("u{i}:{}", drivers[i]);
            let members = [member(0), member(1)];
            let team = team("static", "transport_ports");
            let rig = Rig::with_members(lab, Cables::new(2)?, &members, &team, PORTS)?;
            for (i, driver) in drivers.into_iter().enumerate() {
                let shown = rig.wait_state(i, "active")?;
                ensure!(shown["driver"] == driver, "{shown:#}");
            }
            let mut a = rig.nic("a")?;
            rig.learn(&rig.cables.socket(0)?, &mut a, A, FLOWS)?;
            fails_over_at(rig, &mut a, "static", &drivers.join(" and "))?;
        }
        Ok(())
    })
}

#[test]
fn every_mode_and_distribution_fails_over() -> Result<()> {
    let name = "uplink_failover::every_mode_and_distribution_fails_over";
    scenario(name, &[Need::Root], |lab| {
        if !long() {
            tandem_tests::lab::skip_part(name, "some do by day; ci/test --long has them all");
            return Ok(());
        }
        MODES.into_iter().try_for_each(|mode| {
            DISTRIBUTIONS
                .into_iter()
                .try_for_each(|distribution| fails_over(lab, mode, distribution))
        })
    })
}
