//! Frames from one guest to another, through rings of every kind: what arrives is what a model
//! of a few lines says.

mod driver;

use std::collections::VecDeque;

use driver::*;
use proptest::prelude::*;
use tandem_virtio_net::DropReason;
use tandem_virtio_net::spec::*;

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const REGIONS: [(u64, u64); 3] = [
    (0x1000, 0x28_0000),
    (0x28_1000, 0x3001), // a neighbour, which is another mapping
    (0x1_0000_0000, 0x10_0000),
];

/// One side of the wire.
#[derive(Clone, Debug)]
struct Side {
    size: u16,
    features: u64,
    base: u16,
}

#[derive(Clone, Debug)]
enum Step {
    /// Frames of these lengths.
    Send(Vec<usize>, Shape),
    /// Chains of these buffers, as many times.
    Post(Vec<usize>, usize, Option<usize>),
    Pump,
}

fn sides() -> impl Strategy<Value = Side> {
    let split = prop::sample::select(vec![1u16, 2, 4, 8, 16, 64, 256]);
    let packed = prop::sample::select(vec![1u16, 2, 3, 5, 7, 16, 100, 256]);
    let rest = (any::<[bool; 4]>(), any::<u16>(), any::<bool>());
    (any::<bool>(), split, packed, rest).prop_map(|(is_packed, split, packed, rest)| {
        let ([v1, mergeable, in_order, event_idx], base, wrap) = rest;
        let mut features = u64::from(mergeable) << VIRTIO_NET_F_MRG_RXBUF
            | u64::from(in_order) << VIRTIO_F_IN_ORDER
            | u64::from(event_idx) << VIRTIO_F_EVENT_IDX
            | 1 << VIRTIO_F_INDIRECT_DESC;
        if v1 {
            features |= V1;
        }
        if is_packed {
            let base = (base % packed) | u16::from(wrap) << 15;
            return Side {
                size: packed,
                features: features | V1 | 1 << VIRTIO_F_RING_PACKED,
                base,
            };
        }
        // Near the end of the index's 16 bits, half of the time.
        let base = if wrap {
            base
        } else {
            0u16.wrapping_sub(base % 32)
        };
        Side {
            size: split,
            features,
            base,
        }
    })
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 14usize..300,
        2 => 240usize..1515,
        1 => 1500usize..9000,
        1 => 60_000usize..=MAX_FRAME,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let cuts = prop::collection::vec(
        prop_oneof![1usize..20, Just(0), 100usize..2000, Just(12)],
        1..4,
    );
    let indirect = prop::option::of(0usize..3);
    let shape = (cuts, 1usize..40, indirect.clone()).prop_map(|(mut cuts, most, indirect)| {
        if cuts.iter().all(|c| *c == 0) {
            cuts.push(33);
        }
        Shape {
            cuts,
            most,
            indirect,
        }
    });
    let sizes = prop_oneof![
        3 => prop::collection::vec(prop_oneof![Just(1526usize), 1usize..400, Just(4096)], 1..4),
        1 => prop::collection::vec(1usize..30, 1..20),
        1 => Just(vec![12, 65_600]),
        1 => Just(vec![65_600]),
    ];
    prop_oneof![
        3 => (prop::collection::vec(len(), 1..12), shape).prop_map(|(l, s)| Step::Send(l, s)),
        3 => (sizes, 1usize..40, indirect).prop_map(|(mut l, n, i)| {
            if l.iter().sum::<usize>() < NET_HDR_LEN {
                l.push(NET_HDR_LEN); // 5.1.6.3.1: the header always fits
            }
            Step::Post(l, n, i)
        }),
        2 => Just(Step::Pump),
    ]
}

/// What should come of the frames: those that arrive with their buffers, and the drops.
struct Model {
    mergeable: bool,
    hdr_len: usize,
    /// Of each chain: bytes, buffers.
    posted: VecDeque<(usize, usize)>,
    arrive: Vec<(Vec<u8>, usize)>,
    full: u64,
    small: u64,
}

impl Model {
    fn deliver(&mut self, frame: Vec<u8>) {
        let need = frame.len() + self.hdr_len;
        let (mut room, mut parts) = (0, 0);
        for (n, (bytes, buffers)) in self.posted.iter().enumerate() {
            room += bytes;
            parts += buffers;
            if parts <= 256 && room >= need {
                self.posted.drain(..=n);
                self.arrive.push((frame, n + 1));
                return;
            }
            if !self.mergeable || parts > 256 {
                self.small += 1;
                return;
            }
        }
        self.full += 1;
    }
}

/// Runs the steps, again and again, so that rings wrap.
fn run(from: &Side, to: &Side, steps: &[Step], rounds: usize, seed: u64) {
    let (ram_a, ram_b) = (Ram::new(&REGIONS), Ram::new(&REGIONS));
    let mut a = Nic::new(&ram_a, from.size, from.features, from.base, seed);
    let mut b = Nic::new(&ram_b, to.size, to.features, to.base, seed + 1);
    let mut wire = Wire::new((&a, from.base), (&b, to.base));
    let mut model = Model {
        mergeable: has(to.features, VIRTIO_NET_F_MRG_RXBUF),
        hdr_len: NetHdr::len_for(to.features),
        posted: VecDeque::new(),
        arrive: Vec::new(),
        full: 0,
        small: 0,
    };
    let mut rng = Rng(seed + 2);
    let mut sent = VecDeque::new();
    let (mut frames, mut bytes, mut arrived) = (0, 0, (0, 0));
    for step in steps
        .iter()
        .chain([&Step::Pump])
        .cycle()
        .take(rounds * (steps.len() + 1))
    {
        match step {
            Step::Send(lens, shape) => {
                for n in lens {
                    let mut frame = rng.bytes(*n);
                    if *n >= 18 && rng.once_in(3) {
                        frame[12..14].copy_from_slice(&[0x81, 0]);
                    } else {
                        frame[12..14].copy_from_slice(&[0x08, 0]);
                    }
                    if a.send(NetHdr::default(), &frame, shape) {
                        sent.push_back(frame);
                    }
                }
            }
            Step::Post(sizes, n, indirect) => {
                for _ in 0..*n {
                    // Memory is the limit before the ring is, if the ring is long.
                    let held: usize = model.posted.iter().map(|p| p.0).sum();
                    if held < 1 << 20 && b.post(sizes, *indirect) {
                        model.posted.push_back((sizes.iter().sum(), sizes.len()));
                    }
                }
            }
            Step::Pump => {
                wire.pump_all();
                for f in sent.drain(..) {
                    (frames, bytes) = (frames + 1, bytes + f.len() as u64);
                    model.deliver(f);
                }
                a.reap();
                assert_eq!(a.offered(), 0, "nothing is held");
                let got = b.recv();
                let expected = std::mem::take(&mut model.arrive);
                assert_eq!(got.len(), expected.len());
                for (got, (frame, buffers)) in got.iter().zip(&expected) {
                    assert!(
                        got.frame == *frame,
                        "a frame of {} bytes arrives as it was",
                        frame.len()
                    );
                    assert_eq!((got.buffers, got.hdr), (*buffers, NetHdr::default()));
                    arrived.0 += 1;
                    arrived.1 += frame.len() as u64;
                }
            }
        }
    }
    assert_eq!(
        (wire.from_vm.frames(), wire.from_vm.bytes()),
        (frames, bytes)
    );
    assert_eq!((wire.to_vm.frames(), wire.to_vm.bytes()), arrived);
    assert_eq!(wire.from_vm.drops().count(), 0);
    assert_eq!(wire.to_vm.dropped(DropReason::RingFull), model.full);
    assert_eq!(wire.to_vm.dropped(DropReason::BufferTooSmall), model.small);
    ram_a.check_guards();
    ram_b.check_guards();
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn any_ring_carries_any_frame_in_any_layout(
        from in sides(),
        to in sides(),
        steps in prop::collection::vec(step(), 1..12),
        seed in any::<u32>(),
    ) {
        run(&from, &to, &steps, 8, seed.into());
    }
}

/// Every ring at the size the specification ends at, around the end of index and ring.
#[test]
fn the_longest_rings_wrap() {
    for features in [V1, V1 | 1 << VIRTIO_F_RING_PACKED] {
        for in_order in [0, 1 << VIRTIO_F_IN_ORDER] {
            let base = if features == V1 {
                65_400
            } else {
                32_600 | 0x8000
            };
            let side = Side {
                size: 32_768,
                features: features | in_order,
                base,
            };
            let steps = [
                Step::Post(vec![2048], 64, None),
                Step::Send(vec![100; 50], Shape::plain()),
            ];
            run(&side, &side, &steps, 20, 5);
        }
    }
}

/// Small rings, many laps.
#[test]
fn small_rings_wrap_many_times() {
    for (size, packed) in [
        (1, false),
        (2, false),
        (1, true),
        (2, true),
        (3, true),
        (8, false),
    ] {
        let features = V1 | u64::from(packed) << VIRTIO_F_RING_PACKED;
        let base = if packed { 0x8000 } else { 65_000 };
        let side = Side {
            size,
            features,
            base,
        };
        let steps = [
            Step::Post(vec![200], size.into(), None),
            Step::Send(vec![60; size.into()], Shape::plain()),
        ];
        run(&side, &side, &steps, 3000, 9);
    }
}
