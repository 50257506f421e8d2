//! Reading file and command line again.

use super::{Control, Places, PortConfig};
use crate::config::{Config, Overlay, Problem};
use crate::control::{Refused, RefusedKind};

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
        read: impl FnOnce(&Overlay) -> Result<(Config, Places), Vec<Problem>>,
    ) -> Result<Reloaded, Vec<Problem>> {
        let overlay = self.change();
        let (mut config, places) = read(&overlay)?;
        self.same_switches(&config).map_err(|p| vec![p])?;
        let mut reloaded = Reloaded::default();
        let mut done: Vec<Step> = Vec::new();
        for (old, new) in self.steps(&config) {
            match self.exchange(old.as_ref(), new.as_ref()) {
                Ok(()) => {
                    *reloaded.count(&old, &new) += 1;
                    done.push((old, new));
                }
                // As at a start: what was set over the API keeps nothing else from being made.
                Err(refused) if old.is_none() && is_set(&overlay, new.as_ref()) => {
                    config.set_aside.extend(new.map(|port| {
                        config.ports.remove(&port.name);
                        (port, refused)
                    }));
                }
                Err(refused) => {
                    for (old, new) in done.iter().rev() {
                        self.roll_back(new.as_ref(), old.as_ref());
                    }
                    let name = new.or(old).map_or_else(String::new, |port| port.name);
                    let place = format!("port {name}");
                    return Err(vec![Problem { place, refused }]);
                }
            }
        }
        *self.write() = config.ports;
        self.write_aside().clear();
        for (port, refused) in config.set_aside {
            self.set_aside(port, refused);
        }
        *self.write_places() = places;
        Ok(reloaded)
    }

    /// What is to be done, ports that go first: others may want what they have.
    fn steps(&self, config: &Config) -> Vec<Step> {
        let running = self.read();
        let gone = running
            .values()
            .filter(|port| !config.ports.contains_key(&port.name))
            .map(|port| (Some(port.clone()), None));
        let wanted = config.ports.values();
        let pairs = wanted.map(|new| (running.get(&new.name).cloned(), Some(new.clone())));
        let (new, known): (Vec<Step>, Vec<Step>) = pairs.partition(|(old, _)| old.is_none());
        let changed = known
            .into_iter()
            .filter(|(old, new)| !old.iter().zip(new).all(|(old, new)| old.is_same(new)));
        gone.chain(changed).chain(new).collect()
    }

    fn same_switches(&self, config: &Config) -> Result<(), Problem> {
        let differs = |name: &&String| self.switches.get(*name) != config.switches.get(*name);
        let mut names = self.switches.keys().chain(config.switches.keys());
        match names.find(differs) {
            None => Ok(()),
            Some(name) => Err(Problem {
                place: format!("switch {name}"),
                refused: Refused::new(
                    RefusedKind::Conflict,
                    "switches cannot be added, changed or removed while the daemon runs",
                    "restart it, or leave them as they are",
                ),
            }),
        }
    }
}

/// Whether the port is one that the API has set.
fn is_set(overlay: &Overlay, port: Option<&PortConfig>) -> bool {
    port.is_some_and(|port| matches!(overlay.get(&port.name), Some(Some(_))))
}

impl Reloaded {
    fn count(&mut self, old: &Option<PortConfig>, new: &Option<PortConfig>) -> &mut usize {
        match (old, new) {
            (None, _) => &mut self.added,
            (_, None) => &mut self.removed,
            _ => &mut self.changed,
        }
    }
}
