//! The policy pipeline: what a frame without a known verdict goes through.
//!
//! Stages, each of which may end the frame: source address, reserved destination, VLAN of the
//! port, owner of the source address (and learning it), destination.

use tandem_virtio_net::DropReason;

use super::flow_cache::Key;
use super::mac_table::{MacKey, MacTable, Pin};
use super::snapshot::{Port, Snapshot};
use super::verdict::Verdict;
use crate::Mac;
use crate::policy::vlan::Class;

/// A key of addresses and tag: `destination 48 · tag 16`, `source 48 · flags 16`.
pub(crate) const L2_WORDS: usize = 2;
/// Flag of a key: the frame has a tag.
const TAGGED: u64 = 1;
/// Flag of a key: there is another 802.1Q tag behind the first.
const DOUBLE: u64 = 2;
/// Flag of every key: whatever the addresses, it differs from the key of an empty place.
const KEY: u64 = 4;

/// What is looked at in a frame, as a flow key. None: it is too short for addresses.
#[inline]
pub(crate) fn key_of(head: &[u8], tag: Option<u16>) -> Option<Key<L2_WORDS>> {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *head.first_chunk()?;
    let dst = u64::from_be_bytes([a, b, c, d, e, f, 0, 0]);
    let src = u64::from_be_bytes([g, h, i, j, k, l, 0, 0]);
    Some(match tag {
        None => [dst, src | KEY],
        Some(tci) => {
            let double = if head.get(16..18) == Some(&[0x81, 0]) {
                DOUBLE
            } else {
                0
            };
            [dst | u64::from(tci), src | KEY | TAGGED | double]
        }
    })
}

fn mac(word: u64) -> Mac {
    let [a, b, c, d, e, f, ..] = word.to_be_bytes();
    Mac([a, b, c, d, e, f])
}

fn tag(key: &Key<L2_WORDS>) -> Option<u16> {
    (key[1] & TAGGED != 0).then_some(key[0] as u16)
}

/// A verdict and where it came from.
#[derive(Clone, Copy)]
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    /// The VLAN, for a verdict that floods.
    pub(crate) class: Class,
    /// The slots of source and destination, for a verdict that may be kept.
    pub(crate) relied_on: Option<(Pin, Pin)>,
    /// The source address was not learned though it could have been, for want of room.
    pub(crate) unlearned: bool,
    /// The port may send from this address in this VLAN; false also of a verdict out of the cache.
    pub(crate) admitted: bool,
}

impl Judged {
    /// A verdict that is not kept.
    fn once(verdict: Verdict) -> Self {
        Self {
            verdict,
            class: Class::default(),
            relied_on: None,
            unlearned: false,
            admitted: false,
        }
    }

    fn drop(reason: DropReason) -> Self {
        Self::once(Verdict::drop(reason))
    }

    /// A verdict out of the flow cache.
    #[inline]
    pub(crate) fn cached(verdict: Verdict) -> Self {
        Self::once(verdict)
    }
}

/// The pipeline as one port sees it.
#[derive(Clone, Copy)]
pub(crate) struct Pipeline<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) table: &'a MacTable,
    pub(crate) port: &'a Port,
    /// Seconds of the monotonic clock.
    pub(crate) now: u64,
}

impl Pipeline<'_> {
    /// Judges a frame with this key.
    pub(crate) fn judge(&self, key: &Key<L2_WORDS>) -> Judged {
        let (dst, src) = (mac(key[0]), mac(key[1]));
        if !src.is_unicast() {
            return Judged::drop(DropReason::BadSourceMac);
        }
        if dst.is_link_local() {
            return Judged::drop(DropReason::LinkLocal);
        }
        let class = self.port.vlan.ingress(tag(key));
        let Some(class) = class.filter(|_| key[1] & DOUBLE == 0) else {
            return Judged::drop(DropReason::VlanNotAllowed);
        };
        let learned = match self.source(class.vid, src) {
            Ok(learned) => learned,
            Err(_) if self.port.uplink => return Judged::drop(DropReason::OwnFrame),
            Err(()) => return Judged::drop(DropReason::SpoofedMac),
        };
        let (verdict, relied_on) = self.destination(class, dst);
        Judged {
            verdict,
            class,
            relied_on: learned.zip(relied_on),
            unlearned: learned.is_none(),
            admitted: true,
        }
    }

    /// Where the source address is noted, if it is. An error: it belongs to another port.
    pub(super) fn source(&self, vid: u16, src: Mac) -> Result<Option<Pin>, ()> {
        match self.snapshot.fixed(vid, src) {
            Some(port) if port.id == self.port.id => Ok(Some(Pin::NONE)),
            // While nobody is there, its station may be elsewhere: it has moved to another host.
            Some(port) if self.port.uplink && !port.outlet.at_home() => {
                Ok(self
                    .table
                    .learn(MacKey::new(vid, src), &self.port.account, self.now))
            }
            Some(_) => Err(()),
            // Else a frame that the network gives back would draw to the wire what is for its sender.
            None if self.port.uplink && self.is_own(vid, src) => {
                // Unless it was taken from the wire: whoever did that shall not cut off others.
                let key = MacKey::new(vid, src);
                match self.table.was_taken_from(key, self.port.id.slot) {
                    true => Ok(None),
                    false => Err(()),
                }
            }
            None => Ok(self
                .table
                .learn(MacKey::new(vid, src), &self.port.account, self.now)),
        }
    }

    /// Whether a port of ours is in use by this station. Not while nobody is there, however short ago it
    /// said something: it may have moved to another host.
    fn is_own(&self, vid: u16, src: Mac) -> bool {
        let (key, account) = (MacKey::new(vid, src), &self.port.account);
        let left = |(port, _): (&Port, Pin)| !port.outlet.at_home();
        self.table.is_in_use_elsewhere(key, account, self.now)
            && !self.learned_owner(vid, src).is_some_and(left)
    }

    /// The verdict by destination, and the slot it relies on if it may be kept.
    fn destination(&self, class: Class, dst: Mac) -> (Verdict, Option<Pin>) {
        let Some((to, pin)) = self.owner(class.vid, dst) else {
            return (Verdict::FLOOD, None);
        };
        // What it is still held for goes after a station that has left by the wire, wherever it comes from: the
        // network may not know yet.
        if to.uplink
            && let Some(port) = self.left(class.vid, dst)
        {
            let verdict = Verdict::deliver(port.id.slot, port.vlan.egress(class));
            return (verdict, None);
        }
        if to.id == self.port.id {
            return (Verdict::drop(DropReason::Hairpin), None);
        }
        (
            Verdict::deliver(to.id.slot, to.vlan.egress(class)),
            Some(pin),
        )
    }

    /// The port that a single station's address is on.
    fn owner(&self, vid: u16, dst: Mac) -> Option<(&Port, Pin)> {
        if dst.is_multicast() {
            return None;
        }
        let fixed = self.snapshot.fixed(vid, dst);
        if let Some(port) = fixed.filter(|port| port.outlet.at_home()) {
            return Some((port, Pin::NONE));
        }
        let fixed = fixed.map(|port| (port, Pin::NONE));
        self.learned_owner(vid, dst).or(fixed)
    }

    /// The port that a station has left just now, which still takes frames for it.
    fn left(&self, vid: u16, dst: Mac) -> Option<&Port> {
        let slot = self.table.left(MacKey::new(vid, dst))?;
        let port = self.snapshot.at(slot)?;
        (port.id != self.port.id && port.outlet.ready()).then_some(port)
    }

    fn learned_owner(&self, vid: u16, dst: Mac) -> Option<(&Port, Pin)> {
        let (owner, pin) = self.table.find(MacKey::new(vid, dst))?;
        // What was learned on a port that this snapshot does not have yet, or no longer, is not
        // to be believed.
        let port = self.snapshot.at(owner.port)?;
        (port.account.owner == owner).then_some((port, pin))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tandem_virtio_net::{Batch, Counters, Scratch};

    use super::*;
    use crate::switch::{Outlet, PortSpec, Switch, SwitchConfig};

    struct Nowhere;

    impl Outlet for Nowhere {
        fn deliver(&self, _: &mut Batch, _: &[u8], _: &mut Scratch) {}
        fn ready(&self) -> bool {
            true
        }
    }

    fn spec(name: &str) -> PortSpec {
        PortSpec::new(name, Arc::new(Counters::default()), Arc::new(Nowhere))
    }

    fn key(dst: u8, src: u8) -> Key<L2_WORDS> {
        key_of(&[2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, src], None).expect("long enough")
    }

    /// Judges a frame from the port called `from`.
    fn judge(switch: &Switch, snapshot: &Snapshot, from: &str, key: &Key<L2_WORDS>) -> Verdict {
        let port = snapshot.ports().find(|p| p.name == from).expect("the port");
        Pipeline {
            snapshot,
            table: &switch.table,
            port,
            now: 0,
        }
        .judge(key)
        .verdict
    }

    #[test]
    fn a_burst_with_an_old_snapshot_does_not_take_a_new_port_for_the_old_one() {
        let switch = Switch::new("default", SwitchConfig::default());
        switch.add_port(spec("a")).unwrap();
        let gone = switch.add_port(spec("gone")).unwrap();
        let old = switch.snapshot.load_full();
        switch.remove_port(gone);
        let new = switch.add_port(spec("new")).unwrap();
        assert_eq!(new.slot, gone.slot);
        let current = switch.snapshot.load_full();
        assert_eq!(judge(&switch, &current, "new", &key(9, 2)), Verdict::FLOOD);
        let to_new = Verdict::deliver(new.slot, None);
        assert_eq!(judge(&switch, &current, "a", &key(2, 1)), to_new);
        assert_eq!(judge(&switch, &old, "a", &key(2, 1)), Verdict::FLOOD);
        // Nor is anything learned for the port that is gone.
        assert_eq!(judge(&switch, &old, "gone", &key(9, 3)), Verdict::FLOOD);
        assert_eq!(judge(&switch, &current, "a", &key(3, 1)), Verdict::FLOOD);
    }

    #[test]
    fn no_key_is_that_of_an_empty_place() {
        assert_ne!(key_of(&[0; 60], None), Some([0; L2_WORDS]));
        assert_eq!(key_of(&[0; 11], None), None);
        assert_ne!(key(1, 2), key(2, 1));
    }
}
