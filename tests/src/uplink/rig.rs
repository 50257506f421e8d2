//! A daemon at the near end of cables, whose switch has them as its uplink.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cables::Cables;
use super::flows::{Flows, TURN, station};
use super::socket::Socket;
use crate::frontend::driver::{Config, Nic};
use crate::frontend::spec::{self, NetHdr};
use crate::lab::{Daemon, Lab, PATIENCE, wait_until};

/// The team's name.
const TEAM: &str = "team0";

/// A running daemon with a team.
pub struct Rig {
    // Dropped in this order.
    /// The daemon.
    pub daemon: Daemon,
    /// The cables of the team.
    pub cables: Cables,
}

impl Rig {
    /// Starts it at `members` cables. `team` has further keys of the team, `rest` follows it: ports, and
    /// more. Waits until all members can be used; see [`Rig::start`].
    pub fn new(lab: &Lab, members: usize, team: &str, rest: &str) -> Result<Self> {
        let rig = Self::start(lab, Cables::new(members)?, members, team, rest)?;
        for i in 0..members {
            rig.wait_member(i, "works", |member| member["state"] != "down")?;
        }
        Ok(rig)
    }

    /// Starts it, and does not wait for members.
    pub fn start(
        lab: &Lab,
        cables: Cables,
        members: usize,
        team: &str,
        rest: &str,
    ) -> Result<Self> {
        let members: Vec<String> = (0..members).map(|i| format!("u{i}")).collect();
        Self::with_members(lab, cables, &members, team, rest)
    }

    /// The same with these members, such as `u0:af_xdp`.
    pub fn with_members(
        lab: &Lab,
        cables: Cables,
        members: &[String],
        team: &str,
        rest: &str,
    ) -> Result<Self> {
        let text = format!(
            "[switch.default]\nuplink = \"{TEAM}\"\n[team.{TEAM}]\nmembers = {members:?}\n{team}\n{rest}\n"
        );
        Self::with_config(lab, cables, &text)
    }

    /// Starts it with any configuration.
    pub fn with_config(lab: &Lab, cables: Cables, text: &str) -> Result<Self> {
        let file = lab.path().join("tandem.toml");
        std::fs::write(&file, text)?;
        let file = file.to_str().context("path")?;
        let daemon = Daemon::start_inside(lab.path(), &cables.near, &["--config", file])?;
        Ok(Self { daemon, cables })
    }

    /// A VM on a port, ready for frames of any size up to an MTU of 1500.
    pub fn nic(&self, port: &str) -> Result<Nic> {
        let config = Config {
            // The test may be kept from the CPU for long.
            queue_size: 1024,
            ..Config::with(spec::MRG_RXBUF | spec::EVENT_IDX)
        };
        Nic::start(&self.daemon.socket(port), &config).with_context(|| format!("a VM on {port}"))
    }

    /// The team as the API shows it.
    pub fn team(&self) -> Result<Value> {
        self.daemon.get(&format!("teams/{TEAM}"))
    }

    /// A member as the API shows it.
    pub fn member(&self, i: usize) -> Result<Value> {
        Ok(self.team()?["member_status"][i].take())
    }

    /// Waits until a member looks as it should; gives how it then looks.
    pub fn wait_member(
        &self,
        i: usize,
        what: &str,
        good: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let member = self.member(i)?;
            if good(&member) {
                return Ok(member);
            }
            ensure!(Instant::now() < end, "member {i} {what}, but: {member:#}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a member is in a state: `active`, `standby` or `down`.
    pub fn wait_state(&self, i: usize, state: &str) -> Result<Value> {
        self.wait_member(i, &format!("should be {state}"), |m| m["state"] == state)
    }

    /// Waits until the device that is the whole uplink works.
    pub fn wait_uplink(&self) -> Result<()> {
        wait_until("the uplink", PATIENCE, || {
            let switch = self.daemon.get("switches/default")?;
            Ok(switch["uplink_status"]["state"] == "up")
        })
    }

    /// Lets the switch learn the stations of `count` flows from frames that come in at `socket`.
    pub fn learn(&self, socket: &Socket, nic: &mut Nic, mac: [u8; 6], count: u16) -> Result<()> {
        let mut flows = Flows::to_one(mac, count, 1);
        for frame in flows.one_each() {
            socket.send(&frame)?;
        }
        let last = station(count - 1);
        while nic.recv().1[6..12] != last {}
        Ok(())
    }
}

/// Sends frames of `flows` from a VM at their rate until `done`; gives what else came to it.
pub fn send_until(nic: &mut Nic, flows: &mut Flows, done: impl Fn() -> bool) -> Vec<Vec<u8>> {
    let mut heard = Vec::new();
    flows.begin();
    while !done() {
        let due = flows.due();
        let burst: Vec<_> = due.into_iter().map(|f| (NetHdr::default(), f)).collect();
        if !burst.is_empty() {
            nic.send_burst(&burst);
        }
        while let Some((_, frame)) = nic.try_recv(0) {
            heard.push(frame);
        }
        std::thread::sleep(TURN);
    }
    nic.flush();
    heard
}
