//! The teams.

use std::collections::BTreeMap;
use std::sync::RwLock;

use super::fabric::Fabric;
use super::{Base, Control};
use crate::config::{Configured, Layer, Overlay, SwitchConfig, TeamConfig};
use crate::control::{Engine, Refused, RefusedKind};
use crate::events::{Event, EventKind};
use crate::status::{Team, TeamStatus};

impl Fabric for TeamConfig {
    type Object = Team;

    const KIND: &'static str = "team";

    fn tag_shown(object: &Team) -> &str {
        &object.tag
    }

    fn configs(control: &Control) -> &RwLock<BTreeMap<String, Self>> {
        &control.teams
    }

    fn in_file(base: &Base) -> &BTreeMap<String, Layer<Self>> {
        &base.teams
    }

    fn set_over_api(overlay: &mut Overlay) -> &mut BTreeMap<String, Layer<Self>> {
        &mut overlay.teams
    }

    fn is_always_there(_: &str) -> bool {
        false
    }

    fn needed_by(control: &Control, name: &str) -> Result<(), Refused> {
        let switches = SwitchConfig::all(control).into_iter();
        let mut theirs = switches.filter(|(_, switch)| switch.uplink.as_deref() == Some(name));
        let Some((switch, _)) = theirs.next() else {
            return Ok(());
        };
        let reason = format!("team {name} is the uplink of switch {switch}");
        let remedy = "give the switch another uplink, or none";
        Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("name"))
    }

    fn objects(control: &Control) -> Vec<(String, Team)> {
        let running = control.engine.teams().into_iter();
        let mut running: BTreeMap<String, TeamStatus> =
            running.map(|team| (team.name.clone(), team)).collect();
        let configs = Self::all(control).into_iter();
        let both = configs.map(|(name, config)| {
            let running = running.remove(&name).unwrap_or_else(|| TeamStatus {
                name: name.clone(),
                reason: Some("it is being changed; ask again".to_owned()),
                ..TeamStatus::default()
            });
            let team = Team {
                tag: config.tag(),
                origin: config.origins(),
                config,
                running,
            };
            (name, team)
        });
        both.collect()
    }

    fn add(&self, engine: &dyn Engine, name: &str) -> Result<(), Refused> {
        engine.add_team(name, self)
    }

    fn change(&self, engine: &dyn Engine, name: &str) -> Result<(), Refused> {
        engine.change_team(name, self)
    }

    fn remove(engine: &dyn Engine, name: &str) -> Result<(), Refused> {
        engine.remove_team(name)
    }

    fn publish(control: &Control, name: &str, old: Option<&Self>, new: Option<&Self>) {
        let kind = match (old, new) {
            (None, _) => EventKind::TeamAdded,
            (Some(_), Some(_)) => EventKind::TeamChanged,
            (Some(_), None) => EventKind::TeamRemoved,
        };
        control.events.publish(Event::of_team(kind, name));
    }
}
