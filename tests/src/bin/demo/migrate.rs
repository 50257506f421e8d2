//! A guest moves from host alpha to host beta while it is pinged: by the command line, as a user has it
//! done.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tandem_tests::lab::{Need, PATIENCE, qemus, wait_until};
use tandem_tests::migration::prober::{INTERVAL, Log};
use tandem_tests::migration::rig::{NAMES, PORT};
use tandem_tests::migration::{Moved, Rig, Timeline, Vm, Wiring, report, timeline};

use super::{how, remember, step};

/// Pings before it begins to move, and after all is over.
const CALM: Duration = Duration::from_secs(1);
/// In which what was held for the VM has followed it.
const FLUSH: Duration = Duration::from_secs(5);

const NEEDS: [Need; 4] = [
    Need::Root,
    Need::Guests,
    Need::Program("ovs-vswitchd", "openvswitch-switch"),
    Need::Program("ethtool", "ethtool"),
];

pub(crate) fn run(dir: &Path, picture: &Path) -> Result<()> {
    if let Some(why) = NEEDS.iter().find_map(Need::missing) {
        bail!("no migration can be shown: {why}");
    }
    let (mut vm, rig) = set_up(dir)?;
    step(&format!(
        "A station behind the Open vSwitch pings it every {} ms",
        INTERVAL.as_millis()
    ));
    let prober = rig.prober()?;
    std::thread::sleep(CALM);
    let moved = migrate(dir, &rig, &mut vm)?;
    let told = [0, 1].map(|host| tell(&rig, host));
    let [source, destination] = told;
    let (source, destination) = (source?, destination?);
    std::thread::sleep(CALM);
    let log = prober.stop()?;
    log.check_alive()?;
    show(&log, &moved, [&source, &destination], picture)?;
    step("Cleaning up");
    drop(vm);
    Ok(())
}

fn set_up(dir: &Path) -> Result<(Vm, Rig)> {
    step("Setting up two hosts");
    println!("    alpha, beta: a network namespace each, with a tandemd, its keys, and an uplink");
    println!("    between them: Open vSwitch; behind it: a station that pings the VM");
    let mut rig = Rig::start(dir, Wiring::Direct, "")?;
    for host in &mut rig.hosts {
        remember(dir, host.daemon.process().pid())?;
    }
    let qemu = qemus()?.pop().context("no QEMU")?;
    step(&format!(
        "Booting a Linux guest on alpha under QEMU {}, {}",
        qemu.name(),
        how()?
    ));
    let start = Instant::now();
    let mut vm = rig.boot(dir, [&qemu, &qemu], 1, "packed=off")?;
    remember(dir, vm.here.guest.process().pid())?;
    println!("    up after {:.1} s", start.elapsed().as_secs_f32());
    Ok((vm, rig))
}

/// Moves it, with the commands as they are given.
fn migrate(dir: &Path, rig: &Rig, vm: &mut Vm) -> Result<Moved> {
    step("Moving it");
    let mut to = vm.destination(&[])?;
    remember(dir, to.guest.process().pid())?;
    println!("    QEMU on beta waits for the VM (-incoming)");
    let way = rig.way(0);
    let mut prepare = vec!["migration", "prepare", PORT];
    prepare.extend(way.iter().map(String::as_str));
    tandem(rig, 0, &prepare)?;
    let (monitor, uri) = (vm.monitor(), vm.uri(to.guest.name()));
    let monitor = monitor.to_str().context("path")?;
    tandem(
        rig,
        0,
        &["migration", "start", PORT, "--qmp", monitor, "--uri", &uri],
    )?;
    let (moved, left) = vm.arrive(to)?;
    // As an orchestrator would, once the move is committed.
    drop(left);
    Ok(moved)
}

/// Runs `tandem` on a host, and shows it. Gives what it prints.
fn tandem(rig: &Rig, host: usize, words: &[&str]) -> Result<String> {
    println!("    {}# tandem {}", NAMES[host], words.join(" "));
    let output = rig.hosts[host].daemon.cli_output(words)?;
    let said = String::from_utf8_lossy(&output.stderr);
    for line in said.lines() {
        println!("        {line}");
    }
    ensure!(output.status.success(), "it has failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// What a host tells of the migration, and when that began, since 1970.
#[derive(Debug)]
struct Told {
    name: &'static str,
    began: Duration,
    status: Value,
}

/// Once all has happened there: on alpha, what was held has followed the VM; on beta, it has sent a
/// frame.
fn tell(rig: &Rig, host: usize) -> Result<Told> {
    let daemon = &rig.hosts[host].daemon;
    let last = ["flushed", "first_frame_there"][host];
    let begun = Instant::now();
    wait_until("the end of the move", PATIENCE, || {
        let status = daemon.get(&format!("migrations/{PORT}"))?;
        let mut told = status["timeline"].as_array().into_iter().flatten();
        let happened = told.any(|moment| moment["what"] == last);
        Ok(happened || begun.elapsed() > FLUSH)
    })?;
    let began = rig.began(host)?;
    let text = tandem(rig, host, &["migration", "status", PORT, "--json"])?;
    Ok(Told {
        name: NAMES[host],
        began,
        status: serde_json::from_str(&text)?,
    })
}

fn show(log: &Log, moved: &Moved, told: [&Told; 2], picture: &Path) -> Result<()> {
    let hosts = told.map(|told| timeline::Host::new(told.name, told.began, &told.status));
    let timeline = Timeline::new(hosts, moved, log);
    step("What happened, in ms from when QEMU stopped the VM on alpha");
    print!("{}", timeline.text());
    step("What it cost");
    for (name, value) in report::table(log, moved, told.map(|told| (told.name, &told.status))) {
        println!("    {name:<22}  {value}");
    }
    std::fs::write(picture, timeline.svg())
        .with_context(|| format!("writing {}", picture.display()))?;
    step(&format!("The same as a picture: {}", picture.display()));
    Ok(())
}
