//! A stand-in that is to be replaced: it records ports and moves no frames.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{PortConfig, SwitchConfig};
use crate::control::{Engine, Refused, RefusedKind};
use crate::status::{PortStatus, SwitchStatus, SwitchesStatus};

/// What the switch is started with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where the ports' sockets go; an absolute path.
    pub run_dir: PathBuf,
    /// CPUs of the data path, ascending, each one that the process may use.
    pub cpus: Vec<usize>,
    /// The switches by name.
    pub switches: BTreeMap<String, SwitchConfig>,
}

/// Starts the switch, without ports.
///
/// # Errors
/// What could not be set up, and what to do about it.
pub fn start(options: EngineOptions) -> Result<Arc<dyn Engine>, Refused> {
    Ok(Arc::new(Recorder { options, ports: Mutex::default() }))
}

struct Recorder {
    options: EngineOptions,
    ports: Mutex<BTreeMap<String, PortConfig>>,
}

impl Engine for Recorder {
    fn add_port(&self, port: &PortConfig) -> Result<(), Refused> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if ports.contains_key(&port.name) {
            let reason = format!("there is a port {} already", port.name);
            return Err(Refused::new(RefusedKind::Conflict, reason, "choose another name"));
        }
        ports.insert(port.name.clone(), port.clone());
        Ok(())
    }

    fn remove_port(&self, name: &str) -> Result<(), Refused> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.remove(name).map(drop).ok_or_else(|| {
            let reason = format!("there is no port {name}");
            Refused::new(RefusedKind::NotFound, reason, "see tandem port list")
        })
    }

    fn ports(&self) -> Vec<PortStatus> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.values().map(status).collect()
    }

    fn port(&self, name: &str) -> Option<PortStatus> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.get(name).map(status)
    }

    fn status(&self) -> SwitchesStatus {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let switches = self.options.switches.keys().map(|name| SwitchStatus {
            name: name.clone(),
            ports: ports.values().filter(|port| port.switch == *name).count() as u32,
            ..SwitchStatus::default()
        });
        SwitchesStatus { cpus: self.options.cpus.clone(), switches: switches.collect() }
    }
}

fn status(port: &PortConfig) -> PortStatus {
    let reason = Some("no VMM is connected; start the VM".to_owned());
    PortStatus { name: port.name.clone(), reason, ..PortStatus::default() }
}
