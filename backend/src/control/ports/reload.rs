//! Reading file and command line again.

use std::collections::VecDeque;

use super::fabric::Fabric;
use super::{Base, Control, PortConfig};
use crate::config::{Config, Configured, Overlay, Problem, SwitchConfig, TeamConfig};
use crate::control::RefusedKind;

mod fabric;

/// What a successful [`Control::reload`] did: numbers of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// That are new.
    pub added: usize,
    /// That have other settings.
    pub changed: usize,
    /// That are gone.
    pub removed: usize,
}

/// A port before and after, one of the two at least.
type Step = (Option<PortConfig>, Option<PortConfig>);

impl Control {
    /// Applies the difference to the configuration that `read` makes with the overlay, whole or not
    /// at all. A port that does not differ is not touched, nor the VM of one that differs in policy
    /// only.
    ///
    /// # Errors
    /// What is wrong with the configuration, or the first port that could not be made; then all is as
    /// it was.
    pub fn reload(
        &self,
        read: impl FnOnce(&Overlay) -> Result<(Config, Base), Vec<Problem>>,
    ) -> Result<Reloaded, Vec<Problem>> {
        let overlay = self.change();
        let (mut config, base) = read(&overlay)?;
        self.keeps_what_was_set(&config)?;
        let removed = self.removed_lines().clone();
        let in_file = |name: &String| {
            base.file.contains_key(name) && !matches!(overlay.ports.get(name), Some(None))
        };
        let stays_away = |name: &String| removed.contains(name) && !in_file(name);
        config.ports.retain(|name, _| !stays_away(name));
        let fabric = fabric::Steps::make(self, &config)?;
        let reloaded = self.reload_ports(&overlay, &mut config);
        let reloaded = match reloaded {
            Ok(reloaded) => reloaded,
            Err(problems) => {
                fabric.take_back();
                return Err(problems);
            }
        };
        fabric.end_switches(&config);
        SwitchConfig::replace_all(self, config.switches);
        TeamConfig::replace_all(self, config.teams);
        *self.write() = config.ports;
        self.write_aside().clear();
        for (port, refused) in config.set_aside {
            self.set_aside(port, refused);
        }
        *self.write_base() = base;
        Ok(reloaded)
    }

    /// Makes and ends ports until they are those of `config`; ports that cannot be are put aside
    /// there.
    fn reload_ports(
        &self,
        overlay: &Overlay,
        config: &mut Config,
    ) -> Result<Reloaded, Vec<Problem>> {
        let mut steps = self.steps(config);
        let mut reloaded = Reloaded::of(&steps);
        let mut done: Vec<Step> = Vec::new();
        // Steps that wait for what others have yet to give up, since the last one that did not.
        let mut waiting = 0;
        while let Some((old, new)) = steps.pop_front() {
            let Err(refused) = self.exchange(old.as_ref(), new.as_ref()) else {
                done.push((old, new));
                waiting = 0;
                continue;
            };
            if refused.kind == RefusedKind::Conflict && waiting <= steps.len() {
                steps.push_back((old, new));
                waiting += 1;
                if waiting == steps.len() {
                    // All wait for each other, or in vain.
                    let one = self.let_go(&mut steps, &mut done);
                    waiting = if one { 0 } else { waiting + 1 };
                }
                continue;
            }
            // As at a start: what was set over the API keeps nothing else from being made.
            if old.is_none() && is_set(overlay, new.as_ref()) {
                reloaded.added -= 1;
                config.set_aside.extend(new.map(|port| {
                    config.ports.remove(&port.name);
                    (port, refused)
                }));
                continue;
            }
            for (old, new) in done.iter().rev() {
                self.roll_back(new.as_ref(), old.as_ref());
            }
            let name = new.or(old).map_or_else(String::new, |port| port.name);
            let place = format!("port {name}");
            return Err(vec![Problem { place, refused }]);
        }
        Ok(reloaded)
    }

    /// What is to be done, ports that go first: others may want what they have.
    fn steps(&self, config: &Config) -> VecDeque<Step> {
        let running = self.read();
        let gone = running
            .values()
            .filter(|port| !config.ports.contains_key(&port.name))
            .map(|port| (Some(port.clone()), None));
        let wanted = config.ports.values();
        let pairs = wanted.map(|new| (running.get(&new.name).cloned(), Some(new.clone())));
        let (new, known): (Vec<Step>, Vec<Step>) = pairs.partition(|(old, _)| old.is_none());
        let is_as_wanted = |old: &PortConfig, new: &PortConfig| {
            old.is_same(new) && self.engine.has_port(&old.name)
        };
        let changed = known
            .into_iter()
            .filter(|(old, new)| !old.iter().zip(new).all(|(old, new)| is_as_wanted(old, new)));
        gone.chain(changed).chain(new).collect()
    }

    /// Ends one of several ports that are to be changed, to be made later. False: there are not
    /// several.
    fn let_go(&self, steps: &mut VecDeque<Step>, done: &mut Vec<Step>) -> bool {
        let is_change = |step: &&Step| step.0.is_some() && step.1.is_some();
        if steps.iter().filter(is_change).count() < 2 {
            return false;
        }
        let first = steps.iter().position(|step| is_change(&step));
        let Some((old, new)) = first.and_then(|at| steps.remove(at)) else {
            return false;
        };
        let ended = self.exchange(old.as_ref(), None).is_ok();
        if ended {
            done.push((old, None));
            steps.push_back((None, new));
        } else {
            steps.push_back((old, new));
        }
        ended
    }

    /// A port that was set over the API and runs is not ended by what the file says now.
    fn keeps_what_was_set(&self, config: &Config) -> Result<(), Vec<Problem>> {
        let running = self.read();
        let lost = config.set_aside.iter();
        let lost = lost.filter(|(port, _)| running.contains_key(&port.name));
        let problems: Vec<Problem> = lost
            .map(|(port, refused)| Problem {
                place: format!("port {}, set over the API", port.name),
                refused: refused.clone(),
            })
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }
}

/// Whether the port is one that the API has set.
fn is_set(overlay: &Overlay, port: Option<&PortConfig>) -> bool {
    port.is_some_and(|port| matches!(overlay.ports.get(&port.name), Some(Some(_))))
}

impl Reloaded {
    fn of(steps: &VecDeque<Step>) -> Self {
        let count = |is: fn(&Step) -> bool| steps.iter().filter(|step| is(step)).count();
        Self {
            added: count(|(old, _)| old.is_none()),
            removed: count(|(_, new)| new.is_none()),
            changed: count(|(old, new)| old.is_some() && new.is_some()),
        }
    }
}
