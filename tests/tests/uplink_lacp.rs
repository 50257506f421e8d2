//! LACP with Open vSwitch as the partner.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::Nic;
use tandem_tests::frontend::frames::{mac, numbered};
use tandem_tests::frontend::spec::NetHdr;
use tandem_tests::lab::{Lab, Need, Ovs, PATIENCE, long, say, scenario, skip, wait_until};
use tandem_tests::uplink::rig::send_until;
use tandem_tests::uplink::{Cables, Ears, Flows, Outcome, Rig, Socket};

const A: [u8; 6] = mac(1);
const PORTS: &str = "[port.a]\nmac = \"52:54:00:00:00:01\"\n";
const NEEDS: [Need; 2] = [
    Need::Root,
    Need::Program("ovs-vswitchd", "openvswitch-switch"),
];
const FLOWS: u16 = 100;
const FAST: &str = "other_config:lacp-time=fast";
const CALM: Duration = Duration::from_millis(300);

/// A team of two with LACP, its partner's switch, and a host behind that.
struct Partners {
    rig: Rig,
    ovs: Ovs,
}

impl Partners {
    /// Both ends run; the partner's bond is still to be made.
    fn new(lab: &Lab, timer: &str) -> Result<Self> {
        let cables = Cables::new(4)?;
        cables.make_host("h0", "p0")?;
        let ovs = Ovs::inside(lab.path(), &cables.far)?;
        ovs.vsctl("add-br br0 -- set bridge br0 datapath_type=netdev -- add-port br0 p0")?;
        let team = format!("mode = \"lacp\"\nlacp_timer = \"{timer}\"");
        let rig = Rig::start(lab, cables, 2, &team, PORTS)?;
        for i in 0..2 {
            rig.wait_member(i, "has a link", |member| member["link_up"] == true)?;
        }
        Ok(Self { rig, ovs })
    }

    /// Gives the partner its bond; when that began.
    fn bond(&self, lacp: &str, more: &str) -> Result<Instant> {
        let begun = Instant::now();
        self.ovs.vsctl(&format!(
            "add-bond br0 bond0 f0 f1 bond_mode=balance-tcp lacp={lacp} {more}"
        ))?;
        Ok(begun)
    }

    /// Waits until members are in these states.
    fn wait(&self, states: [&str; 2]) -> Result<()> {
        for (i, state) in states.into_iter().enumerate() {
            self.rig.wait_state(i, state)?;
        }
        Ok(())
    }

    /// Waits until the partner sends by both links, too.
    fn wait_for_partner(&self) -> Result<()> {
        wait_until("both links at the partner", PATIENCE, || {
            let bond = self.ovs.appctl(&["bond/show", "bond0"])?;
            Ok(bond.matches(": enabled").count() == 2)
        })
    }

    /// The host behind the partner.
    fn host(&self) -> Result<Socket> {
        Socket::open(&self.rig.cables.far, "h0")
    }

    /// Lets both switches learn where everybody is.
    fn learn(&self, a: &mut Nic) -> Result<()> {
        self.rig.learn(&self.host()?, a, A, FLOWS)?;
        let mut host = self.host()?;
        let mut flows = Flows::from_one(A, FLOWS, 1);
        flows
            .one_each()
            .iter()
            .for_each(|frame| a.send_plain(frame));
        for _ in 0..FLOWS {
            host.wait("a frame", |frame| frame[6..12] == A)?;
        }
        Ok(())
    }

    /// How many frames each member has sent.
    fn to_wire(&self) -> Result<[u64; 2]> {
        let of = |i| -> Result<u64> {
            let member = self.rig.member(i)?;
            Ok(member["to_wire"]["frames"].as_u64().unwrap_or(0))
        };
        Ok([of(0)?, of(1)?])
    }

    /// Frames of many flows cross both ways: by both links to the partner, by whatever link it chooses
    /// from it, and by each link from it.
    fn both_carry(&self) -> Result<()> {
        self.wait_for_partner()?;
        let mut a = self.rig.nic("a")?;
        self.learn(&mut a)?;
        let before = self.to_wire()?;
        let (host, mut heard) = (self.host()?, self.host()?);
        let (mut out, mut back) = (Flows::from_one(A, FLOWS, 1), Flows::to_one(A, FLOWS, 1));
        for _ in 0..10 {
            let frames = out.one_each();
            let burst: Vec<_> = frames.into_iter().map(|f| (NetHdr::default(), f)).collect();
            burst.chunks(32).for_each(|burst| a.send_burst(burst));
            for frame in back.one_each() {
                host.send(&frame)?;
            }
            for _ in 0..FLOWS {
                heard.wait("a frame from the VM", |frame| frame[6..12] == A)?;
                while a.recv().1[..6] != A {}
            }
        }
        let after = self.to_wire()?;
        let carried = [after[0] - before[0], after[1] - before[1]];
        let all = carried.iter().all(|frames| *frames >= 200);
        ensure!(all, "{carried:?} frames to the wire by the members");
        for i in 0..2 {
            self.rig
                .cables
                .socket(i)?
                .send(&numbered(mac(9), A, i as u64))?;
            while a.recv().1[6..12] != mac(9) {}
        }
        Ok(())
    }
}

/// LACP comes up within three seconds, says who is at the other end, and both ends use both links.
#[test]
fn fast_timers() -> Result<()> {
    let name = "uplink_lacp::fast_timers";
    scenario(name, &NEEDS, |lab| {
        let partners = Partners::new(lab, "fast")?;
        partners.rig.wait_member(0, "has no partner", |member| {
            let reason = member["reason"].as_str().unwrap_or_default();
            member["state"] == "down" && reason.contains("no LACP partner")
        })?;
        let made = partners.bond("active", FAST)?;
        partners.wait(["active"; 2])?;
        let took = made.elapsed();
        say(&format!("      up after {:.2} s", took.as_secs_f64()));
        ensure!(took <= Duration::from_secs(3), "up only after {took:?}");
        let member = partners.rig.member(1)?;
        let partner = &member["lacp"]["partner"];
        ensure!(partner["system"].is_string(), "{member:#}");
        let shown = partners.rig.daemon.cli(&["team", "show", "team0"])?;
        ensure!(shown.contains("distributing"), "{shown}");
        let theirs = partners.ovs.appctl(&["lacp/show", "bond0"])?;
        ensure!(theirs.matches("current attached").count() == 2, "{theirs}");
        partners.both_carry()?;
        partners.rig.daemon.stop()
    })
}

/// Slow timers at our end, and a partner that only answers.
#[test]
fn slow_timers_and_a_passive_partner() -> Result<()> {
    let name = "uplink_lacp::slow_timers_and_a_passive_partner";
    scenario(name, &NEEDS, |lab| {
        let partners = Partners::new(lab, "slow")?;
        partners.bond("passive", "")?;
        partners.wait(["active"; 2])?;
        partners.both_carry()?;
        let theirs = partners.ovs.appctl(&["lacp/show", "bond0"])?;
        ensure!(theirs.contains("current attached"), "{theirs}");
        ensure!(!theirs.contains("timeout short"), "{theirs}");
        partners.rig.daemon.stop()
    })
}

/// A partner whose ports are not of one group: one carries, the other says why it does not.
#[test]
fn wrong_key() -> Result<()> {
    let name = "uplink_lacp::wrong_key";
    scenario(name, &NEEDS, |lab| {
        let partners = Partners::new(lab, "fast")?;
        // Two groups: what a switch has whose ports were put together wrongly. The cables 2 and 3 lead
        // nowhere.
        for (bond, ports) in [("bond0", "f0 f2"), ("bond1", "f1 f3")] {
            partners.ovs.vsctl(&format!(
                "add-bond br0 {bond} {ports} bond_mode=balance-tcp lacp=active {FAST}"
            ))?;
        }
        let is = |i: usize, state: &'static str| -> Result<bool> {
            Ok(partners.rig.member(i)?["state"] == state)
        };
        wait_until("one member of two, and why", PATIENCE, || {
            for (one, other) in [(0, 1), (1, 0)] {
                if is(one, "active")? && is(other, "down")? {
                    let reason = partners.rig.member(other)?["reason"].to_string();
                    return Ok(reason.contains("another key"));
                }
            }
            Ok(false)
        })?;
        let shown = partners.rig.daemon.cli(&["team", "show", "team0"])?;
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(shown.contains("has another key than"), "{shown}");
        partners.ovs.vsctl("del-port bond0 -- del-port bond1")?;
        partners.bond("active", FAST)?;
        partners.wait(["active"; 2])?;
        partners.both_carry()?;
        partners.rig.daemon.stop()
    })
}

/// A partner that says nothing any more over links that are up: no frame is sent to it after three
/// seconds and a bit (IEEE 802.1AX, 6.4.4, short timeout), until it is back.
#[test]
fn silent_partner() -> Result<()> {
    // The last PDU may have come up to a second before.
    let standard = Duration::from_millis(1900)..Duration::from_millis(3500);
    let name = "uplink_lacp::silent_partner";
    scenario(name, &NEEDS, |lab| {
        falls_silent(lab, "fast", FAST, standard)
    })
}

/// The same with slow timers: after 90 seconds, of which up to 30 are over by then.
#[test]
fn silent_partner_with_slow_timers() -> Result<()> {
    let name = "uplink_lacp::silent_partner_with_slow_timers";
    if !long() {
        skip(name, "takes two minutes; ci/test --long");
        return Ok(());
    }
    let standard = Duration::from_secs(59)..Duration::from_secs(92);
    scenario(name, &NEEDS, |lab| {
        falls_silent(lab, "slow", "other_config:lacp-time=slow", standard)
    })
}

fn falls_silent(lab: &Lab, timer: &str, theirs: &str, standard: Range<Duration>) -> Result<()> {
    let mut partners = Partners::new(lab, timer)?;
    partners.bond("active", theirs)?;
    partners.wait(["active"; 2])?;
    let pid = partners.ovs.process().pid();
    tandem_tests::lab::process::signal(pid, "STOP")?;
    let stopped = Instant::now();
    let outcome = wait_until("the members are out", standard.end + PATIENCE, || {
        let down = |i: usize| Ok::<_, anyhow::Error>(partners.rig.member(i)?["state"] == "down");
        Ok(down(0)? && down(1)?)
    });
    let took = stopped.elapsed();
    tandem_tests::lab::process::signal(pid, "CONT")?;
    outcome?;
    say(&format!("      out after {:.2} s", took.as_secs_f64()));
    ensure!(standard.contains(&took), "out after {took:?}");
    partners.wait(["active"; 2])?;
    partners.both_carry()?;
    let member = partners.rig.member(0)?;
    ensure!(member["failovers"] == 1, "{member:#}");
    partners.rig.daemon.stop()
}

/// One link on which the partner cannot be heard: its flows move, and none of their frames is lost.
#[test]
fn one_link_is_silent() -> Result<()> {
    let name = "uplink_lacp::one_link_is_silent";
    scenario(name, &NEEDS, |lab| {
        let partners = Partners::new(lab, "fast")?;
        partners.bond("active", FAST)?;
        partners.wait(["active"; 2])?;
        let far = &partners.rig.cables.far;
        let outcome = partners.under_traffic(|| {
            // Next to nothing passes, and nothing waits.
            far.run("tc qdisc add dev f0 root tbf rate 8bit burst 20b limit 20b")?;
            partners.wait(["down", "active"])?;
            std::thread::sleep(CALM);
            far.run("tc qdisc del dev f0 root")?;
            partners.wait(["active"; 2])
        })?;
        ensure!(outcome.lost() == 0, "{} frames lost", outcome.lost());
        let (twice, late) = (outcome.duplicates(), outcome.reordered());
        ensure!((twice, late) == (0, 0), "{twice} twice, {late} late");
        partners.rig.daemon.stop()
    })
}

/// A link that fails under LACP costs its own flows no more than in other modes.
#[test]
fn carrier_is_lost() -> Result<()> {
    let name = "uplink_lacp::carrier_is_lost";
    scenario(name, &NEEDS, |lab| {
        let partners = Partners::new(lab, "fast")?;
        partners.bond("active", FAST)?;
        partners.wait(["active"; 2])?;
        let cables = &partners.rig.cables;
        let outcome = partners.under_traffic(|| {
            cables.cut(0)?;
            partners.wait(["down", "active"])?;
            std::thread::sleep(CALM);
            cables.mend(0)?;
            partners.wait(["active"; 2])
        })?;
        ensure!(
            outcome.at_home(1).lost() == 0,
            "the other link's flows lost frames"
        );
        let (lost, time) = (outcome.lost(), outcome.loss_time());
        say(&format!(
            "      {lost} frames lost in {:.1} ms",
            time.as_secs_f64() * 1e3
        ));
        ensure!(time <= Duration::from_millis(20), "lost for {time:?}");
        let (twice, late) = (outcome.duplicates(), outcome.reordered());
        ensure!((twice, late) == (0, 0), "{twice} twice, {late} late");
        partners.rig.daemon.stop()
    })
}

impl Partners {
    /// Frames of all flows from the VM to the host while `script` runs, and what became of them on their
    /// way to the partner.
    fn under_traffic(&self, script: impl FnOnce() -> Result<()> + Send) -> Result<Outcome> {
        self.wait_for_partner()?;
        let mut a = self.rig.nic("a")?;
        self.learn(&mut a)?;
        let cables = &self.rig.cables;
        let ears = Ears::new([cables.socket(0)?, cables.socket(1)?]);
        let mut flows = Flows::from_one(A, FLOWS, 10_000);
        let outcome = std::thread::scope(|scope| {
            let script = scope.spawn(|| {
                std::thread::sleep(CALM);
                let outcome = script();
                std::thread::sleep(CALM);
                outcome
            });
            send_until(&mut a, &mut flows, || script.is_finished());
            script.join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Outcome::of(&flows, ears.stop()?))
    }
}
