//! The demonstrations behind `ci/demo`: a switch, two guests, and what they say to each other; and, in
//! [`migrate`], a guest that moves to another host.
#![forbid(unsafe_code)]

mod migrate;

use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;
use tandem_tests::lab::daemon::Daemon;
use tandem_tests::lab::guest::{Guest, GuestConfig, Nic, exec_in};
use tandem_tests::lab::image::{self, Accelerator};
use tandem_tests::lab::{PATIENCE, built_program, free_network, is_root};

const TAP: &str = "tandem-demo";
/// The guests: name, last number of the address, MAC address. The host has the number 1.
const GUESTS: [(&str, u8, &str); 2] = [
    ("vm1", 11, "52:54:00:00:00:11"),
    ("vm2", 12, "52:54:00:00:00:12"),
];

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", dir] => run(Path::new(dir), false)?,
        ["run", dir, "--keep"] => run(Path::new(dir), true)?,
        ["migrate", dir, picture] => migrate::run(Path::new(dir), Path::new(picture))?,
        ["in", dir, guest, command] => {
            let output = exec_in(Path::new(dir), guest, command)?;
            print!("{}", output.text);
            return Ok(ExitCode::from(u8::try_from(output.status).unwrap_or(1)));
        }
        _ => bail!("this is started by ci/demo"),
    }
    Ok(ExitCode::SUCCESS)
}

fn run(dir: &Path, keep: bool) -> Result<()> {
    if let Some(why) = image::missing() {
        bail!("no guest can be booted: {why}");
    }
    let network = free_network()?;
    let address = |number: u8| format!("{network}.{number}");
    let [first_address, second_address] = GUESTS.map(|(_, number, _)| address(number));
    let mut daemon = start_daemon(dir, &address(1), keep)?;
    let mut guests = boot_guests(dir, &daemon, network, keep)?;
    let (first, second) = guests.split_at_mut(1);
    talk(&mut first[0], &mut second[0], &second_address)?;
    if is_root() {
        step("The host pings vm1 through its own port");
        show(Command::new("ping").args(["-c", "3", "-i", "0.2", &first_address]))?;
    }
    step("tandem status");
    print!("{}", daemon.cli(&["status"])?);
    step("tandem port list");
    print!("{}", daemon.cli(&["port", "list"])?);
    if keep {
        daemon.process().release();
        guests
            .iter_mut()
            .for_each(|guest| guest.process().release());
        return explain(dir, &first_address, &second_address);
    }
    step("Cleaning up");
    drop(guests);
    daemon.stop()
}

fn start_daemon(dir: &Path, address: &str, keep: bool) -> Result<Daemon> {
    let mut arguments: Vec<String> = vec![];
    for (name, _, mac) in GUESTS {
        arguments.extend(["--port".into(), format!("{name},mac={mac}")]);
    }
    if is_root() {
        arguments.extend(["--port".into(), format!("host,tap={TAP}")]);
    }
    step(&format!("Starting tandemd {}", arguments.join(" ")));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let start = if keep {
        Daemon::start_detached
    } else {
        Daemon::start
    };
    let mut daemon = start(dir, &arguments)?;
    remember(dir, daemon.process().pid())?;
    if is_root() {
        show(Command::new("ip").args(["addr", "add", &format!("{address}/24"), "dev", TAP]))?;
        show(Command::new("ip").args(["link", "set", TAP, "up"]))?;
    } else {
        println!("    not root: no host port (a TAP device), guests only");
    }
    Ok(daemon)
}

fn boot_guests(dir: &Path, daemon: &Daemon, network: &str, keep: bool) -> Result<Vec<Guest>> {
    step(&format!("Booting two Linux guests under QEMU, {}", how()?));
    let start = Instant::now();
    let mut guests = vec![];
    for (name, _, mac) in GUESTS {
        let mut config = GuestConfig::new(name).nic(Nic::vhost_user(daemon.socket(name), mac));
        if keep {
            config = config.detached();
        }
        let mut guest = config.start(dir)?;
        remember(dir, guest.process().pid())?;
        guests.push(guest);
    }
    for (guest, (_, number, _)) in guests.iter_mut().zip(GUESTS) {
        guest.wait_ready(PATIENCE)?;
        guest.configure("eth0", &[&format!("{network}.{number}/24")])?;
    }
    println!("    up after {:.1} s", start.elapsed().as_secs_f32());
    Ok(guests)
}

/// How guests run.
fn how() -> Result<&'static str> {
    Ok(match image::accelerator()? {
        Accelerator::Kvm => "with KVM",
        Accelerator::Tcg => "emulated, for want of a working KVM",
    })
}

fn talk(vm1: &mut Guest, vm2: &mut Guest, address: &str) -> Result<()> {
    step("vm1 pings vm2");
    print!("{}", vm1.exec(&format!("ping -c 4 {address}"))?);
    step("Every byte checked: 4 MB of TCP each way at once, from vm1 to vm2 and back");
    print!("{}", vm1.stream(address, 4_000_000)?);
    vm2.serve_iperf()?;
    step("iperf3 from vm1 to vm2");
    print!("{}", iperf(vm1, &format!("-c {address}"))?);
    step("iperf3 from vm2 to vm1");
    print!("{}", iperf(vm1, &format!("-c {address} -R"))?);
    Ok(())
}

fn iperf(guest: &mut Guest, arguments: &str) -> Result<String> {
    guest.exec(&format!("/real/iperf3 {arguments} -t 5 -i 0"))
}

/// For `ci/demo`, which ends these also when this program cannot.
fn remember(dir: &Path, pid: u32) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("pids"))?;
    Ok(writeln!(file, "{pid}")?)
}

fn explain(dir: &Path, first: &str, second: &str) -> Result<()> {
    step("Left running. To look around:");
    println!(
        "    export TANDEM_API_SOCKET={}",
        dir.join("run/api.sock").display()
    );
    println!("    {} port show vm1", built_program("tandem")?.display());
    println!("    ci/demo --in vm1 ping -c 3 {second}");
    println!("    ci/demo --in vm2 ip address");
    if is_root() {
        println!("    ping {first}");
    }
    println!("    less {}", dir.join("tandemd.log").display());
    println!("To end it:\n    ci/demo --stop");
    Ok(())
}

fn show(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn step(what: &str) {
    println!("\n==> {what}");
}
