//! Which switch has which uplink: a team, or one device, which is a team of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use tandem_uplink::{PortId, PortPolicy, StormLimit, Switch, Vid, VlanPolicy};

use super::EngineOptions;
use crate::config::{SwitchConfig, TeamConfig, Uplink};
use crate::control::{Refused, RefusedKind};
use crate::port::lock;
use crate::status::TeamStatus;
use crate::uplinks;

/// The teams as they run, and which switch has which uplink.
pub(super) struct Uplinks {
    running: uplinks::Uplinks,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    /// The teams that are configured.
    teams: BTreeSet<String>,
    /// By switch.
    uplinks: BTreeMap<String, Uplink>,
}

/// What an uplink's team is called among those that run. That of a device has a name that no team can
/// have.
fn key(uplink: &Uplink) -> String {
    match uplink {
        Uplink::Team(name) => name.clone(),
        Uplink::Device(member) => format!("device {}", member.device),
    }
}

fn no_such_team(name: &str) -> Refused {
    let reason = format!("there is no team {name}");
    Refused::new(RefusedKind::NotFound, reason, "see tandem team list")
}

/// The settings of an uplink's port.
fn policy(config: &SwitchConfig) -> Result<PortPolicy, Refused> {
    let native = config.uplink_native_vlan.map(Vid::new).transpose();
    let native = native.map_err(|e| {
        let refused = Refused::new(RefusedKind::Invalid, e.to_string(), "use 1 to 4094");
        refused.about("uplink_native_vlan")
    })?;
    Ok(PortPolicy {
        mac: None,
        vlan: VlanPolicy::Uplink {
            vlans: config.uplink_vlans.clone(),
            native,
        },
        storm: StormLimit::UNLIMITED,
        // A quarter is left for the ports: the wire is not to keep them from being learned.
        mac_limit: config.mac_limit - config.mac_limit / 4,
    })
}

impl Uplinks {
    pub(super) fn start(options: &EngineOptions) -> io::Result<Self> {
        let broker = Arc::clone(&options.broker);
        let events = Arc::clone(&options.events);
        Ok(Self {
            running: uplinks::Uplinks::start(broker, events, options.cpus.clone())?,
            asked: Mutex::default(),
        })
    }

    pub(super) fn add_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused> {
        let mut asked = lock(&self.asked);
        if !asked.teams.insert(name.to_owned()) {
            let reason = format!("there is a team {name} already");
            let refused = Refused::new(RefusedKind::Conflict, reason, "choose another name");
            return Err(refused.about("name"));
        }
        self.running.set(name, name, team);
        Ok(())
    }

    pub(super) fn change_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused> {
        let asked = lock(&self.asked);
        if !asked.teams.contains(name) {
            return Err(no_such_team(name));
        }
        self.running.set(name, name, team);
        Ok(())
    }

    pub(super) fn remove_team(&self, name: &str) -> Result<(), Refused> {
        let mut asked = lock(&self.asked);
        let this = Uplink::Team(name.to_owned());
        let mut uplinks = asked.uplinks.iter();
        if let Some((switch, _)) = uplinks.find(|(_, uplink)| **uplink == this) {
            let reason = format!("team {name} is the uplink of switch {switch}");
            let remedy = "give the switch another uplink, or none";
            return Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("name"));
        }
        if !asked.teams.remove(name) {
            return Err(no_such_team(name));
        }
        self.running.remove(name);
        Ok(())
    }

    /// Those that are configured, by name.
    pub(super) fn teams(&self) -> Vec<TeamStatus> {
        let asked = lock(&self.asked);
        let all = asked.teams.iter();
        all.filter_map(|name| self.running.status(name)).collect()
    }

    /// Gives a switch the uplink of these settings, in place of the one it had.
    pub(super) fn set(&self, switch: &Arc<Switch>, config: &SwitchConfig) -> Result<(), Refused> {
        let policy = policy(config)?;
        let mut asked = lock(&self.asked);
        let new = config.uplink_among(|name| asked.teams.contains(name));
        let old = asked.uplinks.get(switch.name()).cloned();
        if new == old {
            return new.map_or(Ok(()), |new| self.running.change_policy(&key(&new), policy));
        }
        if let Some(old) = &old {
            self.let_go(old);
            asked.uplinks.remove(switch.name());
        }
        let Some(new) = new else { return Ok(()) };
        if let Err(refused) = self.take(&new, switch, policy.clone()) {
            if let Some(old) = old
                && self.take(&old, switch, policy).is_ok()
            {
                asked.uplinks.insert(switch.name().to_owned(), old);
            }
            return Err(refused);
        }
        asked.uplinks.insert(switch.name().to_owned(), new);
        Ok(())
    }

    /// Makes `uplink` that of a switch. An error leaves nothing behind.
    fn take(
        &self,
        uplink: &Uplink,
        switch: &Arc<Switch>,
        policy: PortPolicy,
    ) -> Result<(), Refused> {
        let key = key(uplink);
        if let Uplink::Device(member) = uplink {
            let team = TeamConfig {
                members: vec![member.clone()],
                ..TeamConfig::default()
            };
            self.running.set(&key, &member.device, &team);
        }
        let attached = self.running.attach(&key, switch, policy);
        attached.inspect_err(|_| {
            if matches!(uplink, Uplink::Device(_)) {
                self.running.remove(&key);
            }
        })
    }

    /// Ends the uplink of a switch, if it has one.
    pub(super) fn end(&self, switch: &str) {
        if let Some(uplink) = lock(&self.asked).uplinks.remove(switch) {
            self.let_go(&uplink);
        }
    }

    fn let_go(&self, uplink: &Uplink) {
        let key = key(uplink);
        self.running.detach(&key);
        if matches!(uplink, Uplink::Device(_)) {
            self.running.remove(&key);
        }
    }

    /// Looks after them. Call once a second.
    pub(super) fn look(&self) {
        self.running.look();
    }

    /// What the uplink of a switch does, if it has one.
    pub(super) fn of(&self, switch: &str) -> Option<TeamStatus> {
        let asked = lock(&self.asked);
        let uplink = asked.uplinks.get(switch)?;
        self.running.status(&key(uplink))
    }

    /// Frames cut up for the uplink of a switch, and the segments they became.
    pub(super) fn segmented(&self, switch: &str) -> (u64, u64) {
        let asked = lock(&self.asked);
        let uplink = asked.uplinks.get(switch);
        uplink.map_or((0, 0), |uplink| self.running.segmented(&key(uplink)))
    }

    /// The ports of a switch that leave by a member of their own.
    pub(super) fn set_pins(&self, switch: &str, pins: &[(PortId, String)]) {
        self.running.set_pins(switch, pins);
    }
}
