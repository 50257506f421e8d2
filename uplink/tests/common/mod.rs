//! Ports that write down what they are given, and frames to give them.
#![allow(dead_code, unreachable_pub)] // no test uses all of it

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tandem_uplink::{
    Forwarder, Mac, Now, Outlet, PortId, PortSpec, StormLimit, Switch, Vid, VlanPolicy,
};
use tandem_virtio_net::spec::{MAX_DELIVERED, NetHdr};
use tandem_virtio_net::{Batch, Counters, DropReason, Scratch};

/// One second of the clock.
pub const SECOND: u64 = 1_000_000_000;

/// What a port was given: the number of the frame and its tag.
pub type Got = (u32, Option<u16>);

/// The far side of a port.
pub struct Sink {
    pub ready: AtomicBool,
    pub got: Mutex<Vec<Got>>,
    /// Frames that are not of the test's own type.
    pub others: Mutex<Vec<Vec<u8>>>,
    pub to_vm: Counters,
}

impl Default for Sink {
    fn default() -> Self {
        Self {
            ready: AtomicBool::new(true),
            got: Mutex::default(),
            others: Mutex::default(),
            to_vm: Counters::default(),
        }
    }
}

impl Outlet for Sink {
    fn deliver(&self, batch: &mut Batch, frames: &[u8], _: &mut Scratch) {
        let mut bytes = vec![0; MAX_DELIVERED];
        for i in frames {
            let n = batch.linearize(usize::from(*i), &mut bytes);
            match read_frame(&bytes[..n]) {
                Some(got) => self.got.lock().unwrap().push(got),
                None => self.others.lock().unwrap().push(bytes[..n].to_vec()),
            }
            self.to_vm.add(1, n as u64);
        }
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// A port with its far side and a queue into the switch.
pub struct Port {
    pub id: PortId,
    pub sink: Arc<Sink>,
    pub from_vm: Arc<Counters>,
    pub forwarder: Forwarder,
}

impl Port {
    /// Adds a port with the policy that `policy` sets, flooding as much as it likes.
    pub fn add(switch: &Arc<Switch>, name: &str, policy: impl FnOnce(&mut PortSpec)) -> Self {
        let sink = Arc::new(Sink::default());
        let from_vm = Arc::new(Counters::default());
        let mut spec = PortSpec::new(name, from_vm.clone(), sink.clone());
        spec.storm = StormLimit::UNLIMITED;
        policy(&mut spec);
        let id = switch.add_port(spec).expect("the port can be added");
        Self {
            id,
            sink,
            from_vm,
            forwarder: Forwarder::new(switch.clone(), id),
        }
    }

    /// Sends frames in one burst.
    pub fn send(&mut self, frames: &[Vec<u8>], now: u64) {
        let mut batch = Batch::with_own_bytes(1 << 18);
        for frame in frames {
            batch.push_frame(NetHdr::default(), frame).unwrap();
        }
        self.from_vm.add(frames.len() as u64, 0);
        self.forwarder
            .forward(&mut batch, &mut Scratch::default(), Now(now));
    }

    /// What has arrived since the last time; nothing else may have.
    pub fn got(&self) -> Vec<Got> {
        assert!(self.sink.others.lock().unwrap().is_empty());
        std::mem::take(&mut self.sink.got.lock().unwrap())
    }

    /// What else has arrived since the last time.
    pub fn others(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sink.others.lock().unwrap())
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.from_vm.dropped(reason)
    }
}

/// A unicast address with a number.
pub fn mac(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    Mac([0x52, 0x54, a, b, c, d])
}

/// An untagged frame with a number.
pub fn frame(dst: Mac, src: Mac, number: u32) -> Vec<u8> {
    tagged(dst, src, &[], number)
}

/// A frame with tags and a number.
pub fn tagged(dst: Mac, src: Mac, tags: &[u16], number: u32) -> Vec<u8> {
    let mut bytes = [dst.0, src.0].concat();
    for tci in tags {
        bytes.extend([0x81, 0]);
        bytes.extend(tci.to_be_bytes());
    }
    bytes.extend([0x88, 0xb5]);
    bytes.extend(number.to_be_bytes());
    bytes.resize(60, 0);
    bytes
}

/// A frame of the test's own type.
fn read_frame(bytes: &[u8]) -> Option<Got> {
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (tag, at) = if word(12) == 0x8100 {
        (Some(word(14)), 16)
    } else {
        (None, 12)
    };
    let number = u32::from(word(at + 2)) << 16 | u32::from(word(at + 4));
    assert_ne!(word(at), 0x8100, "one tag at most");
    (word(at) == 0x88b5).then_some((number, tag))
}

pub fn access(vid: u16) -> VlanPolicy {
    VlanPolicy::Access(Vid::new(vid).unwrap())
}

pub fn trunk(vlans: &str, native: Option<u16>) -> VlanPolicy {
    let native = native.map(|vid| Vid::new(vid).unwrap());
    VlanPolicy::Trunk {
        vlans: vlans.parse().unwrap(),
        native,
    }
}
