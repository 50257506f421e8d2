//! Frames cross whatever the size of rings and the shape of buffers.

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Layout, Nic, Receive};
use tandem_tests::frontend::frames::{mac, number_of, numbered, payload, raw};
use tandem_tests::frontend::memory::RegionSpec;
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::Order;
use tandem_tests::frontend::spec::{self, NetHdr};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);

/// Two VMs learn each other and exchange `count` frames each way, small and full.
fn exchange(a: &mut Nic, b: &mut Nic, count: u64) {
    for i in 0..count {
        let frame = numbered(A, B, i);
        a.send_plain(&frame);
        assert_eq!(b.recv().1, frame, "frame {i} from a to b");
        let full = raw(B, A, &payload(i as u32, 1500));
        b.send_plain(&full);
        assert_eq!(a.recv().1, full, "frame {i} from b to a");
    }
}

/// After a stop the back-end stands exactly where the driver does: nothing is held.
fn assert_rings_quiet(nic: &mut Nic) -> Result<()> {
    nic.flush();
    let bases = nic.stop()?;
    for (i, queue) in nic.pairs.iter().flat_map(|p| [&p.rx, &p.tx]).enumerate() {
        assert_eq!(bases[i] as u16, queue.ring.used_base(), "base of ring {i}");
    }
    Ok(())
}

/// Descriptors that cut the header itself, the addresses, and everything else.
#[test]
fn layouts() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    for layout in [
        Layout::Together,
        Layout::HeaderApart,
        Layout::Pieces(1),
        Layout::Pieces(5),
        Layout::Pieces(11),
        Layout::Pieces(12),
        Layout::Pieces(13),
        Layout::Pieces(512),
    ] {
        for features in [0, spec::RING_PACKED, spec::INDIRECT] {
            let config = Config {
                layout,
                ..Config::with(features)
            };
            let mut a = rig.nic("a", &config)?;
            let mut b = rig.nic("b", &config)?;
            for i in 0..20 {
                let frame = numbered(A, B, i);
                a.send_plain(&frame);
                assert_eq!(b.recv().1, frame, "{layout:?}, features {features:#x}");
            }
            drop((a, b));
            rig.wait_disconnected("a")?;
            rig.wait_disconnected("b")?;
        }
    }
    Ok(())
}

/// Receive buffers that cut the header and the frame everywhere, mergeable and not.
#[test]
fn receive_buffers() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let shapes: [(u64, Vec<u32>); 7] = [
        (0, vec![12, 1600]),
        (0, vec![5, 7, 14, 2000]),
        (0, vec![8; 200]),
        (0, vec![1530]),
        (spec::MRG_RXBUF, vec![64]),
        (spec::MRG_RXBUF, vec![13]),
        (spec::MRG_RXBUF, vec![12, 100, 7]),
    ];
    for (features, pieces) in shapes {
        for packed in [0, spec::RING_PACKED] {
            let plain = Config::with(features | packed);
            let config = Config {
                queue_size: 4096,
                receive: Some(Receive {
                    buffers: 600,
                    pieces: pieces.clone(),
                }),
                ..plain.clone()
            };
            let mut a = rig.nic("a", &plain)?;
            let mut b = rig.nic("b", &config)?;
            for i in 0..4 {
                let frame = raw(A, B, &payload(i, 1500 - 300 * i as usize));
                a.send_plain(&frame);
                assert_eq!(
                    b.recv().1,
                    frame,
                    "into {:?}",
                    &pieces[..pieces.len().min(5)]
                );
            }
            drop((a, b));
            rig.wait_disconnected("a")?;
            rig.wait_disconnected("b")?;
        }
    }
    rig.settled()?;
    Ok(())
}

/// Rings from the smallest to the largest size.
#[test]
fn queue_sizes() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    for (size, packed) in [
        (2, 0),
        (16, 0),
        (1024, 0),
        (32768, 0),
        (2, spec::RING_PACKED),
        // Packed rings need not be a power of two (virtio 1.2, 2.8.10.1).
        (17, spec::RING_PACKED),
        (1000, spec::RING_PACKED),
        (32768, spec::RING_PACKED),
    ] {
        let config = Config {
            queue_size: size,
            ..Config::with(packed)
        };
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &config)?;
        exchange(&mut a, &mut b, 200);
        assert_rings_quiet(&mut a)?;
        assert_rings_quiet(&mut b)?;
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    Ok(())
}

/// Ring indices pass 65,535 and start again.
#[test]
fn indices_wrap() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    for packed in [0, spec::RING_PACKED] {
        let config = Config::with(packed | spec::EVENT_IDX | spec::MRG_RXBUF);
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &config)?;
        exchange(&mut a, &mut b, 1);
        let mut next = 0;
        while next < 66_000 {
            let burst: Vec<_> = (next..next + 60)
                .map(|i| (NetHdr::default(), numbered(A, B, i)))
                .collect();
            a.send_burst(&burst);
            for i in next..next + 60 {
                assert_eq!(number_of(&b.recv().1), i);
            }
            next += 60;
        }
        a.flush();
        assert_rings_quiet(&mut b)?;
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    rig.settled()?;
    Ok(())
}

/// Memory in several regions with holes between them, one of them not at the start of its file;
/// buffers that lie across the seam of two adjacent regions.
#[test]
fn memory_regions() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    for order in Order::ALL {
        let config = Config {
            order,
            regions: vec![
                RegionSpec::new(0, 0xa0000),
                RegionSpec::new(0x100000, 1 << 20),
                RegionSpec {
                    file_offset: 0x3000,
                    ..RegionSpec::new(0x1_0000_0000, 64 << 20)
                },
            ],
            ..Config::with(spec::MRG_RXBUF)
        };
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &config)?;
        exchange(&mut a, &mut b, 100);
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    Ok(())
}

/// A buffer across two regions that touch is one buffer for a guest, which knows no regions.
#[test]
fn buffer_across_regions() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let half = 64 << 20;
    let config = Config {
        regions: vec![RegionSpec::new(0, half), RegionSpec::new(half, half)],
        ..Config::default()
    };
    let mut b = rig.nic("b", &config)?;
    let mut a = rig.nic("a", &config)?;
    let frame = raw(A, B, &payload(1, 1000));
    a.send_across(half - 100, &frame);
    assert_eq!(b.recv().1, frame);
    Ok(())
}

/// Frames for a VM without buffers are dropped with a reason; those after it has some again arrive.
#[test]
fn receiver_without_buffers() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let config = Config {
        receive: Some(Receive::each(4, 1600)),
        ..Config::default()
    };
    let mut a = rig.nic("a", &Config::default())?;
    let mut b = rig.nic("b", &config)?;
    b.send_plain(&numbered(B, A, 0));
    a.recv();
    for i in 0..10 {
        a.send_plain(&numbered(A, B, i));
        a.flush();
    }
    for i in 0..4 {
        assert_eq!(number_of(&b.recv().1), i, "the first four have room");
    }
    a.send_plain(&numbered(A, B, 10));
    assert_eq!(number_of(&b.recv().1), 10);
    let counters = rig.settled()?;
    assert_eq!(counters.ports["b"].to_vm, 5);
    assert_eq!(counters.ports["b"].drops(), 6);
    Ok(())
}
