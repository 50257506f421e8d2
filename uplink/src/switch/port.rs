//! A port as the control plane describes it.

use std::sync::Arc;

use tandem_virtio_net::{Batch, Counters, Scratch, Tracepoint};

use super::mac_table::Account;
use super::neighbour::{Neighbour, Neighbours};
use super::snapshot::{Port, Snapshot};
use crate::policy::storm::Bucket;
use crate::{Mac, StormLimit, VlanPolicy};

/// Where the frames to a port go.
pub trait Outlet: Send + Sync {
    /// Delivers the frames `frames` (indices into `batch`), in order. Counts each as delivered or
    /// dropped on the port's `to_vm` counters. Leaves the frames as they are for the next
    /// receiver.
    fn deliver(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch);

    /// Can it take frames at all? Flooding skips ports that cannot.
    fn ready(&self) -> bool;

    /// Is there a station behind it? While frames only wait for one, it may be heard elsewhere.
    fn at_home(&self) -> bool {
        self.ready()
    }
}

/// A port of one switch. The id of a removed port is never that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortId {
    pub(crate) slot: u16,
    pub(super) generation: u32,
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
    /// Is it the way to the wire? There a frame from an address that another port has used just now is
    /// that port's own, come back.
    pub uplink: bool,
    /// See [`PortPolicy::mac`].
    pub mac: Option<Mac>,
    /// See [`PortPolicy::vlan`].
    pub vlan: VlanPolicy,
    /// See [`PortPolicy::storm`].
    pub storm: StormLimit,
    /// See [`PortPolicy::mac_limit`].
    pub mac_limit: u32,
    /// What was heard before of who is behind it.
    pub neighbours: Vec<Neighbour>,
    /// Where the switch counts the frames it drops.
    pub from_vm: Arc<Counters>,
    /// Where frames to the port go.
    pub outlet: Arc<dyn Outlet>,
    /// Where the frames from the port, and what the switch drops of them, can be watched.
    pub tracepoint: Option<Arc<Tracepoint>>,
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
            uplink: false,
            mac,
            vlan,
            storm,
            mac_limit,
            neighbours: Vec::new(),
            from_vm,
            outlet,
            tracepoint: None,
        }
    }

    pub(super) fn policy(&self) -> PortPolicy {
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

impl Port {
    pub(super) fn new(
        id: PortId,
        (name, uplink): (String, bool),
        policy: PortPolicy,
        (account, neighbours): (Account, Arc<Neighbours>),
        from_vm: Arc<Counters>,
        (outlet, tracepoint): (Arc<dyn Outlet>, Option<Arc<Tracepoint>>),
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
            uplink,
            mac,
            vlan,
            limit,
            storm,
            account,
            neighbours,
            from_vm,
            outlet,
            tracepoint,
        }
    }

    pub(super) fn info(&self) -> PortInfo {
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
pub(super) fn check_mac(
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
