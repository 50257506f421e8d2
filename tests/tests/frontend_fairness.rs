//! What a guest that misbehaves costs its neighbours in speed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::{Config, Nic, Receive, write_descriptor};
use tandem_tests::frontend::frames::numbered;
use tandem_tests::frontend::memory::RegionSpec;
use tandem_tests::frontend::session::{Order, Session};
use tandem_tests::frontend::spec::{self, NetHdr};
use tandem_tests::frontend::street::{C, D, Street};
use tandem_tests::lab::say;

/// How long is measured each time, in turns with and without the hostile guest.
const WHILE: Duration = Duration::from_millis(300);
const TURNS: usize = 5;
/// What the neighbours must keep of their speed where each of five threads has a CPU: those of the
/// three VMs, and the two here. With fewer CPUs the hostile VM has its fair share of them, as every
/// busy VM has, and only what is far beyond that is a failure.
fn bound() -> f64 {
    match std::thread::available_parallelism() {
        Ok(cpus) if cpus.get() >= 5 => 0.5,
        _ => 0.05,
    }
}

/// How many bursts the neighbours exchange in a second.
fn speed(c: &mut Nic, d: &mut Nic) -> f64 {
    let burst = |src, dst| -> Vec<_> {
        let frames = (0..32).map(|i| (NetHdr::default(), numbered(src, dst, i)));
        frames.collect()
    };
    let (there, back) = (burst(C, D), burst(D, C));
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < WHILE {
        c.send_burst(&there);
        (0..32).for_each(|_| drop(d.recv()));
        d.send_burst(&back);
        (0..32).for_each(|_| drop(c.recv()));
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn median(mut speeds: Vec<f64>) -> f64 {
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}

/// What a hostile VMM and its guest do on the port with this socket until told to stop.
type Misdeed = fn(&Path, &AtomicBool) -> Result<()>;

/// Measures with and without `misdeed` on port a, again and again in turn.
fn compare(name: &str, misdeed: Misdeed) -> Result<()> {
    let mut street = Street::new()?;
    let socket = street.rig.socket("a");
    let (c, d) = (&mut street.c, &mut street.d);
    let (mut quiet, mut disturbed) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        quiet.push(speed(c, d));
        let stop = AtomicBool::new(false);
        let (fast, outcome) = std::thread::scope(|scope| {
            let neighbour = scope.spawn(|| misdeed(&socket, &stop));
            let fast = speed(c, d);
            stop.store(true, Ordering::Relaxed);
            (fast, neighbour.join().expect("the hostile guest"))
        });
        outcome?;
        disturbed.push(fast);
        street.rig.wait_disconnected("a")?;
    }
    let (alone, beside) = (median(quiet), median(disturbed));
    let ratio = beside / alone;
    say(&format!(
        "      {name}: {alone:.0} bursts/s alone, {beside:.0} beside it: {ratio:.2}"
    ));
    ensure!(
        ratio >= bound(),
        "{name} costs its neighbours too much: {ratio:.2}"
    );
    street.c.flush();
    street.d.flush();
    let counters = street.rig.settled()?;
    for port in ["c", "d"] {
        assert_eq!(counters.ports[port].drops(), 0, "{counters:#?}");
    }
    street.next_tenant()
}

/// Its TX ring is always full of the longest chains there can be.
fn long_chains(socket: &Path, stop: &AtomicBool) -> Result<()> {
    let a = Nic::start(socket, &Config::default())?;
    let ring = a.pairs[0].tx.ring.parts();
    for i in 0..ring.size {
        let (flags, next) = match i + 1 < ring.size {
            true => (spec::DESC_NEXT, i + 1),
            false => (0, 0),
        };
        let at = ring.desc + 16 * u64::from(i);
        write_descriptor(&a.ram, at, 0x1000, 1, flags, next);
    }
    while !stop.load(Ordering::Relaxed) {
        let used = a.ram.load16(ring.used + 2);
        a.ram.store16(ring.avail + 2, used.wrapping_add(ring.size));
        a.pairs[0].tx.kick.write(1)?;
        // A guest that only kicks costs its own CPU, which may be ours: now and then is enough.
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// It breaks its ring, and its driver starts it again.
fn broken_rings(socket: &Path, stop: &AtomicBool) -> Result<()> {
    let config = Config {
        transmit: (4, 2048),
        receive: Some(Receive::each(4, 1536)),
        regions: vec![RegionSpec::new(0, 1 << 30)],
        ..Config::default()
    };
    let mut a = Nic::start(socket, &config)?;
    while !stop.load(Ordering::Relaxed) {
        let ring = a.pairs[0].tx.ring.parts();
        a.ram.store16(ring.avail + 2, 0x4000);
        a.pairs[0].tx.kick.write(1)?;
        std::thread::sleep(Duration::from_millis(1));
        a.reset(spec::VERSION_1)?;
    }
    Ok(())
}

/// Its VMM comes and goes.
fn comes_and_goes(socket: &Path, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        // Refused while the one before is being shown out.
        let _ = Session::connect(socket, Order::Qemu72, 1);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// One after another: beside each other they would be measured together.
#[test]
fn neighbours_keep_their_speed() -> Result<()> {
    compare("long chains", long_chains)?;
    compare("broken rings", broken_rings)?;
    compare("a VMM that comes and goes", comes_and_goes)
}
