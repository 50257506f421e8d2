//! Teams and uplinks: for now what was asked for is kept and reported, and no frame reaches a wire.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::config::{Member, SwitchConfig, TeamConfig, Uplink};
use crate::control::{Refused, RefusedKind};
use crate::port::lock;
use crate::status::{MemberStatus, TeamStatus};

/// The teams, and which switch has which uplink.
#[derive(Default)]
pub(super) struct Uplinks(Mutex<Asked>);

#[derive(Default)]
struct Asked {
    teams: BTreeMap<String, TeamConfig>,
    /// By switch.
    uplinks: BTreeMap<String, Uplink>,
}

impl Asked {
    fn switch_of(&self, uplink: &Uplink) -> Option<String> {
        let mut uplinks = self.uplinks.iter();
        let found = uplinks.find(|(_, other)| *other == uplink);
        found.map(|(switch, _)| switch.clone())
    }

    fn report(&self, uplink: &Uplink) -> TeamStatus {
        let (name, members) = match uplink {
            Uplink::Team(name) => {
                let team = self.teams.get(name);
                let members = team.map_or(&[][..], |team| &team.members);
                (name.clone(), members)
            }
            Uplink::Device(member) => (member.device.clone(), std::slice::from_ref(member)),
        };
        let reason = Some("this version does not reach the wire".to_owned());
        let member = |member: &Member| MemberStatus {
            device: member.device.clone(),
            driver: member.driver.to_string(),
            reason: reason.clone(),
            ..MemberStatus::default()
        };
        TeamStatus {
            switch: self.switch_of(uplink),
            members: members.iter().map(member).collect(),
            name,
            reason: reason.clone(),
            ..TeamStatus::default()
        }
    }
}

fn no_such_team(name: &str) -> Refused {
    let reason = format!("there is no team {name}");
    Refused::new(RefusedKind::NotFound, reason, "see tandem team list")
}

impl Uplinks {
    pub(super) fn add_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused> {
        let mut asked = lock(&self.0);
        if asked.teams.contains_key(name) {
            let reason = format!("there is a team {name} already");
            let refused = Refused::new(RefusedKind::Conflict, reason, "choose another name");
            return Err(refused.about("name"));
        }
        asked.teams.insert(name.to_owned(), team.clone());
        Ok(())
    }

    pub(super) fn change_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused> {
        let mut asked = lock(&self.0);
        let old = asked.teams.get_mut(name);
        *old.ok_or_else(|| no_such_team(name))? = team.clone();
        Ok(())
    }

    pub(super) fn remove_team(&self, name: &str) -> Result<(), Refused> {
        let mut asked = lock(&self.0);
        if let Some(switch) = asked.switch_of(&Uplink::Team(name.to_owned())) {
            let reason = format!("team {name} is the uplink of switch {switch}");
            let remedy = "give the switch another uplink, or none";
            return Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("name"));
        }
        let old = asked.teams.remove(name);
        old.map(drop).ok_or_else(|| no_such_team(name))
    }

    pub(super) fn teams(&self) -> Vec<TeamStatus> {
        let asked = lock(&self.0);
        let all = asked.teams.keys();
        all.map(|name| asked.report(&Uplink::Team(name.clone())))
            .collect()
    }

    /// Gives a switch the uplink of these settings, in place of the one it had.
    pub(super) fn set(&self, switch: &str, config: &SwitchConfig) -> Result<(), Refused> {
        let mut asked = lock(&self.0);
        let uplink = config.uplink_among(|name| asked.teams.contains_key(name));
        match uplink {
            Some(uplink) => drop(asked.uplinks.insert(switch.to_owned(), uplink)),
            None => drop(asked.uplinks.remove(switch)),
        }
        Ok(())
    }

    /// Ends the uplink of a switch, if it has one.
    pub(super) fn end(&self, switch: &str) {
        lock(&self.0).uplinks.remove(switch);
    }

    /// What the uplink of a switch does, if it has one.
    pub(super) fn of(&self, switch: &str) -> Option<TeamStatus> {
        let asked = lock(&self.0);
        asked.uplinks.get(switch).map(|uplink| asked.report(uplink))
    }
}
