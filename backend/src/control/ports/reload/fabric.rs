//! Teams and switches of a reload, in an order in which what one gives up another may have: uplinks
//! that change are let go, then teams end and give up members, then all take what they are to have.
//! Switches that are gone end last, when no port is on them.

use std::collections::BTreeMap;

use super::super::fabric::Fabric;
use crate::config::check::has_other_user;
use crate::config::{Config, Problem, SwitchConfig, TeamConfig};
use crate::control::{Control, Refused, RefusedKind};

/// A team or a switch before and after.
enum Step {
    Team(String, Option<TeamConfig>, Option<TeamConfig>),
    Switch(String, Option<SwitchConfig>, Option<SwitchConfig>),
}

/// What was done, so that it can be taken back.
pub(super) struct Steps<'a> {
    control: &'a Control,
    teams: BTreeMap<String, TeamConfig>,
    switches: BTreeMap<String, SwitchConfig>,
    done: Vec<Step>,
}

impl<'a> Steps<'a> {
    /// Makes teams and switches those of `config`, but for switches that are gone.
    pub(super) fn make(control: &'a Control, config: &Config) -> Result<Self, Vec<Problem>> {
        let mut steps = Self {
            control,
            teams: TeamConfig::all(control),
            switches: SwitchConfig::all(control),
            done: Vec::new(),
        };
        steps.keep_their_meaning(config)?;
        if let Err(problem) = steps.let_go(config).and_then(|()| steps.take(config)) {
            steps.take_back();
            return Err(vec![problem]);
        }
        Ok(steps)
    }

    /// A switch that names the same uplink before and after means the same.
    fn keep_their_meaning(&self, config: &Config) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        for (name, switch) in &self.switches {
            let Some(uplink) = &switch.uplink else {
                continue;
            };
            let new = config
                .switches
                .get(name)
                .and_then(|new| new.uplink.as_ref());
            let is_team = [&self.teams, &config.teams].map(|teams| teams.contains_key(uplink));
            let (reason, remedy) = match is_team {
                [true, false] => ("is no team any more", "change it, too, or keep the team"),
                [false, true] => ("is a device until now", "give the team another name"),
                _ => continue,
            };
            if new == Some(uplink) {
                let reason = format!("{uplink} {reason}");
                let refused = Refused::new(RefusedKind::Conflict, reason, remedy).about("uplink");
                let place = format!("switch {name}");
                problems.push(Problem { place, refused });
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    fn let_go(&mut self, config: &Config) -> Result<(), Problem> {
        for (name, old) in self.switches.clone() {
            let new = config.switches.get(&name);
            if old.uplink.is_some() && new.is_none_or(|new| new.uplink != old.uplink) {
                let without = SwitchConfig {
                    uplink: None,
                    ..old
                };
                self.switch(&name, Some(without))?;
            }
        }
        for (name, mut old) in self.teams.clone() {
            let Some(new) = config.teams.get(&name) else {
                self.team(&name, None)?;
                continue;
            };
            let known = config.known(&self.control.run_dir);
            let is_wanted = |device: &str| has_other_user(device, known, ("team", &name));
            let before = old.members.len();
            old.members
                .retain(|member| new.has(&member.device) || !is_wanted(&member.device));
            if old.members.len() < before {
                old.standby = old.standby.take().filter(|standby| old.has(standby));
                self.team(&name, Some(old))?;
            }
        }
        Ok(())
    }

    fn take(&mut self, config: &Config) -> Result<(), Problem> {
        for (name, team) in &config.teams {
            self.team(name, Some(team.clone()))?;
        }
        for (name, switch) in &config.switches {
            self.switch(name, Some(switch.clone()))?;
        }
        Ok(())
    }

    fn team(&mut self, name: &str, new: Option<TeamConfig>) -> Result<(), Problem> {
        let old = exchange(self.control, &mut self.teams, name, new.clone())?;
        self.done.push(Step::Team(name.to_owned(), old, new));
        Ok(())
    }

    fn switch(&mut self, name: &str, new: Option<SwitchConfig>) -> Result<(), Problem> {
        let old = exchange(self.control, &mut self.switches, name, new.clone())?;
        self.done.push(Step::Switch(name.to_owned(), old, new));
        Ok(())
    }

    /// Makes all what it was.
    pub(super) fn take_back(self) {
        for step in self.done.iter().rev() {
            match step {
                Step::Team(name, old, new) => {
                    (self.control).take_back(name, old.as_ref(), new.as_ref());
                }
                Step::Switch(name, old, new) => {
                    (self.control).take_back(name, old.as_ref(), new.as_ref());
                }
            }
        }
    }

    /// Ends the switches that are not in `config`; no port is on one of them any more.
    pub(super) fn end_switches(self, config: &Config) {
        let names = self.switches.keys();
        for name in names.filter(|name| !config.switches.contains_key(*name)) {
            if let Err(refused) = self.control.engine.remove_switch(name) {
                log::error!("switch {name}: {refused}");
            }
        }
    }
}

/// Puts `new` in the place of what `all` has of this name: what it had.
fn exchange<T: Fabric>(
    control: &Control,
    all: &mut BTreeMap<String, T>,
    name: &str,
    new: Option<T>,
) -> Result<Option<T>, Problem> {
    let changed = control.exchange_fabric(name, all.get(name), new.as_ref());
    changed.map_err(|refused| Problem {
        place: format!("{} {name}", T::KIND),
        refused,
    })?;
    Ok(match new {
        Some(new) => all.insert(name.to_owned(), new),
        None => all.remove(name),
    })
}
