//! Frames that waited for a station which has moved elsewhere meanwhile follow it there.

use tandem_virtio_net::{Batch, Scratch};

use super::counters::SwitchCounters;
use super::mac_table::MacKey;
use super::{PortId, Switch};
use crate::Mac;

impl Switch {
    /// Sends the frames of `batch`, which were for port `id` and are as it would get them, to where
    /// their destinations have been heard since, if they are among `stations`; how many went there. Those to groups, and
    /// to others that nobody knew, did so by themselves: they were flooded.
    ///
    /// To the wire they go with the source address `source`, an address of our own: the network is not
    /// to take their senders, which may be on the wire as well, for being here.
    pub fn redirect(
        &self,
        (id, stations): (PortId, &[(Mac, u16)]),
        batch: &mut Batch,
        source: Mac,
        scratch: &mut Scratch,
    ) -> u64 {
        let snapshot = self.snapshot.load_full();
        let Some(this) = snapshot.get(id) else {
            return 0;
        };
        let (mut sent, mut gone) = (0, 0);
        for i in 0..batch.len() {
            let dst = batch.head(i).first_chunk().map(|mac| Mac(*mac));
            let Some(dst) = dst.filter(|mac| mac.is_unicast()) else {
                gone += 1;
                continue;
            };
            let Some(class) = this.vlan.ingress(batch.tag(i)) else {
                continue;
            };
            if !stations.contains(&(dst, class.vid)) {
                gone += 1;
                continue;
            }
            let found = self.table.find(MacKey::new(class.vid, dst));
            let port = found.and_then(|(owner, _)| snapshot.at(owner.port));
            let Some(port) = port.filter(|port| port.id != id && port.vlan.carries(class.vid))
            else {
                continue;
            };
            batch.set_tag(i, port.vlan.egress(class));
            if port.uplink {
                batch.set_source_mac(i, source);
            }
            batch.set_source(id.slot);
            port.outlet.deliver(batch, &[i as u8], scratch);
            sent += 1;
        }
        let counts = SwitchCounters {
            frames: sent,
            unicast: sent,
            announced: sent,
            ..SwitchCounters::default()
        };
        self.counts.add(self.counts.stripe(), &counts);
        sent + gone
    }
}
