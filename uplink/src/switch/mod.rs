//! A switch: its ports, and the addresses behind them.
//!
//! [`Switch`] is the control side. It builds a snapshot of the ports for every change and
//! publishes it whole. [`Forwarder`] is the data side, one for each TX queue: it adopts the
//! snapshot of the moment for one burst and holds on to nothing in between.

mod counters;
mod flow_cache;
mod forward;
mod mac_table;
mod pipeline;
mod snapshot;
mod verdict;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tandem_virtio_net::{Batch, Counters, Scratch};

use self::flow_cache::Budget;
use self::mac_table::{Account, MacTable, Owner};
use self::snapshot::{Port, Snapshot};
use crate::policy::storm::Bucket;
use crate::{Mac, Now, StormLimit, VlanPolicy};

pub use self::counters::SwitchCounters;
pub use self::forward::Forwarder;

/// Where the frames to a port go.
pub trait Outlet: Send + Sync {
    /// Delivers the frames `frames` (indices into `batch`), in order. Counts each as delivered or
    /// dropped on the port's `to_vm` counters. Leaves the frames as they are for the next
    /// receiver.
    fn deliver(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch);

    /// Can it take frames at all? Flooding skips ports that cannot.
    fn ready(&self) -> bool;
}

/// A port of one switch. The id of a removed port is never that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortId {
    slot: u16,
    generation: u32,
}

/// Most ports of a switch.
pub const MAX_PORTS: usize = 16_384;
/// Addresses a port may have learned at once, unless told otherwise.
pub const DEFAULT_MAC_LIMIT: u32 = 1024;

/// The settings of a port that can change while it carries traffic.
#[derive(Clone, Debug)]
pub struct PortPolicy {
    /// The address behind the port, if it is known: other ports may not use it. The port may
    /// use others too. None: addresses are learned.
    pub mac: Option<Mac>,
    /// Its VLAN.
    pub vlan: VlanPolicy,
    /// How much it may have flooded.
    pub storm: StormLimit,
    /// How many addresses are learned from it. Frames from further ones are carried, but frames
    /// to them are flooded.
    pub mac_limit: u32,
}

impl Default for PortPolicy {
    fn default() -> Self {
        Self {
            mac: None,
            vlan: VlanPolicy::default(),
            storm: StormLimit::default(),
            mac_limit: DEFAULT_MAC_LIMIT,
        }
    }
}

/// A port to be added. The fields of [`PortPolicy`] mean the same here.
#[derive(Clone)]
pub struct PortSpec {
    /// Its name, unique in the switch.
    pub name: String,
    /// See [`PortPolicy::mac`].
    pub mac: Option<Mac>,
    /// See [`PortPolicy::vlan`].
    pub vlan: VlanPolicy,
    /// See [`PortPolicy::storm`].
    pub storm: StormLimit,
    /// See [`PortPolicy::mac_limit`].
    pub mac_limit: u32,
    /// Where the switch counts the frames it drops.
    pub from_vm: Arc<Counters>,
    /// Where frames to the port go.
    pub outlet: Arc<dyn Outlet>,
}

impl PortSpec {
    /// A port with the default policy.
    pub fn new(name: impl Into<String>, from_vm: Arc<Counters>, outlet: Arc<dyn Outlet>) -> Self {
        let PortPolicy {
            mac,
            vlan,
            storm,
            mac_limit,
        } = PortPolicy::default();
        Self {
            name: name.into(),
            mac,
            vlan,
            storm,
            mac_limit,
            from_vm,
            outlet,
        }
    }

    fn policy(&self) -> PortPolicy {
        let Self {
            mac,
            storm,
            mac_limit,
            ..
        } = *self;
        PortPolicy {
            mac,
            vlan: self.vlan.clone(),
            storm,
            mac_limit,
        }
    }
}

/// Why a port was not added or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// The name is taken.
    #[error("switch {switch} already has a port {name}; choose another name")]
    NameInUse {
        /// The switch.
        switch: String,
        /// The name.
        name: String,
    },
    /// Another port in one of the same VLANs has the address for good.
    #[error("port {port} already has the MAC address {mac}; every port needs its own")]
    MacInUse {
        /// The address.
        mac: Mac,
        /// The name of the port that has it.
        port: String,
    },
    /// A group address or all zero.
    #[error("{0} cannot be the MAC address of a port: it is a group address or zero")]
    BadMac(Mac),
    /// The switch is full.
    #[error("switch {0} has {MAX_PORTS} ports and takes no more")]
    TooManyPorts(String),
    /// The port has been removed.
    #[error("the port has been removed")]
    NoSuchPort,
}

/// Sizes and times of a switch.
#[derive(Clone, Copy, Debug)]
pub struct SwitchConfig {
    /// Addresses it learns, up to 32,768. Beyond, frames are flooded.
    pub mac_entries: usize,
    /// How long an address is remembered that sends nothing, 1 s to 32,000 s (IEEE 802.1Q,
    /// 8.8.3, recommends 300 s).
    pub mac_ageing: Duration,
    /// Bytes that all flow caches together may take beyond their first.
    pub flow_cache_bytes: usize,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        Self {
            mac_entries: 16_384,
            mac_ageing: Duration::from_secs(300),
            flow_cache_bytes: 64 << 20,
        }
    }
}

/// A port as it is configured.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Its id.
    pub id: PortId,
    /// Its name.
    pub name: String,
    /// Its settings.
    pub policy: PortPolicy,
    /// Addresses that have been learned on it.
    pub learned: u32,
}

/// An address the switch knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacEntry {
    /// The address.
    pub mac: Mac,
    /// Its VLAN, 0 for none. An address that is fixed to a port is in all VLANs of the port and
    /// has none here.
    pub vlan: Option<u16>,
    /// Where it is.
    pub port: PortId,
}

/// An address that two ports use: it moved from one to the other and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The address.
    pub mac: Mac,
    /// Its VLAN, 0 for none.
    pub vlan: u16,
    /// The ports, the one that has it now last.
    pub ports: [PortId; 2],
    /// How often it has moved.
    pub moves: u64,
}

/// A virtual switch. Its methods are for the control plane; frames go through a [`Forwarder`].
pub struct Switch {
    name: String,
    ageing: u16,
    snapshot: ArcSwap<Snapshot>,
    table: MacTable,
    counts: counters::Counts,
    budget: Arc<Budget>,
    control: Mutex<Control>,
}

#[derive(Default)]
struct Control {
    /// Of the port that a slot has or had last.
    generations: Vec<u32>,
    /// Given to a port whenever what was learned on it stops to count.
    incarnation: u16,
    /// Snapshots that a burst may still be using, so that none is freed on the data path.
    retired: Vec<Arc<Snapshot>>,
}

impl Switch {
    /// A switch without ports.
    pub fn new(name: impl Into<String>, config: SwitchConfig) -> Self {
        Self {
            name: name.into(),
            ageing: config.mac_ageing.as_secs().clamp(1, 32_000) as u16,
            snapshot: ArcSwap::from_pointee(Snapshot::new(1, Vec::new())),
            table: MacTable::new(config.mac_entries),
            counts: counters::Counts::default(),
            budget: Budget::new(config.flow_cache_bytes),
            control: Mutex::default(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a port; frames may be on their way to it when this returns.
    ///
    /// # Errors
    /// [`SwitchError`] for a name or address that is taken, a bad address, or a full switch.
    pub fn add_port(&self, spec: PortSpec) -> Result<PortId, SwitchError> {
        let mut control = self.lock();
        let current = self.snapshot.load_full();
        if current.ports().any(|port| port.name == spec.name) {
            return Err(SwitchError::NameInUse {
                switch: self.name.clone(),
                name: spec.name,
            });
        }
        let policy = spec.policy();
        check_mac(&current, None, &policy)?;
        let mut ports = current.clone_ports();
        let slot = ports
            .iter()
            .position(Option::is_none)
            .unwrap_or(ports.len());
        if slot == MAX_PORTS {
            return Err(SwitchError::TooManyPorts(self.name.clone()));
        }
        ports.resize(ports.len().max(slot + 1), None);
        let id = control.next_id(slot);
        let account = self.open_account(&mut control, id.slot, &policy);
        ports[slot] = Some(Arc::new(Port::new(
            id,
            spec.name,
            policy,
            account,
            spec.from_vm,
            spec.outlet,
        )));
        self.publish(&mut control, current, ports);
        Ok(id)
    }

    /// Removes a port. A burst that is on its way may still reach its outlet after this returns;
    /// the outlet is let go of when no burst can, at the latest by the next [`Switch::age`].
    /// False: it was removed before.
    pub fn remove_port(&self, id: PortId) -> bool {
        let mut control = self.lock();
        let current = self.snapshot.load_full();
        if current.get(id).is_none() {
            return false;
        }
        let mut ports = current.clone_ports();
        ports[usize::from(id.slot)] = None;
        self.publish(&mut control, current, ports);
        self.table.close(id.slot);
        true
    }

    /// Gives a port other settings. If its address or its VLAN changes, what was learned on it is
    /// forgotten.
    ///
    /// # Errors
    /// [`SwitchError`] as for [`Switch::add_port`]; nothing is changed then.
    pub fn update_port(&self, id: PortId, policy: PortPolicy) -> Result<(), SwitchError> {
        let mut control = self.lock();
        let current = self.snapshot.load_full();
        let old = current.get(id).ok_or(SwitchError::NoSuchPort)?;
        check_mac(&current, Some(id), &policy)?;
        let same = old.mac == policy.mac
            && old.vlan == policy.vlan
            && old.account.limit == policy.mac_limit;
        let account = if same {
            old.account.clone()
        } else {
            self.open_account(&mut control, id.slot, &policy)
        };
        let (name, from_vm, outlet) = (old.name.clone(), old.from_vm.clone(), old.outlet.clone());
        let mut ports = current.clone_ports();
        ports[usize::from(id.slot)] = Some(Arc::new(Port::new(
            id, name, policy, account, from_vm, outlet,
        )));
        self.publish(&mut control, current, ports);
        Ok(())
    }

    /// Its ports.
    pub fn ports(&self) -> Vec<PortInfo> {
        self.snapshot
            .load()
            .ports()
            .map(|port| port.info())
            .collect()
    }

    /// One of its ports.
    pub fn port(&self, id: PortId) -> Option<PortInfo> {
        self.snapshot.load().get(id).map(Port::info)
    }

    /// The addresses learned on a port, sorted; each once, whatever VLANs it is in.
    pub fn learned_macs(&self, id: PortId) -> Vec<Mac> {
        let snapshot = self.snapshot.load();
        let Some(port) = snapshot.get(id) else {
            return Vec::new();
        };
        let entries = self.table.entries();
        let mine = entries
            .iter()
            .filter(|(_, owner)| *owner == port.account.owner);
        let mut macs: Vec<Mac> = mine.map(|(key, _)| key.mac()).collect();
        macs.sort_unstable();
        macs.dedup();
        macs
    }

    /// All addresses it knows, sorted: those fixed to ports and those learned.
    pub fn mac_entries(&self) -> Vec<MacEntry> {
        let snapshot = self.snapshot.load();
        let fixed = snapshot.ports().filter_map(|port| {
            Some(MacEntry {
                mac: port.mac?,
                vlan: None,
                port: port.id,
            })
        });
        let mut entries: Vec<MacEntry> = fixed.collect();
        for (key, owner) in self.table.entries() {
            if let Some(port) = snapshot.at(owner.port) {
                let vlan = Some(key.vid());
                entries.push(MacEntry {
                    mac: key.mac(),
                    vlan,
                    port: port.id,
                });
            }
        }
        entries.sort_unstable_by_key(|e| (e.vlan, e.mac));
        entries
    }

    /// The number of [`Switch::mac_entries`].
    pub fn mac_entry_count(&self) -> usize {
        let fixed = self
            .snapshot
            .load()
            .ports()
            .filter(|port| port.mac.is_some())
            .count();
        self.table.len() + fixed
    }

    /// The addresses that two ports have used within the ageing time, sorted. QEMU gives every
    /// VM the same address unless told otherwise.
    pub fn duplicates(&self) -> Vec<Duplicate> {
        let snapshot = self.snapshot.load();
        let id = |slot| snapshot.at(slot).map(|port| port.id);
        let restless = self.table.restless();
        let mut duplicates: Vec<Duplicate> = restless
            .iter()
            .filter_map(|m| {
                let ports = [id(m.ports[0])?, id(m.ports[1])?];
                Some(Duplicate {
                    mac: m.key.mac(),
                    vlan: m.key.vid(),
                    ports,
                    moves: m.count,
                })
            })
            .collect();
        duplicates.sort_unstable_by_key(|d| (d.vlan, d.mac));
        duplicates
    }

    /// What it has counted.
    pub fn counters(&self) -> SwitchCounters {
        SwitchCounters {
            mac_moves: self.table.moves(),
            ..self.counts.sum()
        }
    }

    /// Forgets addresses that have been silent for too long, and frees what no burst uses any
    /// more. Call once a second.
    pub fn age(&self, now: Now) {
        self.table.age(now.seconds(), self.ageing);
        self.lock().sweep();
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new account for the port in `slot`; what was learned on the slot is forgotten.
    fn open_account(&self, control: &mut Control, slot: u16, policy: &PortPolicy) -> Account {
        control.incarnation = control.incarnation.wrapping_add(1);
        let owner = Owner {
            port: slot,
            incarnation: control.incarnation,
        };
        let account = self.table.open(owner, policy.mac_limit);
        if let Some(mac) = policy.mac {
            self.table.forget(mac);
        }
        account
    }

    fn publish(
        &self,
        control: &mut Control,
        current: Arc<Snapshot>,
        ports: Vec<Option<Arc<Port>>>,
    ) {
        self.snapshot
            .store(Arc::new(Snapshot::new(current.generation + 1, ports)));
        control.retired.push(current);
        control.sweep();
    }
}

impl Control {
    fn next_id(&mut self, slot: usize) -> PortId {
        self.generations
            .resize(self.generations.len().max(slot + 1), 0);
        self.generations[slot] = self.generations[slot].wrapping_add(1);
        PortId {
            slot: slot as u16,
            generation: self.generations[slot],
        }
    }

    /// Frees the snapshots that nobody but us holds. A burst that still has one keeps it for the
    /// next time.
    fn sweep(&mut self) {
        self.retired
            .retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }
}

impl Port {
    fn new(
        id: PortId,
        name: String,
        policy: PortPolicy,
        account: Account,
        from_vm: Arc<Counters>,
        outlet: Arc<dyn Outlet>,
    ) -> Self {
        let PortPolicy {
            mac,
            vlan,
            storm: limit,
            ..
        } = policy;
        let storm = Bucket::new(limit);
        Self {
            id,
            name,
            mac,
            vlan,
            limit,
            storm,
            account,
            from_vm,
            outlet,
        }
    }

    fn info(&self) -> PortInfo {
        let policy = PortPolicy {
            mac: self.mac,
            vlan: self.vlan.clone(),
            storm: self.limit,
            mac_limit: self.account.limit,
        };
        let learned = self.account.learned();
        PortInfo {
            id: self.id,
            name: self.name.clone(),
            policy,
            learned,
        }
    }
}

/// Whether `policy` may be that of port `id`, or of a new one.
fn check_mac(
    snapshot: &Snapshot,
    id: Option<PortId>,
    policy: &PortPolicy,
) -> Result<(), SwitchError> {
    let Some(mac) = policy.mac else { return Ok(()) };
    if !mac.is_unicast() {
        return Err(SwitchError::BadMac(mac));
    }
    let rival = |port: &&Arc<Port>| {
        port.mac == Some(mac) && Some(port.id) != id && port.vlan.overlaps(&policy.vlan)
    };
    match snapshot.ports().find(rival) {
        Some(port) => Err(SwitchError::MacInUse {
            mac,
            port: port.name.clone(),
        }),
        None => Ok(()),
    }
}
