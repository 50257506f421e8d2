//! What VMs do is told as it happens.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tandem_tests::frontend::driver::{Config, Receive};
use tandem_tests::frontend::frames::{mac, numbered};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::lab::built_program;

/// As with memory that is not shared: kicks arrive, and the rings stay as they were.
#[test]
fn notifications_without_buffers_are_told_with_what_is_likely_wrong() -> Result<()> {
    let rig = Rig::with_config("[port.a]\n")?;
    let config = Config {
        receive: Some(Receive::each(0, 2048)),
        ..Config::default()
    };
    let mut nic = rig.nic("a", &config)?;
    rig.wait_port("a", "is up", |port| port["state"] == "up")?;
    nic.pairs[0].tx.kick.write(1)?;
    let down = rig.wait_port("a", "is down", |port| port["state"] == "down")?;
    let words = down["reason"].as_str().unwrap_or_default();
    ensure!(words.contains("share=on"), "{down}");
    // The first frame says that it was something else.
    nic.send_plain(&numbered(mac(1), mac(2), 0));
    rig.wait_port("a", "is up", |port| port["state"] == "up")?;
    Ok(())
}

#[test]
fn a_port_that_comes_up_and_goes_down_is_told_with_the_reason() -> Result<()> {
    let rig = Rig::with_config("[port.a]\n[port.b]\n")?;
    let mut program = Command::new(built_program("tandem")?)
        .args(["events", "--json", "--api-socket"])
        .arg(rig.daemon.run_dir().join("api.sock"))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(program.stdout.take().context("no pipe")?).lines();
    let mut next = || -> Result<Value> {
        let line = lines.next().context("no more events")??;
        Ok(serde_json::from_str(&line)?)
    };
    // It listens once it hears something.
    let (mut heard, mut mtu) = (false, 1500);
    std::thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(&mut next);
        while !first.is_finished() {
            mtu ^= 1;
            rig.daemon
                .cli(&["port", "set", "b", "--mtu", &mtu.to_string()])?;
        }
        heard = first.join().is_ok_and(|event| event.is_ok());
        Ok(())
    })?;
    ensure!(heard, "it hears nothing");
    let mut of_a = |kind: &str| -> Result<Value> {
        loop {
            let event = next()?;
            if event["port"] == "a" {
                ensure!(event["event"] == kind, "not {kind}: {event}");
                return Ok(event);
            }
        }
    };
    for _ in 0..3 {
        let nic = rig.nic("a", &Config::default())?;
        of_a("vmm_connected")?;
        of_a("port_up")?;
        drop(nic);
        let down = of_a("port_down")?;
        let words = down["detail"].as_str().unwrap_or_default();
        ensure!(words.contains("no VMM is connected"), "{down}");
        of_a("vmm_disconnected")?;
    }
    program.kill()?;
    program.wait()?;
    Ok(())
}
