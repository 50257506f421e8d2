//! Two daemons that talk about a VM which moves from one to the other: what they agree on, what one refuses, and what
//! becomes of it when somebody gives up or goes away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::memory::DirtyLog;
use tandem_tests::frontend::session::Order;
use tandem_tests::frontend::wire::PATIENCE;
use tandem_tests::lab::{Daemon, Lab};

const VM: [u8; 6] = mac(1);
const NEIGHBOUR: [u8; 6] = mac(2);

/// Two hosts: `alpha`, where the VM is, and `beta`.
struct Hosts {
    // Dropped in this order.
    alpha: Daemon,
    beta: Daemon,
    lab: Lab,
}

/// A host of its own in the directory `name`, with keys of an authority.
fn host(lab: &Lab, name: &str, authority: &str, ports: &[&str]) -> Result<Daemon> {
    let (dir, keys) = (
        lab.path().join(name),
        lab.path().join(format!("{name}.keys")),
    );
    std::fs::create_dir(&dir)?;
    let authority = lab.path().join(authority);
    let (keys, authority) = (keys.display().to_string(), authority.display().to_string());
    // Its API is not needed for that.
    let made = std::process::Command::new(tandem_tests::lab::built_program("tandem")?)
        .args(["migration", "keys", name, "127.0.0.1", "--to", &keys])
        .args(["--authority", &authority])
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    let mut words = vec!["--migration-keys", keys.as_str()];
    words.extend(["--migration-listen", "127.0.0.1:0"]);
    words.extend(ports.iter().flat_map(|port| ["--port", *port]));
    Daemon::start(&dir, &words)
}

/// Where a daemon answers other hosts.
fn address(daemon: &mut Daemon) -> Result<String> {
    let log = std::fs::read_to_string(daemon.process().log())?;
    // The last one: it may have been started again.
    let mut lines = log.lines().rev();
    let line = lines.find(|line| line.contains("other hosts are answered on "));
    let address = line.and_then(|line| line.rsplit_once(' '));
    let (_, address) = address.context("no address")?;
    Ok(address.to_owned())
}

impl Hosts {
    fn new(port_on_beta: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let alpha = host(&lab, "alpha", "authority", &["web", "n"])?;
        let beta = host(&lab, "beta", "authority", &[port_on_beta, "n"])?;
        Ok(Self { alpha, beta, lab })
    }

    fn prepare(&mut self) -> Result<std::process::Output> {
        let to = address(&mut self.beta)?;
        let words = ["migration", "prepare", "web", "--to", &to, "--name", "beta"];
        self.alpha.cli_output(&words)
    }

    fn prepared(&mut self) -> Result<()> {
        let done = self.prepare()?;
        ensure!(done.status.success(), "{done:?}");
        Ok(())
    }

    /// Waits until both are as far as that.
    fn wait_both(&self, stage: &str) -> Result<[Value; 2]> {
        Ok([wait(&self.alpha, stage)?, wait(&self.beta, stage)?])
    }
}

fn wait(daemon: &Daemon, stage: &str) -> Result<Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = daemon.get("migrations/web")?;
        if now["stage"] == stage {
            return Ok(now);
        }
        ensure!(Instant::now() < end, "it is not {stage}: {now:#}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A VM on alpha that has sent frames to a neighbour.
fn vm(hosts: &Hosts, order: Order) -> Result<(Nic, Nic)> {
    let mut n = Nic::start(&hosts.alpha.socket("n"), &Config::default())?;
    let config = Config {
        order,
        ..Config::with(0)
    };
    let mut vm = Nic::start(&hosts.alpha.socket("web"), &config)?;
    for number in 0..20 {
        vm.send_plain(&numbered(VM, NEIGHBOUR, number));
        ensure!(number_of(&n.recv().1) == number);
    }
    Ok((vm, n))
}

fn start_logging(vm: &mut Nic) -> Result<()> {
    let log = DirtyLog::new(vm.ram.end())?;
    vm.session()?.set_log(&log)?;
    let (setups, features) = (vm.setups(&[0, 0]), vm.features);
    vm.session()?.start_logging(features, &setups)?;
    vm.session()?.sync()
}

/// What the port has counted.
fn counted(daemon: &Daemon) -> Result<Value> {
    Ok(daemon.get("ports/web")?["counters"].clone())
}

fn moments(status: &Value) -> Vec<&str> {
    let timeline = status["timeline"].as_array().into_iter().flatten();
    timeline
        .filter_map(|moment| moment["what"].as_str())
        .collect()
}

/// A VMM that carries no state: the daemons do.
#[test]
fn a_vm_moves_and_keeps_what_was_counted() -> Result<()> {
    let mut hosts = Hosts::new("web")?;
    let (mut vm, _n) = vm(&hosts, Order::Qemu72)?;
    hosts.prepared()?;
    // Again: it is as it was.
    hosts.prepared()?;
    hosts.wait_both("prepared")?;
    let early = hosts.alpha.cli_output(&["migration", "commit", "web"])?;
    let words = String::from_utf8_lossy(&early.stderr).into_owned();
    ensure!(
        !early.status.success() && words.contains("does not run"),
        "{words}"
    );
    start_logging(&mut vm)?;
    wait(&hosts.alpha, "moving")?;
    let before = counted(&hosts.alpha)?;
    let bases = vm.stop()?;
    let end = Instant::now() + PATIENCE;
    while !moments(&hosts.alpha.get("migrations/web")?).contains(&"state_sent") {
        ensure!(Instant::now() < end, "no state is sent");
    }
    vm.move_rings(&hosts.beta.socket("web"), &bases)?;
    hosts.wait_both("there")?;
    ensure!(counted(&hosts.beta)? == before, "{before:#}");
    let mut there = Nic::start(&hosts.beta.socket("n"), &Config::default())?;
    vm.send_plain(&numbered(VM, NEIGHBOUR, 100));
    while number_of(&there.recv().1) != 100 {}
    hosts.alpha.cli(&["migration", "commit", "web"])?;
    let [on_alpha, on_beta] = hosts.wait_both("committed")?;
    ensure!(on_alpha["role"] == "source" && on_beta["role"] == "destination");
    ensure!(on_alpha["id"] == on_beta["id"] && on_beta["peer"] == "alpha");
    for what in [
        "prepared",
        "started",
        "stopped",
        "state_sent",
        "running_there",
        "committed",
    ] {
        ensure!(
            moments(&on_alpha).contains(&what),
            "no {what}: {on_alpha:#}"
        );
    }
    ensure!(
        on_alpha["ports"][0]["waited_ms"].as_f64() > Some(0.0),
        "{on_alpha:#}"
    );
    // Said twice, and too late.
    hosts.alpha.cli(&["migration", "commit", "web"])?;
    let late = hosts.alpha.cli_output(&["migration", "abort", "web"])?;
    ensure!(!late.status.success());
    for daemon in [&hosts.alpha, &hosts.beta] {
        for words in [
            ["migration", "status", "web"].as_slice(),
            &["migration", "list"],
        ] {
            let shown = daemon.cli(words)?;
            ensure!(shown.contains("committed"), "{shown}");
        }
    }
    Ok(())
}

/// The hosts have no wire between them: nobody but the daemons can carry what was sent while the VM stood still.
#[test]
fn what_is_held_follows_the_vm_in_order() -> Result<()> {
    let mut hosts = Hosts::new("web")?;
    let (mut vm, mut n) = vm(&hosts, Order::Qemu10)?;
    let bases = go_as_far_as(&mut hosts, &mut vm, "stopped")?.context("no bases")?;
    for number in 0..150 {
        n.send_plain(&numbered(NEIGHBOUR, VM, number));
    }
    n.flush();
    vm.move_rings(&hosts.beta.socket("web"), &bases)?;
    hosts.wait_both("there")?;
    for number in 0..150 {
        let got = number_of(&vm.recv().1);
        ensure!(got == number, "{got} and not {number}");
    }
    let cost = hosts.alpha.get("migrations/web")?["ports"][0].clone();
    ensure!(cost["followed"] == 150 && cost["expired"] == 0, "{cost:#}");
    Ok(())
}

/// All that is in the way is said, and nothing has changed anywhere.
#[test]
fn a_host_refuses_what_it_cannot_take() -> Result<()> {
    let mut hosts = Hosts::new("web,mtu=9000,vlan=7,queue_pairs=2")?;
    let (mut vm, mut n) = vm(&hosts, Order::Qemu10)?;
    let refused = hosts.prepare()?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(
        words.contains("port web") && words.contains("here"),
        "{words}"
    );
    let body = json!({"to": address(&mut hosts.beta)?, "name": "beta"}).to_string();
    let (status, answer) = post(&hosts.alpha, "migrations/web/prepare", &body)?;
    let all = answer["errors"].as_array().map_or(0, Vec::len);
    ensure!(status == 409 && all == 3, "{status} {answer:#}");
    for daemon in [&hosts.alpha, &hosts.beta] {
        ensure!(daemon.get("migrations")? == json!({"migrations": []}));
    }
    // A VM that is there already.
    hosts.beta.cli(&[
        "port",
        "set",
        "web",
        "--default",
        "mtu",
        "--default",
        "vlan",
        "--default",
        "queue_pairs",
    ])?;
    let other = Nic::start(&hosts.beta.socket("web"), &Config::default())?;
    let refused = hosts.prepare()?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(words.contains("a VM runs behind it"), "{words}");
    drop(other);
    // One that nobody has a port for.
    hosts.beta.cli(&["port", "remove", "web"])?;
    let refused = hosts.prepare()?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(words.contains("does not exist here"), "{words}");
    vm.send_plain(&numbered(VM, NEIGHBOUR, 77));
    ensure!(number_of(&n.recv().1) == 77);
    Ok(())
}

fn post(daemon: &Daemon, path: &str, body: &str) -> Result<(u64, Value)> {
    use std::io::{Read, Write};
    let socket = daemon.run_dir().join("api.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    let length = body.len();
    write!(
        stream,
        "POST /api/v1/{path} HTTP/1.1\r\nHost: tandem\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok((status.context("no status")?, serde_json::from_str(body)?))
}

/// How far a migration had come when somebody gave up.
const STEPS: [&str; 3] = ["prepared", "moving", "stopped"];

/// Takes the VM that far; the rings' bases if they were stopped.
fn go_as_far_as(hosts: &mut Hosts, vm: &mut Nic, step: &str) -> Result<Option<Vec<u32>>> {
    hosts.prepared()?;
    if step == "prepared" {
        return Ok(None);
    }
    start_logging(vm)?;
    wait(&hosts.alpha, "moving")?;
    if step == "moving" {
        return Ok(None);
    }
    Ok(Some(vm.stop()?))
}

/// What was sent meanwhile comes once and in order, and all goes on.
fn goes_on(vm: &mut Nic, n: &mut Nic, bases: Option<Vec<u32>>) -> Result<()> {
    for number in 0..10 {
        n.send_plain(&numbered(NEIGHBOUR, VM, number));
    }
    n.flush();
    if let Some(bases) = bases {
        vm.resume(&bases)?;
    }
    for number in 0..10 {
        let got = number_of(&vm.recv().1);
        ensure!(got == number, "{got} and not {number}");
    }
    vm.send_plain(&numbered(VM, NEIGHBOUR, 50));
    while number_of(&n.recv().1) != 50 {}
    Ok(())
}

#[test]
fn an_abort_at_any_step_leaves_the_vm_where_it_was() -> Result<()> {
    let mut hosts = Hosts::new("web")?;
    let (mut vm, mut n) = vm(&hosts, Order::Qemu10)?;
    for step in STEPS {
        for by_beta in [false, true] {
            let bases = go_as_far_as(&mut hosts, &mut vm, step)?;
            let words = ["migration", "abort", "web", "--reason", "of a test"];
            let by = if by_beta { &hosts.beta } else { &hosts.alpha };
            by.cli(&words)?;
            let both = hosts.wait_both("aborted")?;
            for status in &both {
                let reason = status["reason"].as_str().unwrap_or_default();
                ensure!(reason.contains("of a test"), "{status:#}");
            }
            let context = || format!("aborted by beta: {by_beta}, {step}");
            goes_on(&mut vm, &mut n, bases).with_context(context)?;
        }
    }
    // After all that it still can go.
    hosts.prepared()
}

#[test]
fn a_host_that_goes_away_leaves_the_vm_where_it_was() -> Result<()> {
    let mut hosts = Hosts::new("web")?;
    let (mut vm, mut n) = vm(&hosts, Order::Qemu10)?;
    for step in STEPS {
        let bases = go_as_far_as(&mut hosts, &mut vm, step)?;
        hosts.beta.crash()?;
        if step == "stopped" {
            // What becomes of the VM the VMM decides.
            hosts.alpha.cli(&["migration", "abort", "web"])?;
        }
        wait(&hosts.alpha, "aborted")?;
        goes_on(&mut vm, &mut n, bases).with_context(|| step.to_owned())?;
        hosts.beta.start_again()?;
    }
    hosts.prepared()
}

/// Its VMM connects again, as if nothing had been; the move is prepared anew, and goes through.
#[test]
fn a_source_that_is_started_again_begins_anew() -> Result<()> {
    let mut hosts = Hosts::new("web")?;
    let (mut vm, mut n) = vm(&hosts, Order::Qemu10)?;
    go_as_far_as(&mut hosts, &mut vm, "moving")?;
    drop(n);
    hosts.alpha.crash()?;
    hosts.alpha.start_again()?;
    let bases = vm.bases_after_loss();
    vm.reconnect(&bases)?;
    n = Nic::start(&hosts.alpha.socket("n"), &Config::default())?;
    let forgotten = hosts.alpha.cli_output(&["migration", "status", "web"])?;
    ensure!(forgotten.status.code() == Some(1), "{forgotten:?}");
    goes_on(&mut vm, &mut n, None)?;
    let bases = go_as_far_as(&mut hosts, &mut vm, "stopped")?.context("no bases")?;
    vm.move_rings(&hosts.beta.socket("web"), &bases)?;
    hosts.wait_both("there")?;
    hosts.alpha.cli(&["migration", "commit", "web"])?;
    hosts.wait_both("committed").map(drop)
}

/// The destination's daemon is started again when the VM runs there: it has moved all the same.
#[test]
fn a_destination_that_is_started_again_keeps_the_vm() -> Result<()> {
    let mut hosts = Hosts::new("web")?;
    let (mut vm, _n) = vm(&hosts, Order::Qemu10)?;
    let bases = go_as_far_as(&mut hosts, &mut vm, "stopped")?.context("no bases")?;
    vm.move_rings(&hosts.beta.socket("web"), &bases)?;
    hosts.wait_both("there")?;
    hosts.beta.crash()?;
    hosts.beta.start_again()?;
    let bases = vm.bases_after_loss();
    vm.reconnect(&bases)?;
    wait(&hosts.alpha, "committed")?;
    let mut there = Nic::start(&hosts.beta.socket("n"), &Config::default())?;
    vm.send_plain(&numbered(VM, NEIGHBOUR, 9));
    while number_of(&there.recv().1) != 9 {}
    Ok(())
}

/// It runs there; nobody comes to say so.
#[test]
fn a_vm_that_has_arrived_stays_when_the_source_is_gone() -> Result<()> {
    let mut hosts = Hosts::new("web")?;
    let (mut vm, _n) = vm(&hosts, Order::Qemu10)?;
    let bases = go_as_far_as(&mut hosts, &mut vm, "stopped")?.context("no bases")?;
    hosts.alpha.crash()?;
    vm.move_rings(&hosts.beta.socket("web"), &bases)?;
    wait(&hosts.beta, "there")?;
    wait(&hosts.beta, "committed").map(drop)
}

/// Neither those of another authority, nor those that are called otherwise.
#[test]
fn strangers_are_turned_away() -> Result<()> {
    let mut hosts = Hosts::new("web")?;
    let mut stranger = host(&hosts.lab, "gamma", "another", &["web"])?;
    for (to, name, what) in [
        (address(&mut stranger)?, "gamma", "authorit"),
        (address(&mut hosts.beta)?, "delta", "beta"),
    ] {
        let words = ["migration", "prepare", "web", "--to", &to, "--name", name];
        let refused = hosts.alpha.cli_output(&words)?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            refused.status.code() == Some(1) && words.contains(what),
            "{words}"
        );
    }
    let nobody = ["migration", "prepare", "web", "--to", "127.0.0.1:1"];
    let refused = hosts.alpha.cli_output(&nobody)?;
    if refused.status.success() {
        bail!("{refused:?}");
    }
    Ok(())
}
