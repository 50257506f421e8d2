//! A path that is dead behind a link that is up.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use tandem_tests::frontend::frames::mac;
use tandem_tests::frontend::spec::NetHdr;
use tandem_tests::lab::{Need, Ovs, say, scenario};
use tandem_tests::uplink::rig::send_until;
use tandem_tests::uplink::{Cables, Ears, Flows, Outcome, Rig, Socket};

const A: [u8; 6] = mac(1);
const PORTS: &str = "[port.a]\nmac = \"52:54:00:00:00:01\"\n";
/// A station on the wire that answers.
const TARGET: &str = "192.0.2.9";
const NEEDS: [Need; 2] = [
    Need::Root,
    Need::Program("ovs-vswitchd", "openvswitch-switch"),
];
const FLOWS: u16 = 100;
/// All paths have shown that they work: by the intervals of the probes there is no doubt, and nothing tells.
const PROVEN: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_millis(500);

/// The switch at the other end of a member forwards nothing more from it or to it, and its link stays up:
/// the member's flows move within a second, and go home when the path is alive again.
fn path_dies(name: &str, members: usize, probe: &str) -> Result<()> {
    scenario(name, &NEEDS, |lab| {
        let cables = Cables::new(members)?;
        cables.make_host("h0", "p0")?;
        let ovs = Ovs::inside(lab.path(), &cables.far)?;
        ovs.vsctl("add-br br0 -- set bridge br0 datapath_type=netdev -- add-port br0 p0")?;
        cables.far.ip(&format!("addr add {TARGET}/24 dev br0"))?;
        cables.far.ip("link set br0 up")?;
        for i in 0..members {
            ovs.vsctl(&format!("add-port br0 f{i}"))?;
        }
        let rig = Rig::start(lab, cables, members, &format!("probe = \"{probe}\""), PORTS)?;
        for i in 0..members {
            rig.wait_state(i, "active")?;
        }
        let mut a = rig.nic("a")?;
        let host = || Socket::open(&rig.cables.far, "h0");
        rig.learn(&host()?, &mut a, A, FLOWS)?;
        let sockets: Result<Vec<_>> = (0..members).map(|i| rig.cables.socket(i)).collect();
        let ears = Ears::new(sockets?);
        let mut flows = Flows::from_one(A, FLOWS, 5000);
        let script = || -> Result<[Duration; 2]> {
            std::thread::sleep(PROVEN);
            let failovers = rig.team()?["failovers"].as_u64();
            ovs.vsctl("del-port f0")?;
            let (dead, from) = (Instant::now(), now()?);
            let member = rig.wait_state(0, "down")?;
            say(&format!(
                "      noticed after {:.2} s",
                dead.elapsed().as_secs_f64()
            ));
            ensure!(member["link_up"] == true, "{member:#}");
            let reason = member["reason"].as_str().unwrap_or_default();
            ensure!(!reason.contains("not shown yet"), "{reason}");
            ensure!(!reason.is_empty(), "no reason");
            std::thread::sleep(CALM);
            ovs.vsctl("add-port br0 f0")?;
            let until = now()?;
            rig.wait_state(0, "active")?;
            std::thread::sleep(CALM);
            let more = rig.team()?["failovers"].as_u64();
            ensure!(
                more == failovers.map(|n| n + 1),
                "{failovers:?} failovers before, {more:?} after one"
            );
            Ok([from, until])
        };
        let dead = std::thread::scope(|scope| {
            let script = scope.spawn(script);
            send_until(&mut a, &mut flows, || script.is_finished());
            script.join()
        });
        let [from, until] = dead.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        // What reached the dead path's end went no further.
        let mut arrivals = ears.stop()?;
        arrivals.retain(|arrival| arrival.by != 0 || !(from..until).contains(&arrival.at));
        let outcome = Outcome::of(&flows, arrivals);
        let (lost, time) = (outcome.lost(), outcome.loss_time());
        say(&format!(
            "      {lost} frames lost in {:.0} ms",
            time.as_secs_f64() * 1e3
        ));
        ensure!(lost > 0, "nobody left by the path that was dead");
        ensure!(
            time <= Duration::from_secs(1),
            "frames were lost for {time:?}"
        );
        ensure!(outcome.duplicates() == 0, "{} twice", outcome.duplicates());
        rig.daemon.stop()
    })
}

/// As sockets have it; see [`tandem_tests::uplink::socket::Heard::at`].
fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?)
}

/// Each member asks a station that always answers.
#[test]
fn a_target_is_asked() -> Result<()> {
    path_dies("uplink_probe::a_target_is_asked", 2, TARGET)
}

/// Members listen for each other.
#[test]
fn members_hear_each_other() -> Result<()> {
    path_dies("uplink_probe::members_hear_each_other", 3, "heartbeat")
}

/// A network that is as busy as it can be is not taken for a dead one, and a silent one is not either.
#[test]
fn no_false_failover() -> Result<()> {
    let name = "uplink_probe::no_false_failover";
    scenario(name, &NEEDS[..1], |lab| {
        // Nobody answers on these wires, and no member is better than the other.
        let rig = Rig::new(lab, 2, &format!("probe = \"{TARGET}\""), PORTS)?;
        let mut a = rig.nic("a")?;
        let time = Duration::from_secs(if tandem_tests::lab::long() { 600 } else { 3 });
        let begun = Instant::now();
        let mut flows = Flows::from_one(A, FLOWS, 1);
        while begun.elapsed() < time {
            let frames = flows.one_each().into_iter();
            let burst: Vec<_> = frames.map(|frame| (NetHdr::default(), frame)).collect();
            burst.chunks(32).for_each(|burst| a.send_burst(burst));
        }
        a.flush();
        let team = rig.team()?;
        ensure!(team["failovers"] == 0, "{team:#}");
        ensure!(team["state"] == "up", "{team:#}");
        rig.daemon.stop()
    })
}
