//! Questions about ports and VMs: what was asked for, and what the engine says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use tandem_uplink::VlanSet;

use super::{Control, not_found};
use crate::config::{Configured, PortConfig};
use crate::control::{MovingPort, Refused, RefusedKind};
use crate::status::{Port, PortState, PortStatus, PortsTotal, Profile, Status, Vm};

impl Control {
    /// All ports, by name.
    pub fn ports(&self) -> Vec<Port> {
        let mut running: BTreeMap<String, PortStatus> = self
            .engine
            .ports()
            .into_iter()
            .map(|port| (port.name.clone(), port))
            .collect();
        let ports = self.read();
        let both = ports
            .values()
            .map(|config| self.port_of(config, running.remove(&config.name)));
        let mut all: Vec<Port> = both.collect();
        let aside = self.read_aside();
        all.extend(aside.values().map(|(port, why)| self.aside_of(port, why)));
        all.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        all
    }

    /// One port.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn port(&self, name: &str) -> Result<Port, Refused> {
        if let Some((port, why)) = self.read_aside().get(name) {
            return Ok(self.aside_of(port, why));
        }
        let config = self
            .read()
            .get(name)
            .cloned()
            .ok_or_else(|| not_found(name))?;
        Ok(self.port_of(&config, self.engine.port(name)))
    }

    /// All VMs, by name.
    pub fn vms(&self) -> Vec<Vm> {
        self.vms_of(&self.ports())
    }

    /// The VMs that these ports name.
    pub fn vms_of(&self, ports: &[Port]) -> Vec<Vm> {
        let mut vms: BTreeMap<String, Vm> = BTreeMap::new();
        for port in ports {
            let vm = vms.entry(port.config.vm.clone()).or_default();
            let counters = &port.running.counters;
            vm.from_vm.add(&counters.from_vm);
            vm.to_vm.add(&counters.to_vm);
            let drops = [&counters.from_vm, &counters.to_vm].map(|d| d.drops.values().sum::<u64>());
            vm.drops += drops.iter().sum::<u64>();
            vm.ports_up += u32::from(port.running.state == PortState::Up);
            vm.ports.push(port.config.name.clone());
        }
        for usage in self.engine.vms() {
            if let Some(vm) = vms.get_mut(&usage.name) {
                vm.usage = usage;
            }
        }
        let named = vms.into_iter().map(|(name, mut vm)| {
            vm.usage.name = name;
            vm
        });
        named.collect()
    }

    /// One VM.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn vm(&self, name: &str) -> Result<Vm, Refused> {
        let vm = self.vms().into_iter().find(|vm| vm.usage.name == name);
        vm.ok_or_else(|| {
            let reason = format!("there is no VM {name}: no port names it");
            Refused::new(RefusedKind::NotFound, reason, "see tandem vm list").about("name")
        })
    }

    /// The settings of a VM's ports, by name.
    pub(crate) fn configs_of(&self, vm: &str) -> Vec<PortConfig> {
        let ports = self.read();
        let mine = ports.values().filter(|port| port.vm == vm);
        mine.cloned().collect()
    }

    /// [`Engine::moving`](crate::control::Engine::moving).
    pub(crate) fn moving(&self, port: &str) -> Result<Arc<dyn MovingPort>, Refused> {
        self.engine.moving(port)
    }

    /// The VLANs of a switch that reach the wire; none: all.
    pub(crate) fn uplink_vlans(&self, switch: &str) -> Option<VlanSet> {
        let switches = self.switches.read().unwrap_or_else(PoisonError::into_inner);
        switches.get(switch)?.uplink_vlans.clone()
    }

    /// All profiles of the configuration file, by name.
    pub fn profiles(&self) -> Vec<Profile> {
        let ports = self.read();
        let profiles = &self.read_base().profiles;
        let named = profiles.iter().map(|(name, layer)| Profile {
            name: name.clone(),
            settings: layer.to_json(),
            ports: ports
                .values()
                .filter(|port| port.profile.as_ref() == Some(name))
                .map(|port| port.name.clone())
                .collect(),
        });
        named.collect()
    }

    /// [`Engine::beats`](crate::control::Engine::beats).
    pub fn beats(&self) -> u64 {
        self.engine.beats()
    }

    /// The whole.
    pub fn status(&self) -> Status {
        let ports = self.read();
        let aside = self.read_aside();
        let all = || ports.values().chain(aside.values().map(|(port, _)| port));
        let vms: BTreeSet<&str> = all().map(|port| port.vm.as_str()).collect();
        let up = self.engine.ports_up();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            run_dir: self.run_dir.display().to_string(),
            switches: self.engine.status(),
            ports: PortsTotal {
                total: all().count() as u32,
                up: up as u32,
            },
            vms: vms.len() as u32,
        }
    }

    pub(super) fn port_of(&self, config: &PortConfig, running: Option<PortStatus>) -> Port {
        let mut shown = config.clone();
        shown.socket = config.socket_path(&self.run_dir);
        Port {
            tag: config.tag(),
            config: shown,
            origin: config.origins(),
            // A port between two settings is not running for a moment.
            running: running.unwrap_or_else(|| PortStatus {
                reason: Some("it is being changed; ask again".to_owned()),
                ..PortStatus::default()
            }),
        }
    }

    fn aside_of(&self, config: &PortConfig, why: &Refused) -> Port {
        let status = PortStatus {
            reason: Some(why.to_string()),
            ..PortStatus::default()
        };
        self.port_of(config, Some(status))
    }
}
