//! Daemons and VMMs that end in the middle of a live migration: where the VM is then, and how soon it has its network
//! back.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use tandem_tests::lab::{Need, PATIENCE, qemus, say, scenario, wait_until};
use tandem_tests::migration::Wiring;
use tandem_tests::migration::rig::PORT;
use tandem_tests::migration::scene::{Scene, check_log};
use tandem_tests::migration::vm::{Instance, SLOW, UNLIMITED};

const NEEDS: [Need; 4] = [
    Need::Guests,
    Need::Root,
    Need::Program("ovs-vswitchd", "openvswitch-switch"),
    Need::Program("ethtool", "ethtool"),
];

/// How far the migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Both daemons have agreed.
    Prepared,
    /// The VM's memory is on its way.
    Moving,
    /// The VM has been stopped on the source.
    Stopped,
    /// It runs on the destination.
    There,
}

/// Who ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Source,
    Destination,
    /// QEMU on the destination; on the source the VM goes with it.
    Vmm,
}

use Step::*;

/// Every step with everyone, but for the QEMU that the VM is in.
const ALL: [(Step, Victim); 11] = [
    (Stopped, Victim::Source),
    (Stopped, Victim::Destination),
    (Stopped, Victim::Vmm),
    (Prepared, Victim::Source),
    (Prepared, Victim::Destination),
    (Prepared, Victim::Vmm),
    (Moving, Victim::Source),
    (Moving, Victim::Destination),
    (Moving, Victim::Vmm),
    (There, Victim::Source),
    (There, Victim::Destination),
];
/// Descriptors of a daemon that has not been started again, by its host and by where the VM was.
type Descriptors = HashMap<(usize, u32, usize), usize>;

/// With the newest QEMU; why is told in `guests_migration.rs`.
#[test]
fn a_vm_has_its_network_back_when_a_daemon_or_a_vmm_ends() -> Result<()> {
    let name = "guests_faults::a_vm_has_its_network_back_when_a_daemon_or_a_vmm_ends";
    scenario(name, &NEEDS, |lab| {
        let qemu = qemus()?.pop().context("no QEMU")?;
        let mut scene = Scene::start(lab.path(), Wiring::Direct, &qemu, (1, "packed=off"))?;
        let mut descriptors = Descriptors::new();
        nothing_leaks(&mut scene, &mut descriptors)?;
        for (step, victim) in ALL {
            let outcome = one_ends(&mut scene, step, victim);
            outcome.with_context(|| format!("{step:?}, {victim:?}"))?;
            nothing_leaks(&mut scene, &mut descriptors)
                .with_context(|| format!("after {step:?}, {victim:?}"))?;
        }
        the_vmm_of_the_source_ends(scene)
    })
}

/// Has one end at this step, and what an orchestrator does then. The VM must have its network soon.
fn one_ends(scene: &mut Scene, step: Step, victim: Victim) -> Result<()> {
    let from = scene.vm.here.host;
    scene.rig.prepare(from)?;
    let mut to = scene.vm.destination(&[])?;
    match step {
        Prepared => {}
        Moving => scene.vm.begin(&to, SLOW)?,
        Stopped => scene.vm.begin_and_stop(&to)?,
        There => {
            scene.vm.begin(&to, UNLIMITED)?;
            let (_, left) = scene.vm.arrive(to)?;
            scene.rig.wait_stage(from, "there")?;
            to = left;
        }
    }
    match victim {
        Victim::Source => scene.rig.hosts[from].crash_and_restart(from)?,
        Victim::Destination => scene.rig.hosts[1 - from].crash_and_restart(1 - from)?,
        Victim::Vmm => to.guest.kill()?,
    }
    match step {
        Prepared | There => drop(to),
        Moving | Stopped => goes_on(scene, to, step, victim)?,
    }
    scene.goes_on()?;
    let here = scene.vm.here.host;
    is_over(scene, from, here)?;
    let log = scene.next_log()?;
    let (lost, gap) = (log.lost().count(), log.longest_gap().length());
    say(&format!(
        "      {step:?}, {victim:?}: on host {here}, {lost} lost, longest gap {:.3} s",
        gap.as_secs_f64()
    ));
    check_log(&log)
}

/// A migration that QEMU is about: it comes to its end, or does not.
fn goes_on(scene: &mut Scene, to: Instance, step: Step, victim: Victim) -> Result<()> {
    match step {
        Stopped => scene.vm.go_on()?,
        _ => scene.vm.hurry()?,
    }
    if victim == Victim::Vmm {
        let ended = scene.vm.wait_failed()?;
        ensure!(ended == "failed", "the migration has {ended}");
        return Ok(());
    }
    // QEMU gives up if it has to send the daemon's state of the port, or to load it, before it has connected again.
    scene.vm.wait_either(to)
}

/// The daemons agree on where the VM is, or know nothing of it any more: one that was started again has forgotten.
fn is_over(scene: &Scene, from: usize, here: usize) -> Result<()> {
    let word = if from == here { "abort" } else { "commit" };
    for host in &scene.rig.hosts {
        if host.daemon.get("migrations/vm").is_ok() {
            // It may have been decided already, and is refused then.
            let said = host.daemon.cli_output(&["migration", word, PORT])?;
            let now = host.daemon.get("migrations/vm")?;
            let is_final = now["stage"] == "committed" || now["stage"] == "aborted";
            ensure!(is_final, "{said:?}: {now:#}");
        }
    }
    for (i, host) in scene.rig.hosts.iter().enumerate() {
        host.daemon.wait_port(PORT, "is as it should be", |port| {
            port.is_up() == (i == here)
        })?;
    }
    Ok(())
}

/// Neither daemon has more open than it had with the VM where it is.
fn nothing_leaks(scene: &mut Scene, known: &mut Descriptors) -> Result<()> {
    let here = scene.vm.here.host;
    for (i, host) in scene.rig.hosts.iter_mut().enumerate() {
        let process = host.daemon.process();
        let mut now = process.descriptors()?;
        let Some(before) = known.get(&(i, process.pid(), here)).copied() else {
            // The first time: what is being closed counts as well, which a lower bound does not mind.
            known.insert((i, process.pid(), here), now);
            continue;
        };
        let waited = wait_until("descriptors are closed", PATIENCE, || {
            now = process.descriptors()?;
            Ok(now <= before)
        });
        waited.with_context(|| format!("host {i}: {before} descriptors, now {now}"))?;
    }
    Ok(())
}

/// The VM is gone, and nothing of it is left.
fn the_vmm_of_the_source_ends(mut scene: Scene) -> Result<()> {
    let from = scene.vm.here.host;
    scene.rig.prepare(from)?;
    let to = scene.vm.destination(&[])?;
    scene.vm.begin_and_stop(&to)?;
    scene.vm.here.guest.kill()?;
    drop(to);
    for host in &scene.rig.hosts {
        let daemon = &host.daemon;
        daemon.wait_port(PORT, "is free", |port| !port.is_up())?;
        daemon.cli(&["migration", "abort", PORT, "--reason", "the VM is gone"])?;
        wait_until("what was held is let go of", PATIENCE, || {
            Ok(daemon.get("migrations/vm")?["stage"] == "aborted")
        })?;
    }
    // Another may come.
    scene.rig.prepare(from)
}
