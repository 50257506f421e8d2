//! The switch against a naive one: random ports, policies, frames and times give the same
//! deliveries, tags and drops.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Got, Port, SECOND, access, mac, tagged, trunk};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tandem_uplink::{Mac, Now, PortPolicy, StormLimit, Switch, SwitchConfig, VlanPolicy, VlanSet};
use tandem_virtio_net::DropReason;

const PORTS: usize = 5;
const AGEING: u64 = 20;
const TABLE: usize = 8;

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    Add(usize, Policy),
    Update(usize, Policy),
    Remove(usize),
    Ready(usize, bool),
    Burst(usize, Vec<Frame>),
    /// Seconds pass; then the switch ages its addresses.
    Pass(u64),
}

/// Indices into [`vlans`] and [`macs`], and the number of addresses to learn.
#[derive(Clone, Debug)]
struct Policy {
    vlan: usize,
    mac: Option<usize>,
    limit: u32,
}

#[derive(Clone, Debug)]
struct Frame {
    dst: usize,
    src: usize,
    tags: Vec<u16>,
}

fn vlans() -> Vec<VlanPolicy> {
    vec![
        VlanPolicy::Untagged,
        access(10),
        access(20),
        trunk("10,20", None),
        trunk("20-30", Some(10)),
        trunk("10", Some(20)),
    ]
}

/// Six stations, then what is no station.
fn macs() -> Vec<Mac> {
    let mut macs: Vec<Mac> = (0..6).map(mac).collect();
    macs.push(Mac::BROADCAST);
    macs.push(Mac([1, 0, 0x5e, 0, 0, 1]));
    macs.push(Mac([1, 0x80, 0xc2, 0, 0, 3]));
    macs.push(Mac([0; 6]));
    macs
}

/// The naive switch.
#[derive(Default)]
struct Model {
    ports: [Option<ModelPort>; PORTS],
    learned: HashMap<(u16, Mac), Entry>,
    now: u64,
}

struct ModelPort {
    policy: PortPolicy,
    ready: bool,
}

struct Entry {
    port: usize,
    seen: u64,
    moved: Option<u64>,
}

/// How a frame ended.
enum End {
    To(Vec<(usize, Option<u16>)>),
    Dropped(DropReason),
}

/// VLAN and priority of a frame that comes in, by IEEE 802.1Q and the tables in the manual.
fn classify(policy: &VlanPolicy, tags: &[u16]) -> Option<(u16, u16)> {
    let tci = match tags {
        [] => 0,
        [tci] => *tci,
        _ => return None,
    };
    let (vid, priority) = (tci & 0xfff, tci & 0xf000);
    let vid = match policy {
        VlanPolicy::Untagged if vid == 0 => 0,
        VlanPolicy::Access(v) if vid == 0 => v.get(),
        VlanPolicy::Trunk { native, .. } if vid == 0 => native.as_ref()?.get(),
        VlanPolicy::Uplink { native, .. } if vid == 0 => native.as_ref().map_or(0, |n| n.get()),
        VlanPolicy::Trunk { .. } | VlanPolicy::Uplink { .. } if member(policy, vid) => vid,
        _ => return None,
    };
    Some((vid, priority))
}

fn member(policy: &VlanPolicy, vid: u16) -> bool {
    match policy {
        VlanPolicy::Untagged => vid == 0,
        VlanPolicy::Access(v) => v.get() == vid,
        VlanPolicy::Trunk { vlans, native } => vlans
            .iter()
            .chain(native.map(|n| n.get()))
            .any(|v| v == vid),
        VlanPolicy::Uplink { native, .. } if vid == 0 => native.is_none(),
        VlanPolicy::Uplink { vlans, native } => {
            let listed = |set: &VlanSet| set.iter().any(|v| v == vid);
            (1..4095).contains(&vid)
                && (vlans.as_ref().is_none_or(listed) || native.map(|n| n.get()) == Some(vid))
        }
    }
}

fn leaves_with(policy: &VlanPolicy, (vid, priority): (u16, u16)) -> Option<u16> {
    match policy {
        VlanPolicy::Trunk { native, .. } if native.map(|n| n.get()) != Some(vid) => {
            Some(vid | priority)
        }
        VlanPolicy::Uplink { native, .. } if vid != 0 && native.map(|n| n.get()) != Some(vid) => {
            Some(vid | priority)
        }
        _ => None,
    }
}

impl Model {
    /// May a port have this policy? Two ports that share a VLAN cannot have the same address.
    fn allows(&self, at: usize, policy: &PortPolicy) -> bool {
        let shares = |other: &VlanPolicy| {
            (0..4095).any(|vid| member(other, vid) && member(&policy.vlan, vid))
        };
        policy.mac.is_none_or(|mac| {
            self.others(at)
                .all(|(_, p)| p.policy.mac != Some(mac) || !shares(&p.policy.vlan))
        })
    }

    fn others(&self, at: usize) -> impl Iterator<Item = (usize, &ModelPort)> {
        let ports = self.ports.iter().enumerate();
        ports
            .filter_map(move |(n, port)| Some((n, port.as_ref()?)))
            .filter(move |(n, _)| *n != at)
    }

    fn set_policy(&mut self, at: usize, policy: PortPolicy) {
        if let Some(mac) = policy.mac {
            self.learned.retain(|(_, m), _| *m != mac);
        }
        self.learned.retain(|_, e| e.port != at);
        let ready = self.ports[at].as_ref().is_none_or(|p| p.ready);
        self.ports[at] = Some(ModelPort { policy, ready });
    }

    fn fixed(&self, vid: u16, mac: Mac) -> Option<usize> {
        let mut ports = self.others(usize::MAX);
        let found = ports.find(|(_, p)| p.policy.mac == Some(mac) && member(&p.policy.vlan, vid));
        found.map(|(n, _)| n)
    }

    fn learn(&mut self, vid: u16, mac: Mac, at: usize, limit: u32) {
        let (now, total) = (self.now, self.learned.len());
        let full = self.learned.values().filter(|e| e.port == at).count() >= limit as usize;
        match self.learned.get_mut(&(vid, mac)) {
            Some(entry) if entry.port == at => entry.seen = now,
            Some(entry) if !full && entry.moved.is_none_or(|m| now - m >= 2) => {
                *entry = Entry {
                    port: at,
                    seen: now,
                    moved: Some(now),
                };
            }
            None if !full && total < TABLE => {
                self.learned.insert(
                    (vid, mac),
                    Entry {
                        port: at,
                        seen: now,
                        moved: None,
                    },
                );
            }
            _ => {}
        }
    }

    fn forward(&mut self, at: usize, frame: &Frame) -> Option<End> {
        let (dst, src) = (macs()[frame.dst], macs()[frame.src]);
        let port = self.ports[at].as_ref()?;
        if src.0[0] & 1 == 1 || src == Mac([0; 6]) {
            return Some(End::Dropped(DropReason::BadSourceMac));
        }
        if dst.0[..5] == [1, 0x80, 0xc2, 0, 0] && dst.0[5] < 16 {
            return Some(End::Dropped(DropReason::LinkLocal));
        }
        let Some(class) = classify(&port.policy.vlan, &frame.tags) else {
            return Some(End::Dropped(DropReason::VlanNotAllowed));
        };
        let limit = port.policy.mac_limit;
        match self.fixed(class.0, src) {
            Some(owner) if owner != at => return Some(End::Dropped(DropReason::SpoofedMac)),
            Some(_) => {}
            None => self.learn(class.0, src, at, limit),
        }
        let known = self
            .fixed(class.0, dst)
            .or_else(|| self.learned.get(&(class.0, dst)).map(|e| e.port));
        let tag = |p: &ModelPort| leaves_with(&p.policy.vlan, class);
        Some(match known {
            Some(to) if to == at => End::Dropped(DropReason::Hairpin),
            Some(to) => End::To(vec![(to, self.ports[to].as_ref().and_then(tag))]),
            None => {
                let members = self
                    .others(at)
                    .filter(|(_, p)| p.ready && member(&p.policy.vlan, class.0));
                let to: Vec<_> = members.map(|(n, p)| (n, tag(p))).collect();
                if to.is_empty() {
                    End::Dropped(DropReason::NoReceiver)
                } else {
                    End::To(to)
                }
            }
        })
    }
}

/// The real switch and the naive one, side by side.
struct Both {
    switch: Arc<Switch>,
    ports: [Option<Port>; PORTS],
    model: Model,
    numbers: u32,
}

impl Both {
    fn new() -> Self {
        let config = SwitchConfig {
            mac_entries: TABLE,
            mac_ageing: Duration::from_secs(AGEING),
            ..SwitchConfig::default()
        };
        let switch = Arc::new(Switch::new("default", config));
        Self {
            switch,
            ports: Default::default(),
            model: Model::default(),
            numbers: 0,
        }
    }

    fn policy(&self, policy: &Policy) -> PortPolicy {
        PortPolicy {
            mac: policy.mac.map(|n| macs()[n]),
            vlan: vlans()[policy.vlan].clone(),
            storm: StormLimit::UNLIMITED,
            mac_limit: policy.limit,
        }
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Add(at, policy) => self.add(*at, policy),
            Event::Update(at, policy) => self.update(*at, policy)?,
            Event::Remove(at) => {
                if let Some(port) = self.ports[*at].take() {
                    prop_assert!(self.switch.remove_port(port.id));
                    self.model.learned.retain(|_, e| e.port != *at);
                    self.model.ports[*at] = None;
                }
            }
            Event::Ready(at, ready) => {
                if let (Some(port), Some(model)) = (&self.ports[*at], &mut self.model.ports[*at]) {
                    port.sink.ready.store(*ready, Ordering::Relaxed);
                    model.ready = *ready;
                }
            }
            Event::Burst(at, frames) => self.burst(*at, frames)?,
            Event::Pass(seconds) => {
                self.model.now += seconds;
                let now = self.model.now;
                self.switch.age(Now(now * SECOND));
                self.model.learned.retain(|_, e| now - e.seen <= AGEING);
            }
        }
        prop_assert_eq!(self.learned(), self.expected_learned());
        Ok(())
    }

    fn add(&mut self, at: usize, policy: &Policy) {
        let policy = self.policy(policy);
        if self.ports[at].is_none() && self.model.allows(at, &policy) {
            let port = Port::add(&self.switch, &format!("p{at}"), |spec| {
                spec.mac = policy.mac;
                spec.vlan = policy.vlan.clone();
                spec.mac_limit = policy.mac_limit;
            });
            self.ports[at] = Some(port);
            self.model.set_policy(at, policy);
        }
    }

    fn update(&mut self, at: usize, policy: &Policy) -> Result<(), TestCaseError> {
        let policy = self.policy(policy);
        if let (Some(port), Some(old)) = (&self.ports[at], &self.model.ports[at]) {
            let allowed = self.model.allows(at, &policy);
            let same = old.policy.mac == policy.mac
                && old.policy.vlan == policy.vlan
                && old.policy.mac_limit == policy.mac_limit;
            let result = self.switch.update_port(port.id, policy.clone());
            prop_assert_eq!(result.is_ok(), allowed);
            if allowed && !same {
                self.model.set_policy(at, policy);
            }
        }
        Ok(())
    }

    /// Sends a burst through both, and compares what each port gets and what is dropped.
    fn burst(&mut self, at: usize, frames: &[Frame]) -> Result<(), TestCaseError> {
        let Some(port) = &mut self.ports[at] else {
            return Ok(());
        };
        let before: Vec<u64> = DropReason::ALL.iter().map(|r| port.dropped(*r)).collect();
        let mut expected: [Vec<Got>; PORTS] = Default::default();
        let mut dropped = vec![0; DropReason::ALL.len()];
        let mut bytes = Vec::new();
        for frame in frames {
            self.numbers += 1;
            bytes.push(tagged(
                macs()[frame.dst],
                macs()[frame.src],
                &frame.tags,
                self.numbers,
            ));
            match self.model.forward(at, frame) {
                Some(End::To(to)) => {
                    to.iter()
                        .for_each(|(n, tag)| expected[*n].push((self.numbers, *tag)));
                }
                Some(End::Dropped(reason)) => dropped[reason as usize] += 1,
                None => prop_assert!(false, "the model has the port"),
            }
        }
        port.send(&bytes, self.model.now * SECOND);
        for reason in DropReason::ALL {
            let count = port.dropped(*reason) - before[*reason as usize];
            prop_assert_eq!(count, dropped[*reason as usize], "{}", reason.name());
        }
        for (port, expected) in self.ports.iter().zip(expected) {
            prop_assert_eq!(port.as_ref().map(Port::got).unwrap_or_default(), expected);
        }
        Ok(())
    }

    /// The learned addresses of each port, in all VLANs.
    fn learned(&self) -> [Vec<Mac>; PORTS] {
        self.ports.each_ref().map(|port| match port {
            Some(port) => self.switch.learned_macs(port.id),
            None => Vec::new(),
        })
    }

    fn expected_learned(&self) -> [Vec<Mac>; PORTS] {
        std::array::from_fn(|at| {
            let mine = self.model.learned.iter().filter(|(_, e)| e.port == at);
            let mut macs: Vec<Mac> = mine.map(|((_, mac), _)| *mac).collect();
            macs.sort();
            macs.dedup();
            macs
        })
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    let mac = prop_oneof![3 => Just(None), 1 => (0..3usize).prop_map(Some)];
    // The first VLAN policy more often, so that ports meet.
    let vlan = prop_oneof![2 => Just(0), 3 => 0..vlans().len()];
    (vlan, mac, 1..5u32).prop_map(|(vlan, mac, limit)| Policy { vlan, mac, limit })
}

fn frames() -> impl Strategy<Value = Frame> {
    let station = || prop_oneof![12 => 0..6usize, 1 => 6..macs().len()];
    let tags = prop_oneof![
        5 => Just(vec![]),
        4 => prop::sample::select(vec![10, 20, 25, 0x600a, 0xe014]).prop_map(|t| vec![t]),
        1 => prop::sample::select(vec![0, 0xa000, 99, 4095]).prop_map(|t| vec![t]),
        1 => prop::sample::select(vec![0, 10]).prop_map(|t| vec![t, 20]),
    ];
    (station(), station(), tags).prop_map(|(dst, src, tags)| Frame { dst, src, tags })
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..PORTS, policies()).prop_map(|(at, p)| Event::Add(at, p)),
        1 => (0..PORTS, policies()).prop_map(|(at, p)| Event::Update(at, p)),
        1 => (0..PORTS).prop_map(Event::Remove),
        1 => (0..PORTS, any::<bool>()).prop_map(|(at, ready)| Event::Ready(at, ready)),
        20 => (0..PORTS, prop::collection::vec(frames(), 1..20))
            .prop_map(|(at, frames)| Event::Burst(at, frames)),
        3 => (0..10u64).prop_map(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x7a17de),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_switch_does_what_a_naive_one_does(
        policies in prop::collection::vec(policies(), PORTS),
        events in prop::collection::vec(events(), 1..60),
    ) {
        let mut both = Both::new();
        for (at, policy) in policies.into_iter().enumerate() {
            both.happen(&Event::Add(at, policy))?;
        }
        for event in &events {
            both.happen(event)?;
        }
        let counters = both.switch.counters();
        prop_assert!(counters.unicast + counters.flooded <= counters.frames);
        prop_assert!(counters.flooded <= counters.copies);
    }
}
