//! Announcements: the switch says for the stations behind a port where they are, when those have
//! no reason to say it themselves.
//!
//! A guest whose link was down for a moment has forgotten its neighbours and asks for them anew,
//! once a second. Those who are told meanwhile need not wait.

use std::sync::Arc;

use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::wire::arp;
use tandem_virtio_net::wire::ethernet::{TYPE_IPV4, TYPE_RARP};
use tandem_virtio_net::{BURST, Batch, Scratch};

use super::counters::SwitchCounters;
use super::mac_table::MacKey;
use super::neighbour::{self, Neighbour};
use super::snapshot::{Port, Snapshot};
use super::{Forwarder, PortId, Switch};
use crate::policy::vlan::Class;
use crate::{Mac, Now};

/// Most announcements of others that a port is told: its ring may be no longer than 256, and has to
/// carry frames besides.
const MOST: u64 = 128;

impl Switch {
    /// Announces the neighbours behind a port to the other ports of their VLANs, and those behind
    /// the others to this port. It should be able to take frames.
    pub fn announce(self: &Arc<Self>, id: PortId, now: Now) {
        let snapshot = self.snapshot.load_full();
        // Who is gone again is not to be made known.
        let Some(this) = snapshot.get(id).filter(|port| port.outlet.ready()) else {
            return;
        };
        neighbour::settle(snapshot.ports().map(Arc::as_ref));
        let mut said = Announcements::default();
        for neighbour in this.neighbours.list() {
            said.add(&neighbour);
        }
        // As if the port had sent them: with its policy, and the switch learns where it is.
        let batch = &mut said.batch;
        Forwarder::deaf(Arc::clone(self), id).forward(batch, &mut said.scratch, now);
        let told = tell(this, &snapshot);
        let counts = SwitchCounters {
            frames: told,
            unicast: told,
            announced: batch.len() as u64 + told,
            ..SwitchCounters::default()
        };
        self.counts.add(self.counts.stripe(), &counts);
        said.scratch.call_all();
    }
}

impl Switch {
    /// Announces the station that is behind a port by its fixed address, if it has one: who has not said
    /// what addresses it has is known by this one at least. For a VM that has come from elsewhere.
    pub fn announce_arrival(self: &Arc<Self>, id: PortId, now: Now) {
        let snapshot = self.snapshot.load_full();
        let here = snapshot.get(id).filter(|port| port.outlet.at_home());
        let Some(mac) = here.and_then(|port| port.mac) else {
            return;
        };
        let mut said = Announcements::default();
        said.push(&reverse_arp(mac));
        Forwarder::deaf(Arc::clone(self), id).forward(&mut said.batch, &mut said.scratch, now);
        said.scratch.call_all();
        let counts = SwitchCounters {
            announced: 1,
            ..SwitchCounters::default()
        };
        self.counts.add(self.counts.stripe(), &counts);
    }

    /// Says on the uplink `id` for each station behind the other ports where it is, with a frame that
    /// moves it in the tables of the switches there and means nothing to a station (RARP, RFC 903). For a
    /// team that is to be reached by another member from now on.
    pub fn announce_stations(&self, id: PortId, now: Now) {
        let snapshot = self.snapshot.load_full();
        let Some(uplink) = snapshot.get(id) else {
            return;
        };
        let mut said = 0;
        for port in snapshot.ports().filter(|port| port.id != id) {
            let stations = self.stations(port.id);
            // As if they had said it: where the network gives it back, they are known to be here.
            for (mac, vid) in stations.iter().filter(|(mac, _)| port.mac != Some(*mac)) {
                let key = MacKey::new(*vid, *mac);
                self.table.learn(key, &port.account, now.seconds());
            }
            let mut burst = Announcements::default();
            burst.batch.set_source(port.id.slot);
            for (mac, vid) in stations
                .into_iter()
                .filter(|(_, vid)| uplink.vlan.carries(*vid))
            {
                if burst.batch.len() == BURST {
                    burst.deliver(uplink);
                }
                if let Some(at) = burst.push(&reverse_arp(mac)) {
                    burst.batch.set_tag(at, uplink.vlan.egress(Class::of(vid)));
                    said += 1;
                }
            }
            burst.deliver(uplink);
        }
        let counts = SwitchCounters {
            frames: said,
            unicast: said,
            announced: said,
            ..SwitchCounters::default()
        };
        self.counts.add(self.counts.stripe(), &counts);
    }
}

/// A station asks who it is (RFC 903): nobody answers, and all bridges learn where it is.
fn reverse_arp(mac: Mac) -> Vec<u8> {
    const REQUEST_REVERSE: u16 = 3;
    let mut frame = Vec::with_capacity(60);
    frame.extend(Mac::BROADCAST.0);
    frame.extend(mac.0);
    for word in [TYPE_RARP, arp::HARDWARE_ETHERNET, TYPE_IPV4] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend([6, 4]);
    frame.extend(REQUEST_REVERSE.to_be_bytes());
    for _ in 0..2 {
        frame.extend(mac.0);
        frame.extend([0; 4]);
    }
    frame.resize(60, 0);
    frame
}

/// Tells a port where those behind the others are. How many it was told of.
fn tell(this: &Port, snapshot: &Snapshot) -> u64 {
    let mut told = 0;
    let mut burst = Announcements::default();
    let others = snapshot.ports().filter(|port| port.id != this.id);
    for port in others.filter(|port| port.outlet.ready()) {
        for neighbour in port.neighbours.list() {
            let class = port.vlan.ingress(neighbour.vlan);
            let Some(class) = class.filter(|class| this.vlan.carries(class.vid)) else {
                continue;
            };
            if told == MOST {
                break;
            }
            if burst.batch.len() == BURST {
                burst.deliver(this);
            }
            if let Some(i) = burst.add(&neighbour) {
                burst.batch.set_tag(i, this.vlan.egress(class));
                told += 1;
            }
        }
    }
    burst.deliver(this);
    told
}

/// Announcements on their way.
struct Announcements {
    batch: Batch,
    scratch: Scratch,
}

impl Default for Announcements {
    fn default() -> Self {
        Self {
            batch: Batch::with_own_bytes(1 << 18),
            scratch: Scratch::default(),
        }
    }
}

impl Announcements {
    /// Adds one; its place in the batch.
    fn add(&mut self, neighbour: &Neighbour) -> Option<usize> {
        self.push(&neighbour.announcement())
    }

    fn push(&mut self, frame: &[u8]) -> Option<usize> {
        let added = self.batch.push_frame(NetHdr::default(), frame);
        added.ok().map(|()| self.batch.len() - 1)
    }

    /// Gives all to one port.
    fn deliver(&mut self, port: &Port) {
        let mut list = [0; BURST];
        let n = self.batch.len();
        for (i, slot) in list.iter_mut().enumerate() {
            *slot = i as u8;
        }
        if n != 0 {
            (port.outlet).deliver(&mut self.batch, &list[..n], &mut self.scratch);
        }
        self.batch.clear();
        self.scratch.call_all();
    }
}
