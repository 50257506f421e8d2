//! Settings that change under a VM: what the switch makes of its frames changes at once, and the VM
//! stays where it is.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{BROADCAST, mac, number_of, numbered};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::wire::PATIENCE;

/// What all three ports are in.
fn vlans(a: u16, b: u16, c: u16) -> String {
    [("a", a), ("b", b), ("c", c)]
        .map(|(name, vlan)| format!("[port.{name}]\nvlan = {vlan}\n"))
        .concat()
}

/// Has the daemon read `text` as its file, and waits until it says so.
fn reload(rig: &Rig, text: &str) -> Result<()> {
    let log = || std::fs::read_to_string(rig.dir().join("tandemd.log"));
    let count = |log: String| log.matches("SIGHUP: ").count();
    let before = count(log()?);
    std::fs::write(rig.dir().join("tandem.toml"), text)?;
    rig.daemon.signal("HUP")?;
    let end = Instant::now() + PATIENCE;
    while count(log()?) == before {
        ensure!(Instant::now() < end, "it does not reload: {}", log()?);
        std::thread::yield_now();
    }
    Ok(())
}

/// A broadcast from `a` with this number reaches just the one of the two.
fn reaches(a: &mut Nic, near: &mut Nic, far: &mut Nic, number: u64) {
    a.send_plain(&numbered(mac(1), BROADCAST, number));
    assert_eq!(number_of(&near.recv().1), number);
    // It has ended when the sender has its buffer back.
    a.flush();
    assert!(far.try_recv(0).is_none());
}

fn sessions(rig: &Rig) -> Result<[Value; 3]> {
    let mut all = [json!(null), json!(null), json!(null)];
    for (slot, name) in all.iter_mut().zip(["a", "b", "c"]) {
        let port = rig.port(name)?;
        assert_eq!(port["state"], "up");
        *slot = port["session"]["connects"].clone();
    }
    Ok(all)
}

#[test]
fn a_reload_moves_vms_between_vlans_and_none_notices() -> Result<()> {
    let rig = Rig::with_config(&vlans(10, 10, 20))?;
    let config = Config::default();
    let [mut a, mut b, mut c] = [
        rig.nic("a", &config)?,
        rig.nic("b", &config)?,
        rig.nic("c", &config)?,
    ];
    let connects = sessions(&rig)?;
    for round in 0..10 {
        reaches(&mut a, &mut b, &mut c, 2 * round);
        reload(&rig, &vlans(10, 20, 10))?;
        reaches(&mut a, &mut c, &mut b, 2 * round + 1);
        reload(&rig, &vlans(10, 10, 20))?;
    }
    reload(&rig, &vlans(10, 5000, 10))?;
    reaches(&mut a, &mut b, &mut c, 100);
    assert_eq!(sessions(&rig)?, connects);
    Ok(())
}

/// A port that another reload is about loses nothing, whatever happens to the other.
#[test]
fn ports_that_are_not_changed_lose_nothing() -> Result<()> {
    let file = |mtu: u16, limit: u32| {
        format!(
            "[port.a]\nvlan = 1\n[port.b]\nvlan = 1\n[port.c]\nmtu = {mtu}\nstorm_limit = {limit}\n"
        )
    };
    let rig = Rig::with_config(&file(1500, 100))?;
    let (mut a, mut b) = (
        rig.nic("a", &Config::default())?,
        rig.nic("b", &Config::default())?,
    );
    b.send_plain(&numbered(mac(2), BROADCAST, 0));
    a.recv();
    for number in 1..=200 {
        let change = number % 10 == 0;
        a.send_plain(&numbered(mac(1), mac(2), number));
        if change {
            let round = number / 10;
            reload(&rig, &file(1500 + round as u16 % 2, 100 + round as u32))?;
        }
        assert_eq!(number_of(&b.recv().1), number);
    }
    let counters = rig.settled()?;
    for port in ["a", "b"] {
        assert_eq!(counters.ports[port].drops(), 0, "{counters:#?}");
    }
    Ok(())
}

/// Who sends pays: the CPU time of a VM's threads is its own.
#[test]
fn a_vm_is_charged_for_what_it_sends() -> Result<()> {
    let rig = Rig::new(&["a,vm=busy", "b,vm=quiet"])?;
    let (mut a, mut b) = (
        rig.nic("a", &Config::default())?,
        rig.nic("b", &Config::default())?,
    );
    b.send_plain(&numbered(mac(2), BROADCAST, 0));
    a.recv();
    let spent = |vm: &str| -> Result<f64> {
        let vm = rig.get(&format!("vms/{vm}"))?;
        assert!(vm["threads"].as_u64() >= Some(1), "{vm}");
        Ok(vm["cpu_seconds"].as_f64().unwrap_or(-1.0))
    };
    let (busy, quiet) = (spent("busy")?, spent("quiet")?);
    for number in 1..=3000 {
        a.send_plain(&numbered(mac(1), mac(2), number));
        b.recv();
    }
    let (busy, quiet) = (spent("busy")? - busy, spent("quiet")? - quiet);
    ensure!(busy > 0.0 && busy > quiet, "busy {busy} s, quiet {quiet} s");
    assert_eq!(rig.get("vms/busy")?["from_vm"]["frames"], 3000);
    Ok(())
}
