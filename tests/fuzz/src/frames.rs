//! Any frames: the parser, the views of headers, and a switch with a port of each kind.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tandem_uplink::{
    Forwarder, Mac, Now, Outlet, PortId, PortPolicy, PortSpec, StormLimit, Switch, SwitchConfig,
    Vid, VlanPolicy,
};
use tandem_virtio_net::spec::{MAX_DELIVERED, NetHdr};
use tandem_virtio_net::wire::{
    arp, checksum, ethernet, icmp, ipv4, ipv6, parse, protocol, tcp, udp, vlan,
};
use tandem_virtio_net::{BURST, Batch, Counters, Scratch};

use crate::{Input, packets};

/// Frames of one input: enough for every state, and an end to it.
const MAX_OPERATIONS: usize = 200;

/// Addresses that meet each other again.
const MACS: [[u8; 6]; 8] = [
    [2, 0, 0, 0, 0, 1],
    [2, 0, 0, 0, 0, 2],
    [2, 0, 0, 0, 0, 3],
    [0x52, 0x54, 0, 0, 0, 4],
    [0xff; 6],
    [0x33, 0x33, 0, 0, 0, 1],
    [0x01, 0x80, 0xc2, 0, 0, 0x0e],
    [0; 6],
];

/// Bursts of frames, and changes to the switch between them.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(input.u8());
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.check();
}

/// The frames of the burst at hand, as they went in, and the port they came from.
#[derive(Default)]
struct Sent {
    frames: Vec<Vec<u8>>,
    from: usize,
    /// Not sent but made by the switch, for a port and for the others.
    announced: bool,
}

/// The far side of a port: compares what it gets with what was sent.
struct Sink {
    port: usize,
    /// What it gets carries no tag of the switch.
    untagged: AtomicBool,
    ready: AtomicBool,
    to_vm: Counters,
    sent: Arc<Mutex<Sent>>,
}

impl Outlet for Sink {
    fn deliver(&self, batch: &mut Batch, frames: &[u8], _: &mut Scratch) {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            sent.announced || sent.from != self.port,
            "back to where it came from"
        );
        assert!(!frames.is_empty());
        let mut bytes = vec![0; MAX_DELIVERED];
        for i in frames.iter().map(|i| usize::from(*i)) {
            let n = batch.linearize(i, &mut bytes);
            assert_eq!(n, batch.frame_len(i));
            let tag = batch.tag(i);
            assert!(tag.is_none() || !self.untagged.load(Ordering::Relaxed));
            let (tagged, got) = without_tag(&bytes[..n], tag.is_some());
            assert_eq!(tagged, tag);
            if sent.announced {
                let kind = u16::from_be_bytes([got[12], got[13]]);
                assert!(matches!(kind, ethernet::TYPE_ARP | ethernet::TYPE_IPV6));
                continue;
            }
            let frame = &sent.frames[i];
            let was_tagged = frame[12..14] == [0x81, 0];
            assert!(got == without_tag(frame, was_tagged).1, "a frame changed");
        }
        self.to_vm.add(frames.len() as u64, 0);
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// The tag of a frame, if it is said to have one, and the frame without it.
fn without_tag(frame: &[u8], tagged: bool) -> (Option<u16>, Vec<u8>) {
    if !tagged {
        return (None, frame.to_vec());
    }
    assert_eq!(frame[12..14], [0x81, 0]);
    let tci = u16::from_be_bytes([frame[14], frame[15]]);
    (Some(tci), [&frame[..12], &frame[16..]].concat())
}

struct Port {
    id: PortId,
    sink: Arc<Sink>,
    from_vm: Arc<Counters>,
    forwarder: Forwarder,
}

struct World {
    switch: Arc<Switch>,
    ports: Vec<Port>,
    batch: Batch,
    scratch: Scratch,
    sent: Arc<Mutex<Sent>>,
    now: Now,
    frames: u64,
    /// Of ports that are gone.
    dropped: u64,
    delivered: u64,
    named: u32,
}

impl World {
    fn new(kind: u8) -> Self {
        let config = SwitchConfig {
            mac_entries: if kind & 1 == 0 { 64 } else { 2 },
            mac_ageing: Duration::from_secs(2),
            flow_cache_bytes: if kind & 2 == 0 { 1 << 20 } else { 0 },
        };
        let mut world = Self {
            switch: Arc::new(Switch::new("fuzz", config)),
            ports: Vec::new(),
            batch: Batch::with_own_bytes(1 << 18),
            scratch: Scratch::default(),
            sent: Arc::default(),
            now: Now(1_000_000_000),
            frames: 0,
            dropped: 0,
            delivered: 0,
            named: 0,
        };
        let first = if kind & 4 == 0 { None } else { Some(0) };
        for (i, vlan) in [0, 1, 2].into_iter().enumerate() {
            let mac = first.filter(|_| i == 0);
            let port = world.port(i, policy(vlan, mac, kind >> 3));
            world.ports.push(port);
        }
        world
    }

    /// A new port in the place `i` of the input's three.
    fn port(&mut self, i: usize, policy: PortPolicy) -> Port {
        self.named += 1;
        let sink = Arc::new(Sink {
            port: i,
            untagged: AtomicBool::new(is_untagged(&policy.vlan)),
            ready: AtomicBool::new(true),
            to_vm: Counters::default(),
            sent: Arc::clone(&self.sent),
        });
        let from_vm = Arc::new(Counters::default());
        let name = format!("port{}", self.named);
        let mut spec = PortSpec::new(name, Arc::clone(&from_vm), sink.clone());
        spec.mac = policy.mac;
        spec.vlan = policy.vlan;
        spec.storm = policy.storm;
        spec.mac_limit = policy.mac_limit;
        let id = match self.switch.add_port(spec.clone()) {
            Ok(id) => id,
            // Its address is taken.
            Err(_) => {
                spec.mac = None;
                self.switch.add_port(spec).expect("room for three ports")
            }
        };
        Port {
            id,
            sink,
            from_vm,
            forwarder: Forwarder::new(Arc::clone(&self.switch), id),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        let i = usize::from(op >> 4) % self.ports.len();
        match op & 15 {
            0..=9 => self.burst(i, usize::from(op & 15) + 1, input),
            10 => self.burst(i, BURST, input),
            11 => {
                let by = Duration::from_millis(u64::from(input.u16()));
                self.now = self.now + by;
                self.switch.age(self.now);
            }
            12 => {
                let sink = &self.ports[i].sink;
                sink.ready.fetch_xor(true, Ordering::Relaxed);
            }
            13 => self.control(i, input.u8()),
            14 => {
                let policy = any_policy(input);
                let untagged = is_untagged(&policy.vlan);
                if self.switch.update_port(self.ports[i].id, policy).is_ok() {
                    let sink = &self.ports[i].sink;
                    sink.untagged.store(untagged, Ordering::Relaxed);
                }
            }
            _ => {
                assert!(self.switch.remove_port(self.ports[i].id));
                // What a port that is gone still sends is dropped and counted there.
                self.burst(i, 1, input);
                let new = self.port(i, any_policy(input));
                let old = std::mem::replace(&mut self.ports[i], new);
                self.dropped += dropped(&old.from_vm);
                self.delivered += old.sink.to_vm.frames();
            }
        }
        black_box(self.switch.mac_entries());
        black_box(self.switch.duplicates());
    }

    /// What the control plane does about a port, other than to give it another policy.
    fn control(&mut self, i: usize, op: u8) {
        let id = self.ports[i].id;
        match op % 4 {
            0 => self.switch.forget_learned(id),
            1 => self.switch.forget_neighbours(id),
            _ => {
                *self.sent.lock().unwrap_or_else(PoisonError::into_inner) = Sent {
                    announced: true,
                    ..Sent::default()
                };
                let before = self.switch.counters().announced;
                self.switch.announce(id, self.now);
                self.frames += self.switch.counters().announced - before;
            }
        }
    }

    fn burst(&mut self, i: usize, frames: usize, input: &mut Input<'_>) {
        let mut sent = Vec::new();
        while sent.len() < frames && !input.is_empty() {
            let (hdr, frame) = any_frame(input);
            looked_at(&frame, frame.len());
            looked_at(&frame[..frame.len().min(100)], frame.len());
            if self.batch.push_frame(hdr, &frame).is_ok() {
                sent.push(frame);
            }
        }
        assert_eq!(sent.len(), self.batch.len());
        self.frames += sent.len() as u64;
        *self.sent.lock().unwrap_or_else(PoisonError::into_inner) = Sent {
            frames: sent,
            from: i,
            announced: false,
        };
        let forwarder = &mut self.ports[i].forwarder;
        forwarder.forward(&mut self.batch, &mut self.scratch, self.now);
        self.batch.clear();
        self.now = self.now + Duration::from_millis(1);
    }

    /// Every frame ends once.
    fn check(&self) {
        let counts = self.switch.counters();
        let drops = self.ports.iter().map(|p| dropped(&p.from_vm)).sum::<u64>();
        let delivered = self.ports.iter().map(|p| p.sink.to_vm.frames());
        assert_eq!(counts.frames, self.frames);
        assert_eq!(
            counts.frames,
            drops + self.dropped + counts.unicast + counts.flooded
        );
        assert_eq!(
            delivered.sum::<u64>() + self.delivered,
            counts.unicast + counts.copies
        );
        assert!(self.switch.mac_entry_count() <= 64 + 3);
    }
}

fn dropped(counters: &Counters) -> u64 {
    counters.drops().map(|(_, n)| n).sum()
}

fn is_untagged(vlan: &VlanPolicy) -> bool {
    !matches!(vlan, VlanPolicy::Trunk { .. })
}

fn any_policy(input: &mut Input<'_>) -> PortPolicy {
    let (vlan, mac, rest) = (input.u8(), input.u8(), input.u8());
    policy(vlan, (mac & 1 != 0).then_some(mac >> 1), rest)
}

fn policy(vlan: u8, mac: Option<u8>, rest: u8) -> PortPolicy {
    let vid = |vid| Vid::new(vid).expect("a VLAN");
    let vlan = match vlan % 4 {
        0 => VlanPolicy::Access(vid(10)),
        1 => VlanPolicy::Trunk {
            vlans: "10-12".parse().expect("a list"),
            native: Some(vid(11)),
        },
        2 => VlanPolicy::Untagged,
        _ => VlanPolicy::Trunk {
            vlans: "1,10,4094".parse().expect("a list"),
            native: None,
        },
    };
    let storm = match rest % 4 {
        0 => StormLimit::UNLIMITED,
        1 => StormLimit::per_second(20),
        2 => StormLimit::per_second(0),
        _ => StormLimit::default(),
    };
    PortPolicy {
        mac: mac.map(|m| Mac(MACS[usize::from(m) % 8])),
        vlan,
        storm,
        mac_limit: if rest & 4 == 0 { 1024 } else { 2 },
    }
}

/// A frame with addresses of ours, or just bytes.
fn any_frame(input: &mut Input<'_>) -> (NetHdr, Vec<u8>) {
    let kind = input.u8();
    let macs = input.u8();
    let mut frame = match kind % 4 {
        0 => {
            let n = usize::from(input.u8());
            return (NetHdr::default(), input.take(n).to_vec());
        }
        1 => packets::frame(input),
        _ => {
            let mut bytes = vec![0; 12];
            if kind & 4 != 0 {
                bytes.extend([
                    0x81,
                    0,
                    input.u8(),
                    input.one_of(&[0, 1, 10, 11, 12, 13, 255]),
                ]);
            }
            let n = usize::from(input.u8() % 64);
            bytes.extend(input.take(n));
            bytes.resize(bytes.len().max(if kind & 8 == 0 { 60 } else { 14 }), 0);
            bytes
        }
    };
    if frame.len() >= 12 {
        frame[..6].copy_from_slice(&MACS[usize::from(macs & 7)]);
        frame[6..12].copy_from_slice(&MACS[usize::from(macs >> 3 & 7)]);
    }
    let hdr = if kind & 16 == 0 {
        NetHdr::default()
    } else {
        packets::header(input, &frame)
    };
    (hdr, frame)
}

/// All that can be asked of the headers in `head`, the start of a frame of `len` bytes.
fn looked_at(head: &[u8], len: usize) {
    let parsed = parse(head, len);
    if let Some(need) = parsed.needs() {
        assert!(head.len() < need && need <= len, "{need} of {len}");
    }
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    assert!(l3 <= head.len() && l4 <= head.len() && usize::from(parsed.payload) <= head.len());
    assert!(l4 == 0 || (l3 < l4 && parsed.l4 <= parsed.payload));
    assert!(!parsed.has_l4() || parsed.l4 < parsed.payload);
    black_box(parsed.key.words());
    if parsed.ip_version().is_none() {
        assert!(!parsed.is_fragment() && parsed.protocol == 0);
    }
    let Ok(frame) = ethernet::Frame::new_checked(head) else {
        assert!(head.len() < ethernet::HEADER_LEN);
        return;
    };
    black_box((frame.dst().is_link_local(), frame.src().is_unicast()));
    if let Ok(tag) = vlan::Tag::new_checked(&head[ethernet::TYPE_AT..]) {
        assert_eq!(parsed.tpid, tag.tpid());
        // The parser wants a type behind it too.
        if tag.rest().len() >= 2 {
            assert_eq!(parsed.tci[0], tag.tci());
        }
        black_box((tag.tci().pcp(), tag.tci().dei(), tag.tci().vid()));
    }
    // At layer 3 and where else it might be.
    for at in [l3, ethernet::HEADER_LEN, ethernet::HEADER_LEN + 4] {
        if let Some(bytes) = head.get(at..) {
            layer_3(bytes);
        }
    }
    if parsed.has_l4() && parsed.protocol == protocol::TCP {
        let segment = tcp::Segment::new_checked(&head[l4..]).expect("a TCP header");
        assert_eq!(
            segment.payload().len(),
            head.len() - usize::from(parsed.payload)
        );
    }
}

fn layer_3(bytes: &[u8]) {
    if let Ok(packet) = arp::Packet::new_checked(bytes) {
        black_box((packet.operation(), packet.sender_mac(), packet.sender_ip()));
        black_box((packet.target_mac(), packet.target_ip()));
    }
    if let Ok(packet) = ipv4::Packet::new_checked(bytes) {
        black_box((packet.traffic_class(), packet.id(), packet.ttl()));
        black_box((packet.flags_and_offset(), packet.is_fragment()));
        black_box((packet.src(), packet.dst(), packet.options()));
        layer_4(packet.payload());
        let mut copy = bytes.to_vec();
        let mut header = ipv4::HeaderMut::new_checked(&mut copy).expect("it was one");
        header.set_id(7);
        header.fill_checksum();
        let packet = ipv4::Packet::new_checked(&copy).expect("it still is one");
        assert!(packet.verify_checksum());
    }
    if let Ok(packet) = ipv6::Packet::new_checked(bytes) {
        black_box((
            packet.traffic_class(),
            packet.flow_label(),
            packet.hop_limit(),
        ));
        black_box((packet.src(), packet.dst(), packet.payload_len()));
        layer_4(packet.payload());
        if let Ok(upper) = ipv6::walk_extensions(packet.next_header(), packet.payload()) {
            layer_4(&packet.payload()[upper.offset.min(packet.payload().len())..]);
        }
    }
    layer_4(bytes);
}

fn layer_4(bytes: &[u8]) {
    if let Ok(segment) = tcp::Segment::new_checked(bytes) {
        black_box((segment.src_port(), segment.dst_port(), segment.seq()));
        black_box((segment.ack(), segment.flags(), segment.window()));
        black_box((segment.checksum(), segment.options(), segment.payload()));
    }
    if let Ok(datagram) = udp::Datagram::new_checked(bytes) {
        black_box((datagram.src_port(), datagram.dst_port()));
        black_box((datagram.length(), datagram.checksum(), datagram.payload()));
    }
    if let Ok(message) = icmp::Message::new_checked(bytes) {
        black_box((
            message.kind(),
            message.code(),
            message.checksum(),
            message.body(),
        ));
    }
    // Summing in two pieces is summing at once.
    let (a, b) = bytes.split_at(bytes.len() / 3);
    let whole = checksum::Checksum::new().bytes(bytes).partial();
    let pieces = checksum::Checksum::new().bytes(a).bytes(b).partial();
    assert!(whole == pieces || ([0, 0xffff].contains(&whole) && [0, 0xffff].contains(&pieces)));
}
