//! What the data path sees of the control plane: immutable, replaced as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use tandem_virtio_net::{Counters, Tracepoint};

use super::mac_table::{Account, random_seed};
use super::neighbour::Neighbours;
use super::{Outlet, PortId};
use crate::policy::storm::Bucket;
use crate::{Mac, StormLimit, VlanPolicy};

/// A port with its policy.
pub(crate) struct Port {
    pub(crate) id: PortId,
    pub(crate) name: String,
    /// It is the way to the wire.
    pub(crate) uplink: bool,
    pub(crate) mac: Option<Mac>,
    pub(crate) vlan: VlanPolicy,
    pub(crate) limit: StormLimit,
    pub(crate) storm: Bucket,
    pub(crate) account: Account,
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) from_vm: Arc<Counters>,
    pub(crate) outlet: Arc<dyn Outlet>,
    pub(crate) tracepoint: Option<Arc<Tracepoint>>,
}

/// The ports of a switch at one time.
pub(crate) struct Snapshot {
    /// Differs between any two snapshots of a switch.
    pub(crate) generation: u64,
    /// By slot.
    ports: Box<[Option<Arc<Port>>]>,
    /// Slots of the ports that are in one VLAN only, by VLAN.
    members: HashMap<u16, Vec<u16>>,
    /// Slots of the ports that may be in several.
    trunks: Vec<u16>,
    /// Slots of the ports with a fixed address. Several may have one, in different VLANs.
    fixed: HashMap<Mac, Vec<u16>, SeedableRandomState>,
}

impl Snapshot {
    pub(crate) fn new(generation: u64, ports: Vec<Option<Arc<Port>>>) -> Self {
        let hasher = SeedableRandomState::with_seed(random_seed(), SharedSeed::global_random());
        let mut members: HashMap<u16, Vec<u16>> = HashMap::new();
        let mut fixed: HashMap<Mac, Vec<u16>, _> = HashMap::with_hasher(hasher);
        let mut trunks = Vec::new();
        for port in ports.iter().flatten() {
            match &port.vlan {
                VlanPolicy::Untagged => members.entry(0).or_default().push(port.id.slot),
                VlanPolicy::Access(vid) => {
                    members.entry(vid.get()).or_default().push(port.id.slot);
                }
                VlanPolicy::Trunk { .. } | VlanPolicy::Uplink { .. } => trunks.push(port.id.slot),
            }
            if let Some(mac) = port.mac {
                fixed.entry(mac).or_default().push(port.id.slot);
            }
        }
        Self {
            generation,
            ports: ports.into(),
            members,
            trunks,
            fixed,
        }
    }

    /// Number of slots, used or not.
    pub(crate) fn slots(&self) -> usize {
        self.ports.len()
    }

    /// All ports.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &Arc<Port>> + Clone {
        self.ports.iter().flatten()
    }

    /// The port in a slot.
    #[inline]
    pub(crate) fn at(&self, slot: u16) -> Option<&Port> {
        self.ports.get(usize::from(slot))?.as_deref()
    }

    /// A port, unless it has been removed.
    #[inline]
    pub(crate) fn get(&self, id: PortId) -> Option<&Port> {
        self.at(id.slot).filter(|port| port.id == id)
    }

    /// Slots, for the next snapshot to start from.
    pub(crate) fn clone_ports(&self) -> Vec<Option<Arc<Port>>> {
        self.ports.to_vec()
    }

    /// The port in VLAN `vid` whose fixed address is `mac`.
    #[inline]
    pub(crate) fn fixed(&self, vid: u16, mac: Mac) -> Option<&Port> {
        if self.fixed.is_empty() {
            return None;
        }
        let slots = self.fixed.get(&mac)?;
        slots
            .iter()
            .filter_map(|slot| self.at(*slot))
            .find(|port| port.vlan.carries(vid))
    }

    /// The ports in VLAN `vid`.
    #[inline]
    pub(crate) fn members(&self, vid: u16) -> impl Iterator<Item = &Port> {
        let single = self
            .members
            .get(&vid)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let single = single.iter().filter_map(|slot| self.at(*slot));
        let trunks = self.trunks.iter().filter_map(|slot| self.at(*slot));
        single.chain(trunks.filter(move |port| port.vlan.carries(vid)))
    }
}
