//! Which member of a team a frame leaves by, and what may come in by which.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use tandem_uplink::nic::Nic;
use tandem_uplink::team::distribution::Distribution;
use tandem_uplink::team::{COLLECTS, GROUPS, Member, Mode, Place, Plan, Rest, Team};
use tandem_uplink::{Mac, Outlet, Switch, SwitchConfig};
use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::{Batch, Call, Counters, DropReason, Scratch};

/// A device that keeps what is sent, as long as it has room.
#[derive(Default)]
struct Wire {
    frames: Mutex<Vec<Vec<u8>>>,
    room: AtomicUsize,
    received: Arc<Counters>,
    sent: Arc<Counters>,
}

impl Nic for Wire {
    fn name(&self) -> &str {
        "wire"
    }
    fn driver(&self) -> &'static str {
        "loopback"
    }
    /// Nobody waits for it here.
    fn readable(&self) -> BorrowedFd<'_> {
        static NOTHING: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").expect("a file"));
        NOTHING.as_fd()
    }

    fn writable(&self) -> BorrowedFd<'_> {
        self.readable()
    }
    fn batch_bytes(&self) -> usize {
        0
    }
    fn read(&self, _: &mut Batch) -> io::Result<usize> {
        Ok(0)
    }
    fn send(&self, batch: &mut Batch, frames: &[u8], _: &mut Scratch) -> usize {
        let room = self.room.load(Ordering::Relaxed).min(frames.len());
        self.room.fetch_sub(room, Ordering::Relaxed);
        for i in &frames[..room] {
            let mut bytes = vec![0; batch.frame_len((*i).into())];
            batch.linearize((*i).into(), &mut bytes);
            self.frames.lock().unwrap().push(bytes);
        }
        self.sent.add(room as u64, 0);
        room
    }
    fn received(&self) -> &Arc<Counters> {
        &self.received
    }
    fn sent(&self) -> &Arc<Counters> {
        &self.sent
    }
    fn segmented(&self) -> (u64, u64) {
        (0, 0)
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Call for Woken {
    fn call(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A team and the wires of its members.
struct Rig {
    team: Team,
    plan: Plan,
    wires: Vec<Arc<Wire>>,
    members: Vec<Arc<Member>>,
    woken: Arc<Woken>,
    scratch: Scratch,
}

fn own(member: usize) -> Mac {
    Mac([2, 0xee, 0, 0, 0, member as u8])
}

impl Rig {
    fn new(n: usize, mode: Mode, distribution: Distribution) -> Self {
        let woken = Arc::new(Woken::default());
        let wires: Vec<Arc<Wire>> = (0..n).map(|_| Arc::default()).collect();
        let members: Vec<Arc<Member>> = (wires.iter().enumerate())
            .map(|(at, wire)| {
                wire.room.store(usize::MAX / 2, Ordering::Relaxed);
                let nic: Arc<dyn Nic> = wire.clone();
                Arc::new(Member::new(at as u32 + 1, nic, own(at), woken.clone()))
            })
            .collect();
        let places = members.iter().map(|member| Place {
            id: member.id,
            member: Some(Arc::clone(member)),
            collects: true,
            works: true,
            standby: false,
        });
        let plan = Plan {
            mode,
            distribution,
            places: places.collect(),
            ..Plan::default()
        };
        let team = Team::new(None);
        team.publish(&plan);
        Self {
            team,
            plan,
            wires,
            members,
            woken,
            scratch: Scratch::default(),
        }
    }

    fn set(&mut self, member: usize, works: bool) {
        let place = &mut self.plan.places[member];
        (place.works, place.collects) = (works, works);
        self.team.publish(&self.plan);
    }

    /// Sends frames as those of the port `port`; as they are afterwards.
    fn send(&mut self, port: u16, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut after = Vec::new();
        for burst in frames.chunks(64) {
            let mut batch = batch_of(burst);
            batch.set_source(port);
            let all: Vec<u8> = (0..burst.len() as u8).collect();
            self.team.deliver(&mut batch, &all, &mut self.scratch);
            for i in 0..batch.len() {
                let mut bytes = vec![0; batch.frame_len(i)];
                batch.linearize(i, &mut bytes);
                after.push(bytes);
            }
        }
        after
    }

    /// What each wire has got since the last time.
    fn got(&self) -> Vec<Vec<Vec<u8>>> {
        let take = |wire: &Arc<Wire>| std::mem::take(&mut *wire.frames.lock().unwrap());
        self.wires.iter().map(take).collect()
    }

    /// The wire of each flow, by its source port.
    fn flows(&mut self, n: u16) -> BTreeMap<u16, usize> {
        let frames: Vec<Vec<u8>> = (0..n).map(|flow| tcp(flow, 0)).collect();
        self.send(1, &frames);
        let mut flows = BTreeMap::new();
        for (wire, frames) in self.got().iter().enumerate() {
            for frame in frames {
                flows.insert(u16::from_be_bytes([frame[34], frame[35]]), wire);
            }
        }
        assert_eq!(flows.len(), n.into());
        flows
    }
}

fn batch_of(frames: &[Vec<u8>]) -> Batch {
    let mut batch = Batch::with_own_bytes(1 << 18);
    for frame in frames {
        batch.push_frame(NetHdr::default(), frame).unwrap();
    }
    batch
}

const VM: Mac = Mac([2, 0, 0, 0, 0, 1]);
const FAR: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn ethernet(dst: Mac, kind: [u8; 2]) -> Vec<u8> {
    let mut frame = vec![0; 64];
    frame[..6].copy_from_slice(&dst.0);
    frame[6..12].copy_from_slice(&VM.0);
    frame[12..14].copy_from_slice(&kind);
    frame
}

/// A TCP segment of flow `flow`.
fn tcp(flow: u16, number: u32) -> Vec<u8> {
    let mut frame = ethernet(FAR, [8, 0]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&50u16.to_be_bytes());
    frame[23] = 6;
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 9]);
    frame[34..36].copy_from_slice(&flow.to_be_bytes());
    frame[36..38].copy_from_slice(&443u16.to_be_bytes());
    frame[46] = 0x50;
    frame[54..58].copy_from_slice(&number.to_be_bytes());
    frame
}

#[test]
fn flows_are_spread_and_a_failure_moves_only_those_of_its_member() {
    for mode in [Mode::SwitchIndependent, Mode::Static, Mode::Lacp] {
        let mut rig = Rig::new(4, mode, Distribution::TransportPorts);
        let before = rig.flows(1000);
        for wire in 0..4 {
            let share = before.values().filter(|w| **w == wire).count();
            assert!(share <= 325, "{mode}: {share} of 1000");
        }
        rig.set(2, false);
        let during = rig.flows(1000);
        for (flow, wire) in &during {
            assert_ne!(*wire, 2);
            assert!(before[flow] == 2 || before[flow] == *wire);
        }
        rig.set(2, true);
        assert_eq!(rig.flows(1000), before);
    }
}

#[test]
fn the_standby_member_takes_the_flows_of_the_one_that_fails_and_gives_them_back() {
    let mut rig = Rig::new(3, Mode::SwitchIndependent, Distribution::TransportPorts);
    rig.plan.places[2].standby = true;
    rig.team.publish(&rig.plan);
    let before = rig.flows(200);
    assert!(before.values().all(|wire| *wire != 2));
    rig.set(0, false);
    for (flow, wire) in rig.flows(200) {
        assert_eq!(wire, if before[&flow] == 0 { 2 } else { 1 });
    }
    rig.set(0, true);
    assert_eq!(rig.flows(200), before);
    rig.set(0, false);
    rig.set(1, false);
    assert!(rig.flows(200).values().all(|wire| *wire == 2));
    rig.set(2, false);
    assert!(!rig.team.ready());
    rig.send(1, &[tcp(1, 1), tcp(2, 2)]);
    assert_eq!(rig.team.sent().dropped(DropReason::UplinkDown), 2);
}

#[test]
fn to_a_network_that_knows_nothing_a_station_is_behind_one_member() {
    let mut rig = Rig::new(3, Mode::SwitchIndependent, Distribution::TransportPorts);
    let arp = ethernet(FAR, [8, 6]);
    let broadcast = ethernet(Mac::BROADCAST, [8, 0]);
    let mut frames: Vec<Vec<u8>> = (0..60).map(|flow| tcp(flow, 0)).collect();
    frames.extend([arp.clone(), broadcast.clone()]);
    // Another receiver of a flooded frame gets it as it was.
    assert_eq!(rig.send(1, &frames), frames);
    let got = rig.got();
    assert!(got[0].contains(&arp) && got[0].contains(&broadcast));
    for (wire, frames) in got.iter().enumerate() {
        assert!(frames.len() > 5);
        let expected = if wire == 0 { VM } else { own(wire) };
        assert!(frames.iter().all(|frame| frame[6..12] == expected.0));
    }
    // The primary stays what it is when the first is back.
    rig.set(0, false);
    rig.set(0, true);
    rig.send(1, std::slice::from_ref(&arp));
    assert_eq!(
        rig.got().iter().position(|frames| !frames.is_empty()),
        Some(1)
    );
    for (mode, distribution) in [
        (Mode::Static, Distribution::TransportPorts),
        (Mode::SwitchIndependent, Distribution::Port),
    ] {
        let mut rig = Rig::new(3, mode, distribution);
        rig.send(1, &frames);
        let got = rig.got();
        assert!(got.iter().flatten().all(|frame| frame[6..12] == VM.0));
        if distribution == Distribution::Port {
            assert_eq!(got.iter().filter(|frames| !frames.is_empty()).count(), 1);
        }
    }
}

#[test]
fn a_port_can_have_a_member_of_its_own_while_that_works() {
    let switch = Arc::new(Switch::new("default", SwitchConfig::default()));
    let [_, port] = ["a", "b"].map(|name| common::Port::add(&switch, name, |_| {}).id);
    let mut rig = Rig::new(2, Mode::Static, Distribution::TransportPorts);
    rig.plan.pins = vec![(port, 2)];
    rig.team.publish(&rig.plan);
    let frames: Vec<Vec<u8>> = (0..50).map(|flow| tcp(flow, 0)).collect();
    let spread = |rig: &mut Rig, port| {
        rig.send(port, &frames);
        rig.got().iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(spread(&mut rig, 1), [0, 50]);
    assert!(spread(&mut rig, 0).iter().all(|n| *n > 0));
    rig.set(1, false);
    assert_eq!(spread(&mut rig, 1), [50, 0]);
}

#[test]
fn what_finds_no_room_waits_in_its_order_and_is_sent_by_the_devices_thread() {
    let mut rig = Rig::new(1, Mode::Static, Distribution::TransportPorts);
    rig.wires[0].room.store(10, Ordering::Relaxed);
    let frames: Vec<Vec<u8>> = (0..100).map(|n| tcp(1, n)).collect();
    rig.send(1, &frames[..50]);
    rig.wires[0].room.store(1000, Ordering::Relaxed);
    // There is room again, but others are in front.
    rig.send(1, &frames[50..]);
    assert_eq!(rig.woken.0.load(Ordering::Relaxed), 1);
    assert_eq!(rig.got()[0], frames[..10]);
    assert!(rig.members[0].is_waiting());
    let mut rest = Rest::default();
    rig.wires[0].room.store(20, Ordering::Relaxed);
    assert!(!rig.members[0].send_waiting(&mut rest, &mut rig.scratch));
    rig.wires[0].room.store(1000, Ordering::Relaxed);
    assert!(rig.members[0].send_waiting(&mut rest, &mut rig.scratch));
    assert_eq!(rig.got()[0], frames[10..]);
    assert!(!rig.members[0].is_waiting());
    // More than there is memory for is dropped and counted, and nothing is lost uncounted.
    rig.wires[0].room.store(0, Ordering::Relaxed);
    let many: Vec<Vec<u8>> = (0..10_000).map(|n| tcp(1, n)).collect();
    rig.send(1, &many);
    rig.wires[0].room.store(100_000, Ordering::Relaxed);
    rig.members[0].send_waiting(&mut rest, &mut rig.scratch);
    let dropped = rig.wires[0].sent.dropped(DropReason::UplinkFull);
    assert_eq!(rig.got()[0].len() as u64 + dropped, 10_000);
    assert!(dropped > 0);
}

#[test]
fn frames_to_all_come_in_by_one_member_and_what_is_for_the_team_by_any() {
    let rig = Rig::new(2, Mode::SwitchIndependent, Distribution::TransportPorts);
    let lacp = ethernet(Mac([1, 0x80, 0xc2, 0, 0, 2]), [0x88, 9]);
    let lldp = ethernet(Mac([1, 0x80, 0xc2, 0, 0, 0xe]), [0x88, 0xcc]);
    let stp = ethernet(Mac([1, 0x80, 0xc2, 0, 0, 0]), [0, 38]);
    let all = ethernet(Mac::BROADCAST, [8, 6]);
    let frames = [lacp, lldp, stp, all, tcp(1, 1)];
    let sift = |member: &Member| {
        let mut batch = batch_of(&frames);
        let mut control = BTreeSet::new();
        let ended = member.sift(&mut batch, |_, i| {
            control.insert(i);
        });
        (ended, control.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(sift(&rig.members[0]), (0b00011, vec![0, 1]));
    assert_eq!(sift(&rig.members[1]), (0b01111, vec![0, 1]));
    assert_eq!(rig.wires[1].received.dropped(DropReason::InactiveMember), 2);
    rig.members[1].set_takes(0);
    assert_eq!(sift(&rig.members[1]), (0b11111, vec![0, 1]));
    rig.members[1].set_takes(COLLECTS | GROUPS);
    assert_eq!(sift(&rig.members[1]), (0b00011, vec![0, 1]));
    assert_eq!(
        (rig.members[1].consumed(), rig.members[1].unicast()),
        (6, 3)
    );
}

/// Frames of each flow in turn, with pauses and a load that moves flows between the members.
#[test]
fn a_flow_that_moves_is_never_reordered() {
    let mut rig = Rig::new(2, Mode::Static, Distribution::Dynamic);
    let mut last = BTreeMap::new();
    let mut moved = false;
    let mut home = BTreeMap::new();
    for round in 0..40u32 {
        let mut frames = Vec::new();
        for flow in 0..40u16 {
            // Some flows are far heavier than others.
            let n = if flow % 8 == 0 { 200 } else { 1 };
            frames.extend((0..n).map(|k| tcp(flow, round * 1000 + k)));
        }
        rig.send(1, &frames);
        for (wire, frames) in rig.got().into_iter().enumerate() {
            for frame in frames {
                let flow = u16::from_be_bytes([frame[34], frame[35]]);
                let number = u32::from_be_bytes(frame[54..58].try_into().unwrap());
                assert!(
                    last.insert(flow, number)
                        .is_none_or(|before| before < number)
                );
                let before = home.insert((round, flow), wire);
                assert!(
                    before.is_none_or(|before| before == wire),
                    "moved in a burst"
                );
            }
        }
        rig.team.look();
        std::thread::sleep(std::time::Duration::from_millis(25));
        moved |= rig.team.flowlets_moved() > 0;
    }
    assert!(moved);
}
