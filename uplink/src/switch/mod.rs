//! A switch: its ports, and the addresses behind them.
//!
//! [`Switch`] is the control side. It builds a snapshot of the ports for every change and
//! publishes it whole. [`Forwarder`] is the data side, one for each TX queue: it adopts the
//! snapshot of the moment for one burst and holds on to nothing in between.

mod announce;
mod counters;
mod flow_cache;
mod forward;
mod mac_table;
mod neighbour;
mod pipeline;
mod port;
mod redirect;
mod restore;
mod snapshot;
mod verdict;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::flow_cache::Budget;
use self::mac_table::{Account, MacKey, MacTable, Owner};
use self::neighbour::Neighbours;
use self::port::check_mac;
use self::snapshot::{Port, Snapshot};
use crate::{Mac, Now};

pub use self::counters::SwitchCounters;
pub use self::forward::Forwarder;
pub use self::neighbour::{MAX_NEIGHBOURS, Neighbour};
pub use self::port::SwitchError;
pub use self::port::{
    DEFAULT_MAC_LIMIT, MAX_PORTS, Outlet, PortId, PortInfo, PortPolicy, PortSpec,
};

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
    /// Seconds.
    ageing: AtomicU16,
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
        Self::with_room(name, config, config.mac_entries)
    }

    /// The same with room for `entries` addresses, up to which its limit can be raised later: 32
    /// bytes for each.
    pub fn with_room(name: impl Into<String>, config: SwitchConfig, entries: usize) -> Self {
        let switch = Self {
            name: name.into(),
            ageing: AtomicU16::default(),
            snapshot: ArcSwap::from_pointee(Snapshot::new(1, Vec::new())),
            table: MacTable::new(entries),
            counts: counters::Counts::default(),
            budget: Budget::new(config.flow_cache_bytes),
            control: Mutex::default(),
        };
        switch.configure(config);
        switch
    }

    /// Gives it another limit of addresses, as far as it has room, and another ageing time; the rest of
    /// `config` stays what it was made with.
    pub fn configure(&self, config: SwitchConfig) {
        let seconds = config.mac_ageing.as_secs().clamp(1, 32_000) as u16;
        self.ageing.store(seconds, Ordering::Relaxed);
        self.table.set_limit(config.mac_entries);
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
            (spec.name, spec.uplink),
            policy,
            (account, Arc::new(Neighbours::new(spec.neighbours))),
            spec.from_vm,
            (spec.outlet, spec.tracepoint),
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
        let known = if same {
            (old.account.clone(), old.neighbours.clone())
        } else {
            let account = self.open_account(&mut control, id.slot, &policy);
            (account, Arc::default())
        };
        let name = (old.name.clone(), old.uplink);
        let from_vm = old.from_vm.clone();
        let outlet = (old.outlet.clone(), old.tracepoint.clone());
        let mut ports = current.clone_ports();
        ports[usize::from(id.slot)] = Some(Arc::new(Port::new(
            id, name, policy, known, from_vm, outlet,
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

    /// The same for all ports that have learned any, in one walk.
    pub fn all_learned_macs(&self) -> HashMap<PortId, Vec<Mac>> {
        let snapshot = self.snapshot.load();
        let mut by_owner: HashMap<_, Vec<Mac>> = HashMap::new();
        for (key, owner) in self.table.entries() {
            by_owner.entry(owner).or_default().push(key.mac());
        }
        let mine = snapshot.ports().filter_map(|port| {
            let mut macs = by_owner.remove(&port.account.owner)?;
            macs.sort_unstable();
            macs.dedup();
            Some((port.id, macs))
        });
        mine.collect()
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

    /// Forgets the addresses learned on a port, because what was behind it is gone: frames to
    /// them are flooded until they are heard again, here or elsewhere.
    pub fn forget_learned(&self, id: PortId) {
        if self.snapshot.load().get(id).is_some() {
            self.table.forget_port(id.slot);
        }
    }

    /// What was behind a port is gone, or is back: all verdicts are found anew, and its fixed address is
    /// nowhere else until it is heard there.
    pub fn renew(&self, id: PortId) {
        if let Some(mac) = self.snapshot.load().get(id).and_then(|port| port.mac) {
            self.table.forget(mac);
        }
        self.judge_anew();
    }

    /// All verdicts are found anew.
    pub fn judge_anew(&self) {
        let mut control = self.lock();
        let current = self.snapshot.load_full();
        let ports = current.clone_ports();
        self.publish(&mut control, current, ports);
    }

    /// The stations behind a port: that of its fixed address, and those learned, with their VLANs.
    pub fn stations(&self, id: PortId) -> Vec<(Mac, u16)> {
        let snapshot = self.snapshot.load();
        let Some(port) = snapshot.get(id) else {
            return Vec::new();
        };
        let entries = self.table.entries();
        let mine = entries.iter().filter(|(_, o)| *o == port.account.owner);
        let mine = mine.map(|(key, _)| (key.mac(), key.vid()));
        // Where it has said nothing yet it is nowhere else either, but for the VLAN that it would be in.
        let fixed = port.mac.zip(port.vlan.ingress(None));
        mine.chain(fixed.map(|(mac, class)| (mac, class.vid)))
            .collect()
    }

    /// Stations behind a port may be heard on another one from now on.
    pub fn let_move(&self, id: PortId, now: Now) {
        self.table.let_move(id.slot, now.seconds());
    }

    /// Frames for these stations that still come in where they have been heard since go to port `id`;
    /// none: no longer.
    pub fn set_left(&self, id: PortId, stations: &[(Mac, u16)]) {
        let keys = stations.iter().map(|(mac, vid)| MacKey::new(*vid, *mac));
        self.table.set_left(id.slot, keys);
        self.judge_anew();
    }

    /// Whether one of these stations has been heard on another port than `id`.
    pub fn is_elsewhere(&self, stations: &[(Mac, u16)], id: PortId) -> bool {
        stations.iter().any(|(mac, vid)| {
            let found = self.table.find(MacKey::new(*vid, *mac));
            found.is_some_and(|(owner, _)| owner.port != id.slot)
        })
    }

    /// Whether an address is that of a port, for good or learned there, `but` one.
    pub fn has_station(&self, mac: Mac, but: PortId) -> bool {
        let snapshot = self.snapshot.load();
        let fixed = snapshot.ports().any(|port| port.mac == Some(mac));
        let entries = self.table.entries();
        fixed || (entries.iter()).any(|(key, owner)| key.mac() == mac && owner.port != but.slot)
    }

    /// The IP addresses that the stations behind a port say they have, those heard last first, at
    /// most [`MAX_NEIGHBOURS`].
    pub fn neighbours(&self, id: PortId) -> Vec<Neighbour> {
        let snapshot = self.snapshot.load();
        snapshot
            .get(id)
            .map_or(Vec::new(), |port| port.neighbours.list())
    }

    /// Forgets them: others are behind the port now.
    pub fn forget_neighbours(&self, id: PortId) {
        if let Some(port) = self.snapshot.load().get(id) {
            port.neighbours.clear();
        }
    }

    /// Forgets addresses that have been silent for too long, and frees what no burst uses any
    /// more. Call once a second.
    pub fn age(&self, now: Now) {
        let ageing = self.ageing.load(Ordering::Relaxed);
        self.table.age(now.seconds(), ageing);
        neighbour::settle(self.snapshot.load().ports().map(Arc::as_ref));
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
