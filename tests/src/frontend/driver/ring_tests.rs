//! The driver notices what a device must not do. The device is played by hand.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::*;
use crate::frontend::driver::check_header;
use crate::frontend::memory::RegionSpec;
use crate::frontend::spec::NetHdr;

/// A ring of four with three receive buffers of 100 bytes, named 10, 11, 12.
fn ring(features: u64) -> (Arc<GuestRam>, Ring) {
    let ram = GuestRam::new(&[RegionSpec::new(0, 1 << 20)]).expect("memory");
    let ram = Arc::new(ram);
    let mut ring = Ring::new(ram.clone(), 0, 4, features);
    for slot in 10..13 {
        let pieces = [Piece {
            gpa: 0x8000,
            len: 100,
        }];
        ring.add(&Buffer {
            pieces: &pieces,
            writable: true,
            table: None,
            slot,
        });
    }
    ring.publish();
    (ram, ring)
}

/// The head or id of the `n`-th buffer made available.
fn id(ram: &GuestRam, ring: &Ring, n: u64) -> u32 {
    let parts = ring.parts();
    u32::from(match ring {
        Ring::Split(_) => ram.load16(parts.avail + 4 + 2 * n),
        Ring::Packed(_) => ram.load16(parts.desc + 16 * n + 12),
    })
}

/// Uses a buffer as entry `n` of a ring, and tells of `n + told` buffers used (split).
fn use_buffer(ram: &GuestRam, ring: &Ring, n: u64, id: u32, len: u32, told: u16) {
    let parts = ring.parts();
    match ring {
        Ring::Split(_) => {
            ram.store32(parts.used + 4 + 8 * n, id);
            ram.store32(parts.used + 8 + 8 * n, len);
            ram.store16(parts.used + 2, n as u16 + told);
        }
        Ring::Packed(_) => {
            let at = parts.desc + 16 * n;
            ram.store32(at + 8, len);
            ram.store16(at + 12, id as u16);
            let flags = spec::DESC_AVAIL | spec::DESC_USED | spec::DESC_WRITE;
            ram.store16(at + 14, flags);
        }
    }
}

fn complains(ring: &mut Ring) -> bool {
    catch_unwind(AssertUnwindSafe(|| ring.pop())).is_err()
}

#[test]
fn takes_what_is_right() {
    for features in [0, spec::RING_PACKED] {
        let (ram, mut ring) = ring(features);
        assert_eq!(ring.pop(), None);
        assert!(!ring.arm());
        for n in 0..3 {
            use_buffer(&ram, &ring, n, id(&ram, &ring, n), 50, 1);
            assert!(ring.arm());
            let slot = 10 + n as usize;
            assert_eq!(ring.pop(), Some(Done { slot, len: 50 }));
        }
        assert_eq!((ring.pop(), ring.held(), ring.room()), (None, 0, 4));
    }
}

#[test]
fn takes_a_batch_in_order() {
    for features in [0, spec::RING_PACKED] {
        let (ram, mut ring) = ring(features | spec::IN_ORDER);
        use_buffer(&ram, &ring, 0, id(&ram, &ring, 2), 50, 3);
        let done: Vec<_> = std::iter::from_fn(|| ring.pop()).collect();
        let slots: Vec<_> = done.iter().map(|d| (d.slot, d.len)).collect();
        assert_eq!(slots, [(10, 100), (11, 100), (12, 50)]);
    }
}

#[test]
fn notices_wrong_order() {
    for features in [0, spec::RING_PACKED] {
        let (ram, mut ring) = ring(features);
        use_buffer(&ram, &ring, 0, id(&ram, &ring, 1), 50, 1);
        assert!(complains(&mut ring));
    }
}

#[test]
fn notices_a_buffer_the_device_does_not_have() {
    for features in [0, spec::RING_PACKED, spec::IN_ORDER] {
        let (ram, mut ring) = ring(features);
        use_buffer(&ram, &ring, 0, 77, 50, 1);
        assert!(complains(&mut ring));
    }
}

#[test]
fn notices_a_length_beyond_the_buffer() {
    for features in [0, spec::RING_PACKED] {
        let (ram, mut ring) = ring(features);
        use_buffer(&ram, &ring, 0, id(&ram, &ring, 0), 101, 1);
        assert!(complains(&mut ring));
    }
}

#[test]
fn notices_an_index_too_far() {
    let (ram, mut ring) = ring(0);
    use_buffer(&ram, &ring, 0, id(&ram, &ring, 0), 50, 4);
    assert!(complains(&mut ring));
    let (ram, mut ring) = self::ring(0);
    ram.store16(ring.parts().used + 2, u16::MAX);
    assert!(complains(&mut ring));
}

#[test]
fn kicks_when_asked() {
    for features in [spec::EVENT_IDX, spec::EVENT_IDX | spec::RING_PACKED] {
        // The device has set its event to entry 3, then to entry 2 (`avail_event` behind the used
        // ring of four; offset with wrap counter 1, and DESC).
        for (event, kick) in [(3, true), (2, false), (9, false)] {
            let (ram, mut ring) = ring(features);
            let parts = ring.parts();
            if features & spec::RING_PACKED == 0 {
                ram.store16(parts.used + 4 + 8 * 4, event);
            } else if event < 4 {
                ram.store16(parts.used, event | 0x8000);
                ram.store16(parts.used + 2, 2);
            } else {
                ram.store16(parts.used + 2, 1);
            }
            let pieces = [Piece {
                gpa: 0x8000,
                len: 100,
            }];
            ring.add(&Buffer {
                pieces: &pieces,
                writable: true,
                table: None,
                slot: 13,
            });
            assert_eq!(ring.publish(), kick, "{features:#x}, event {event}");
        }
    }
}

#[test]
fn notices_header_bits_not_negotiated() {
    let judged = |hdr: NetHdr, features: u64| {
        catch_unwind(|| check_header(&hdr, features | spec::MRG_RXBUF, 100)).is_ok()
    };
    let csum = NetHdr {
        flags: spec::HDR_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..NetHdr::default()
    };
    let gso = |gso_type: u8| NetHdr {
        gso_type,
        gso_size: 10,
        ..csum
    };
    let all = spec::GUEST_CSUM | spec::GUEST_TSO4 | spec::GUEST_TSO6 | spec::GUEST_ECN;
    let cases = [
        (csum, spec::GUEST_CSUM),
        (gso(spec::GSO_TCPV4), spec::GUEST_TSO4),
        (gso(spec::GSO_TCPV6), spec::GUEST_TSO6),
        (gso(spec::GSO_TCPV4 | spec::GSO_ECN), spec::GUEST_ECN),
    ];
    for (hdr, needs) in cases {
        assert!(judged(hdr, all), "{hdr:?}");
        assert!(!judged(hdr, all & !needs), "{hdr:?}");
    }
    assert!(!judged(gso(spec::GSO_UDP_L4), all));
    assert!(judged(gso(spec::GSO_UDP_L4), all | spec::GUEST_USO4));
    let outside = NetHdr {
        csum_start: 90,
        ..csum
    };
    assert!(!judged(outside, all));
}
