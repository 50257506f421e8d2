//! What forwarding costs: nanoseconds per frame for some numbers of flows.
//!
//!     cargo run --release --example forward -p tandem-uplink
//!
//! One port sends bursts of 64 frames to four others, which take them without looking. Each flow
//! has its own source address, and goes to one of 64 stations; frames of different flows follow
//! each other, which is the worst order for every cache.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use tandem_uplink::{
    Forwarder, Mac, Now, Outlet, PortSpec, StormLimit, Switch, SwitchConfig, VlanPolicy,
};
use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::{BURST, Batch, Counters, Scratch};

/// Takes everything.
struct Sink(Counters);

impl Outlet for Sink {
    fn deliver(&self, batch: &mut Batch, frames: &[u8], _: &mut Scratch) {
        self.0.add(frames.len() as u64, 0);
        black_box(batch.head(usize::from(frames[0])));
    }

    fn ready(&self) -> bool {
        true
    }
}

fn station(n: usize) -> Mac {
    let [.., a, b, c] = n.to_be_bytes();
    Mac([2, 0, 0, a, b, c])
}

fn frame(dst: Mac, src: Mac) -> Vec<u8> {
    let mut bytes = [dst.0, src.0].concat();
    bytes.resize(60, 0);
    bytes
}

/// A queue of a new port.
fn port(switch: &Arc<Switch>, name: &str, macs: u32) -> Forwarder {
    let counters = Arc::new(Counters::default());
    let mut spec = PortSpec::new(name, counters, Arc::new(Sink(Counters::default())));
    spec.storm = StormLimit::UNLIMITED;
    spec.vlan = VlanPolicy::Untagged;
    spec.mac_limit = macs;
    let id = switch.add_port(spec).expect("a new switch takes the port");
    Forwarder::new(switch.clone(), id)
}

/// Bursts that together hold one frame of each flow.
fn bursts(flows: usize, stations: usize, sources: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    for first in (0..flows.max(BURST)).step_by(BURST) {
        let mut batch = Batch::with_own_bytes(70_000 + BURST * 80);
        for n in first..first + BURST {
            let flow = n % flows;
            let to = station(flow / sources % stations);
            let from = station(1000 + flow % sources);
            batch
                .push_frame(NetHdr::default(), &frame(to, from))
                .expect("room for a burst");
        }
        batches.push(batch);
    }
    batches
}

fn measure(flows: usize) {
    const STATIONS: usize = 64;
    let sources = flows.div_ceil(STATIONS);
    let switch = Arc::new(Switch::new("bench", SwitchConfig::default()));
    let mut scratch = Scratch::default();
    let mut sender = port(&switch, "sender", 2000);
    for n in 0..4 {
        let mut receiver = port(&switch, &format!("receiver{n}"), 1000);
        for station_of_port in (n..STATIONS).step_by(4) {
            let mut batch = Batch::with_own_bytes(70_000);
            let hello = frame(Mac::BROADCAST, station(station_of_port));
            batch
                .push_frame(NetHdr::default(), &hello)
                .expect("room for a frame");
            receiver.forward(&mut batch, &mut scratch, Now(0));
        }
    }
    let mut batches = bursts(flows, STATIONS, sources);
    let mut run = |frames: usize| {
        let start = Instant::now();
        for _ in 0..frames.div_ceil(batches.len() * BURST) {
            for batch in &mut batches {
                sender.forward(batch, &mut scratch, Now(0));
            }
        }
        let done = frames.div_ceil(batches.len() * BURST) * batches.len() * BURST;
        start.elapsed().as_nanos() as f64 / done as f64
    };
    run(3_000_000); // learn, and let the cache grow
    let ns = (0..5).map(|_| run(4_000_000)).fold(f64::MAX, f64::min);
    let flooded = switch.counters().flooded;
    println!("{flows:>6} flows: {ns:>6.1} ns per frame ({flooded} flooded)");
}

fn main() {
    [1, 64, 1024, 65_536].into_iter().for_each(measure);
}
