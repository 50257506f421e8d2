//! Writes the seeds: inputs that get each target to where it is interesting.
//!
//!     cargo run --manifest-path tests/fuzz/Cargo.toml --example seeds
//!
//! Run it after changing what the bytes of an input mean.

use std::path::Path;

use tandem_migration::frames;
use tandem_migration::state::{
    Counters, Identity, LearnedAddress, PairCounters, PortCounters, PortState,
};

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (target, seeds) in [
        ("rings", rings()),
        ("frames", frames()),
        ("offload", offload()),
        ("messages", messages()),
        ("handoff", handoff()),
    ] {
        let dir = root.join(target);
        std::fs::create_dir_all(&dir)?;
        for (i, seed) in seeds.iter().enumerate() {
            std::fs::write(dir.join(format!("{i:02}")), seed)?;
        }
    }
    Ok(())
}

/// A frame as `packets::frame` reads it: its kind and the bytes of its payload.
fn frame(kind: u8, payload: u16) -> Vec<u8> {
    let [a, b] = payload.to_le_bytes();
    vec![kind, a, b, 0]
}

/// A vnet header as `packets::header` reads it: a segment offload, or only a partial checksum.
fn header(gso: u8, size: u16) -> Vec<u8> {
    let [a, b] = size.to_le_bytes();
    vec![1, gso, a, b]
}

/// Buffers for both queues and some bursts, for each size and set of features.
fn rings() -> Vec<Vec<u8>> {
    let rx = |shape: u8| [&[0x80, shape, 0, shape << 4, 0, 8][..]].concat();
    let tx = |shape: u8, frame: Vec<u8>, header: Vec<u8>, len: u16| {
        let [a, b] = len.to_le_bytes();
        [vec![0, shape | 2, 0x40, shape << 2, a, b], frame, header].concat()
    };
    let seed = |kind: u8| {
        let plain = vec![0; 11];
        let mut s = vec![kind];
        for shape in [1, 5, 17, 13] {
            s.extend(rx(shape));
        }
        s.extend(tx(0, frame(0, 100), plain.clone(), 166));
        s.extend(tx(8, frame(0x21, 300), plain, 390));
        s.extend([13, 0x4c]);
        // A segment offload, which is cut up for most kinds.
        s.extend(tx(16, frame(0, 1400), header(1, 400), 1466));
        s.extend([13, 0]);
        s.extend([0x9f, 0, 3, 0, 22, 1, 25, 23, 2, 14, 0x10]);
        // Again, after a stop.
        s.extend([21, 0x95]);
        s.extend(rx(1));
        s.extend(tx(0, frame(4, 60), header(0, 0), 110));
        s.extend([13, 1, 18, 40]);
        s.extend(frame(0, 1000));
        s.extend(header(1, 200));
        s
    };
    // A buffer at the end of memory, and a frame that fills it.
    let edge = |kind: u8| {
        let mut s = vec![kind, 0x80, 0xe1, 8, 0, 0, 2, 18, 128];
        s.extend(frame(0, 500));
        s.extend([0; 11]);
        s
    };
    (0..12).map(seed).chain([0, 2, 3, 6].map(edge)).collect()
}

/// Stations that find each other, tags, storms, moves, and changes to ports.
fn frames() -> Vec<Vec<u8>> {
    let short = |kind: u8, macs: u8| [&[kind, macs, 4, 0x88, 0xb5, 1, 2][..]].concat();
    let tagged = |vid: u8, macs: u8| [&[6, macs, 0, vid, 4, 8, 0, 0x45, 0][..]].concat();
    let burst = |port: u8, list: &[Vec<u8>]| {
        let mut s = vec![port << 4 | (list.len() - 1) as u8];
        s.extend(list.concat());
        s
    };
    let full = |kind, macs: u8| [vec![1, macs], frame(kind, 80)].concat();
    let talk = |kind: u8| {
        [
            vec![kind],
            burst(0, &[short(2, 0o04), short(2, 0o01)]),
            burst(1, &[tagged(2, 0o10), tagged(3, 0o14), tagged(5, 0o12)]),
            burst(2, &[short(2, 0o24), short(2, 0o20), full(0, 0o20)]),
            burst(0, &[short(2, 0o01), full(0x20, 0o01), full(3, 0o01)]),
            burst(1, &[tagged(2, 0o10), full(1, 0o10), full(0x34, 0o10)]),
            vec![11, 0xff, 0x0f],
            burst(2, &[short(2, 0o04), short(2, 0o64), short(2, 0o27)]),
            vec![0x1e, 3, 1, 1],
            burst(1, &[tagged(1, 0o14), short(2, 0o14)]),
            vec![0x0f],
            short(2, 0o04),
            vec![0, 0, 0],
            burst(0, &[full(4, 0o04)]),
            vec![0x2c, 0x1d],
            burst(1, &[short(2, 0o14)]),
        ]
        .concat()
    };
    [0, 1, 2, 4, 8, 0x13, 0x18].map(talk).to_vec()
}

/// Each segment offload, with options and extension headers, and plain bytes.
fn offload() -> Vec<Vec<u8>> {
    let seed = |guest: u8, kind: u8, payload: u16, gso: u8, size: u16| {
        let mut s = vec![0, guest, 64];
        s.extend(frame(kind, payload));
        s.extend(header(gso, size));
        s
    };
    vec![
        seed(0, 0, 100, 0, 0),
        seed(1, 4, 100, 0, 0),
        seed(0, 0, 3000, 1, 1000),
        seed(1, 9, 3000, 1, 1448),
        seed(0, 0x38, 3000, 2, 1200),
        seed(0xff, 0x20, 3000, 2, 1200),
        seed(0, 4, 3000, 3, 500),
        seed(0x21, 0x27, 3000, 3, 500),
        seed(0, 0, 0xffc0, 4, 1448),
        seed(0, 0x10, 30, 1, 8),
        [&[1, 0, 20, 0][..], &[0; 10], &[0xff; 40]].concat(),
    ]
}

/// Sessions of VMMs: orderly ones with traffic, and those that change their mind.
fn messages() -> Vec<Vec<u8>> {
    let rx = |ring: u8| vec![ring << 4 | 10, 0, 0x20, 0, 8];
    let tx = |ring: u8| {
        let mut s = vec![ring << 4 | 10, 0, 0, 1, 0];
        s.extend(frame(0, 100));
        s.push(0);
        s
    };
    // A message as it should be: request by its place in the list, no mistakes.
    let say = |usual: u8, rest: &[u8]| [&[0, usual][..], rest].concat();
    let traffic = [rx(0), rx(0), rx(2), tx(1), vec![12], tx(3), tx(1), vec![12]].concat();
    vec![
        [vec![0], traffic.clone()].concat(),
        [vec![2], traffic.clone(), vec![0x5e], traffic.clone()].concat(),
        [vec![8], traffic.clone(), vec![15, 0x8e]].concat(),
        // The memory goes away.
        [vec![0], traffic.clone(), vec![0x0e, 1], traffic.clone()].concat(),
        // Asked for all there is to ask.
        [
            vec![4],
            say(14, &[0, 0]),
            say(15, &[0, 0, 0, 0]),
            say(0, &[0, 0]),
            say(16, &[0, 0]),
            say(20, &[0, 0, 0]),
            say(19, &[0, 12, 0, 0]),
            say(1, &[0; 18]),
            say(4, &[0, 0, 0]),
            say(7, &[0, 0, 0]),
        ]
        .concat(),
        // Memory in regions that come and go, a log, rings that stop and start.
        [
            vec![0],
            traffic.clone(),
            say(5, &[0, 0, 0x10, 0, 0]),
            say(22, &[0, 0, 0]),
            say(21, &[0, 0, 0]),
            say(10, &[0, 0]),
            say(9, &[0, 0, 0, 0]),
            say(11, &[0, 0]),
            say(17, &[0, 1, 0]),
            traffic.clone(),
            say(13, &[0, 0]),
            say(23, &[0, 0, 0]),
        ]
        .concat(),
        [vec![0x0c], vec![0x2e, 0, 0, 0, 0, 0xf, 0, 0, 0], traffic].concat(),
        // Half a message.
        vec![0, 0x3e, 9, 1, 0, 0, 0, 1, 0, 0, 0, 8],
    ]
}

/// A state of each kind of section, as it is and without its checksum, two frames, and a plan.
fn handoff() -> Vec<Vec<u8>> {
    let mac = [2, 0, 0, 0, 0, 1];
    let counters = Counters {
        frames: 7,
        bytes: 700,
        drops: vec![("no_buffers".to_owned(), 3)],
    };
    let pair = PairCounters {
        from_vm: counters.clone(),
        to_vm: counters.clone(),
        kicks: 1,
        calls: 2,
    };
    let state = PortState {
        identity: Identity {
            name: "web1".to_owned(),
            mac: Some(mac),
            feature_level: 1,
            queue_pairs: 1,
            mtu: 1500,
        },
        counters: Some(PortCounters {
            switch: counters,
            pairs: vec![pair],
        }),
        addresses: vec![LearnedAddress { mac, vlan: 7 }],
        ..PortState::default()
    };
    let state = state.to_bytes().expect("a state");
    let mut two = vec![2];
    for len in [60, 0] {
        frames::add(&mut two, &[0; 12], len, |room| room.fill(9));
    }
    let plan = br#"{"vm":"web1","source":"alpha","limit_s":60,"ports":[{"name":"web1","mac":"02:00:00:00:00:01",
        "feature_level":1,"queue_pairs":1,"mtu":1500,"vlan":"access 7"}],"requires":["x"]}"#;
    let of = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    vec![of(0, &state), of(1, &state), two, of(3, plan)]
}
