//! The switches.

use std::collections::BTreeMap;
use std::sync::RwLock;

use super::fabric::Fabric;
use super::{Base, Control};
use crate::config::{Configured, DEFAULT_SWITCH, Layer, Overlay, SwitchConfig};
use crate::control::{Engine, Refused, RefusedKind};
use crate::status::Switch;

impl Fabric for SwitchConfig {
    type Object = Switch;

    const KIND: &'static str = "switch";

    fn tag_shown(object: &Switch) -> &str {
        &object.tag
    }

    fn configs(control: &Control) -> &RwLock<BTreeMap<String, Self>> {
        &control.switches
    }

    fn in_file(base: &Base) -> &BTreeMap<String, Layer<Self>> {
        &base.switches
    }

    fn set_over_api(overlay: &mut Overlay) -> &mut BTreeMap<String, Layer<Self>> {
        &mut overlay.switches
    }

    fn is_always_there(name: &str) -> bool {
        name == DEFAULT_SWITCH
    }

    fn needed_by(control: &Control, name: &str) -> Result<(), Refused> {
        let ports = control.ports_on(name);
        if ports.is_empty() {
            return Ok(());
        }
        let reason = format!("switch {name} has ports: {}", ports.join(", "));
        let remedy = "remove them, or move them to another switch";
        Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("name"))
    }

    fn objects(control: &Control) -> Vec<(String, Switch)> {
        let running = control.engine.status().switches.into_iter();
        let mut configs = Self::all(control);
        let both = running.map(|running| {
            let config = configs.remove(&running.name).unwrap_or_default();
            let switch = Switch {
                tag: config.tag(),
                origin: config.origins(),
                config,
                running,
            };
            (switch.running.name.clone(), switch)
        });
        both.collect()
    }

    fn add(&self, engine: &dyn Engine, name: &str) -> Result<(), Refused> {
        engine.add_switch(name, self)
    }

    fn change(&self, engine: &dyn Engine, name: &str) -> Result<(), Refused> {
        engine.change_switch(name, self)
    }

    fn remove(engine: &dyn Engine, name: &str) -> Result<(), Refused> {
        engine.remove_switch(name)
    }

    fn publish(_: &Control, _: &str, _: Option<&Self>, _: Option<&Self>) {}
}

impl Control {
    /// The ports that name a switch, those that could not be made as well.
    fn ports_on(&self, switch: &str) -> Vec<String> {
        let (ports, aside) = (self.read(), self.read_aside());
        let all = ports.values().chain(aside.values().map(|(port, _)| port));
        let on_it = all.filter(|port| port.switch == switch);
        on_it.map(|port| port.name.clone()).collect()
    }
}
