//! What is known of the stations behind a port from elsewhere: the switch that they were on before.

use super::neighbour::Neighbour;
use super::pipeline::Pipeline;
use super::{PortId, Switch};
use crate::{Mac, Now};

impl Switch {
    /// Learns addresses as if the port had just sent a frame from each, in its VLAN (0: none). So
    /// those are passed over that it may not send from, and those beyond its limit. The number of
    /// those that were learned.
    pub fn learn(&self, id: PortId, addresses: &[(Mac, u16)], now: Now) -> usize {
        let snapshot = self.snapshot.load();
        let Some(port) = snapshot.get(id) else {
            return 0;
        };
        let pipeline = Pipeline {
            snapshot: &snapshot,
            table: &self.table,
            port,
            now: now.seconds(),
        };
        let possible = addresses
            .iter()
            .filter(|(mac, vid)| mac.is_unicast() && port.vlan.carries(*vid));
        possible
            .filter(|(mac, vid)| matches!(pipeline.source(*vid, *mac), Ok(Some(_))))
            .count()
    }

    /// Replaces the neighbours behind a port, those heard last first. Their claims count as heard just
    /// now; those are passed over that the port could not have made.
    pub fn set_neighbours(&self, id: PortId, mut neighbours: Vec<Neighbour>) {
        let snapshot = self.snapshot.load();
        let Some(port) = snapshot.get(id) else {
            return;
        };
        neighbours.retain(|n| {
            port.vlan.ingress(n.vlan).is_some_and(|class| {
                let owner = snapshot.fixed(class.vid, n.mac);
                owner.is_none_or(|owner| owner.id == id)
            })
        });
        port.neighbours.replace(neighbours);
    }
}
