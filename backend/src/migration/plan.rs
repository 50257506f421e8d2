//! What the hosts tell each other of a VM's ports before anything has changed, and what may be in the way.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tandem_migration::peer::{Objection, Plan, PlannedPort};

use crate::config::PortConfig;
use crate::control::{Control, MovingPort, Refused, RefusedKind};
use crate::status::{SwitchStatus, TeamState};

/// Time for the other host's answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// A port of a VM that moves.
pub(super) struct PlannedHere {
    pub(super) config: PortConfig,
    pub(super) port: Arc<dyn MovingPort>,
}

/// The ports of a VM.
///
/// # Errors
/// It has none, or one that cannot move.
pub(super) fn ports_of(control: &Control, vm: &str) -> Result<Vec<PlannedHere>, Refused> {
    let configs = control.configs_of(vm);
    if configs.is_empty() {
        let reason = format!("there is no VM {vm}: no port names it");
        return Err(Refused::new(
            RefusedKind::NotFound,
            reason,
            "see tandem vm list",
        ));
    }
    let ports = configs.into_iter().map(|config| {
        let port = control.moving(&config.name)?;
        Ok(PlannedHere { config, port })
    });
    ports.collect()
}

/// What the other host is asked.
pub(super) fn plan(vm: &str, source: &str, ports: &[PlannedHere], limit: Duration) -> Plan {
    Plan {
        vm: vm.to_owned(),
        source: source.to_owned(),
        ports: ports.iter().map(|port| planned(&port.config)).collect(),
        limit_s: limit.as_secs() as u32,
        requires: Vec::new(),
    }
}

fn planned(port: &PortConfig) -> PlannedPort {
    PlannedPort {
        name: port.name.clone(),
        mac: port.mac.map(|mac| mac.to_string()),
        feature_level: port.feature_level,
        queue_pairs: port.queue_pairs,
        mtu: port.mtu,
        vlan: vlan(port),
    }
}

fn vlan(port: &PortConfig) -> String {
    match (port.vlan, &port.trunk_vlans) {
        (Some(vlan), _) => format!("VLAN {vlan}"),
        (None, Some(trunk)) => {
            let native = port.native_vlan.map(|vlan| format!(", {vlan} untagged"));
            format!("VLANs {trunk}{}", native.unwrap_or_default())
        }
        (None, None) => "no VLAN".to_owned(),
    }
}

/// All that keeps the VM of a plan from coming here.
pub(super) fn objections(control: &Control, plan: &Plan) -> Vec<Objection> {
    let mut all = Vec::new();
    let switches = control.status().switches.switches;
    let here = control.configs_of(&plan.vm);
    for planned in &plan.ports {
        let config = here.iter().find(|config| config.name == planned.name);
        let found = match config {
            Some(config) => of_port(control, config, planned, &switches),
            None => vec![missing(control, &plan.vm, planned)],
        };
        let named = found.into_iter().map(|one| one.of_port(&planned.name));
        all.extend(named);
    }
    let planned = |name: &str| plan.ports.iter().any(|port| port.name == name);
    for config in here.iter().filter(|config| !planned(&config.name)) {
        let reason = format!("{} has it here, and not on {}", plan.vm, plan.source);
        let remedy = "give the VM the same ports on both hosts";
        all.push(Objection::new(reason, remedy).of_port(&config.name));
    }
    all
}

fn missing(control: &Control, vm: &str, planned: &PlannedPort) -> Objection {
    let name = &planned.name;
    match control.port(name) {
        Ok(port) => {
            let reason = format!("it is a port of VM {} here", port.config.vm);
            let remedy = format!("tandem port set {name} --vm {vm}, on the destination");
            Objection::new(reason, remedy)
        }
        Err(_) => {
            let remedy = format!("tandem port add {name} --vm {vm} …, on the destination");
            Objection::new("it does not exist here", remedy)
        }
    }
}

fn of_port(
    control: &Control,
    here: &PortConfig,
    there: &PlannedPort,
    switches: &[SwitchStatus],
) -> Vec<Objection> {
    let mut all = Vec::new();
    let mine = planned(here);
    let or_none = |mac: &Option<String>| mac.clone().unwrap_or_else(|| "none".to_owned());
    for (key, here, there) in [
        ("mac", or_none(&mine.mac), or_none(&there.mac)),
        (
            "feature_level",
            mine.feature_level.to_string(),
            there.feature_level.to_string(),
        ),
        (
            "queue_pairs",
            mine.queue_pairs.to_string(),
            there.queue_pairs.to_string(),
        ),
        ("mtu", mine.mtu.to_string(), there.mtu.to_string()),
        ("vlan", mine.vlan.clone(), there.vlan.clone()),
    ] {
        if here != there {
            let reason = format!("{key} is {here} here, and {there} on the source");
            all.push(Objection::new(reason, "give it the same on both hosts"));
        }
    }
    match control.moving(&here.name) {
        Ok(port) if port.motion().is_some_and(|motion| motion.running) => {
            let reason = "a VM runs behind it here";
            all.push(Objection::new(
                reason,
                "stop that VM, or choose another host",
            ));
        }
        Ok(_) => {}
        Err(refused) => all.push(Objection::new(refused.reason, refused.remedy)),
    }
    let switch = switches.iter().find(|switch| switch.name == here.switch);
    all.extend(
        switch
            .into_iter()
            .flat_map(|switch| of_wire(control, here, switch)),
    );
    all
}

/// What the wire is not fit for. A switch without one is a matter of taste.
fn of_wire(control: &Control, port: &PortConfig, switch: &SwitchStatus) -> Vec<Objection> {
    let Some(uplink) = &switch.uplink_status else {
        return Vec::new();
    };
    let mut all = Vec::new();
    if uplink.state == TeamState::Down {
        let why = uplink.reason.clone().unwrap_or_default();
        let reason = format!(
            "the uplink {} of switch {} is down: {why}",
            uplink.name, switch.name
        );
        all.push(Objection::new(
            reason,
            "see tandem team show on the destination",
        ));
    }
    let narrow = uplink
        .members
        .iter()
        .find(|member| member.mtu.is_some_and(|mtu| mtu < u32::from(port.mtu)));
    if let Some(member) = narrow {
        let (device, mtu) = (&member.device, member.mtu.unwrap_or(0));
        let reason = format!("{device}, by which its frames leave here, has an MTU of {mtu}");
        let remedy = format!("ip link set {device} mtu {}, on the destination", port.mtu);
        all.push(Objection::new(reason, remedy));
    }
    let carried = control.uplink_vlans(&port.switch);
    if let (Some(vlan), Some(carried)) = (port.vlan, carried)
        && !carried.contains(vlan)
    {
        let reason = format!("VLAN {vlan} does not reach the wire here: uplink_vlans is {carried}");
        let remedy = format!("add it to uplink_vlans of switch {}", port.switch);
        all.push(Objection::new(reason, remedy));
    }
    all
}

/// A number that no other migration has.
pub(super) fn new_id() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}
