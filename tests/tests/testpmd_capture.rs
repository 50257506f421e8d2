//! What a capture costs a port that carries all it can.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tandem_tests::lab::process::{Lifetime, Process};
use tandem_tests::lab::{
    Daemon, Need, PATIENCE, Testpmd, TestpmdConfig, built_program, long, say, scenario,
};

/// How long is measured each time, in turns with and without a capture.
const WHILE: Duration = Duration::from_millis(400);
const TURNS: usize = 5;
/// What the port must keep. It is made to keep 0.8, and does on a quiet machine; a test beside others
/// finds only what is far from that.
const BOUND: f64 = 0.4;

fn testpmd(daemon: &Daemon, dir: &std::path::Path, name: &str, mac: &str) -> Result<Testpmd> {
    TestpmdConfig::new(name, daemon.socket(name), mac, 0)
        .argument("--port-topology=loop")
        .start(dir)
}

/// Frames a second from and to port c.
fn rate(daemon: &Daemon) -> Result<f64> {
    let frames = || -> Result<u64> {
        let port = daemon.port("c")?;
        Ok(port.frames("from_vm")? + port.frames("to_vm")?)
    };
    let (start, before) = (Instant::now(), frames()?);
    std::thread::sleep(WHILE);
    Ok((frames()? - before) as f64 / start.elapsed().as_secs_f64())
}

fn captures(daemon: &Daemon, what: &str) -> Result<u64> {
    let port = daemon.port("c")?.0;
    port["captures"][what].as_u64().context("captures")
}

/// The rate while the port is captured whole.
fn captured_rate(daemon: &Daemon, dir: &std::path::Path) -> Result<f64> {
    let socket = daemon.run_dir().join("api.sock");
    let program = built_program("tandem")?;
    let mut capture = Process::start(dir, "capture", &program, Lifetime::Owner, |command| {
        command.arg("--api-socket").arg(socket);
        command.args(["capture", "c", "-w", "/dev/null"]);
    })?;
    daemon.wait_port("c", "is captured", |port| port.0["captures"]["active"] == 1)?;
    let rate = rate(daemon)?;
    let status = capture.terminate(PATIENCE)?;
    ensure!(status.success(), "the capture ended with {status}");
    daemon.wait_port("c", "is free again", |port| {
        port.0["captures"]["active"] == 0
    })?;
    Ok(rate)
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn exchange(lab: &std::path::Path, bytes: &str) -> Result<()> {
    let ports = ["c,mac=52:54:00:00:00:0c", "d,mac=52:54:00:00:00:0d"];
    let daemon = Daemon::with_ports(lab, &ports)?;
    let mut c = testpmd(&daemon, lab, "c", "52:54:00:00:00:0c")?;
    let mut d = testpmd(&daemon, lab, "d", "52:54:00:00:00:0d")?;
    c.command("set eth-peer 0 52:54:00:00:00:0d")?;
    c.command(&format!("set txpkts {bytes}"))?;
    for testpmd in [&mut d, &mut c] {
        testpmd.command("set fwd macswap")?;
    }
    d.command("start")?;
    c.command("start tx_first 7")?;
    let (mut alone, mut captured) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        alone.push(rate(&daemon)?);
        captured.push(captured_rate(&daemon, lab)?);
    }
    let lost = captures(&daemon, "dropped_frames")?;
    let (alone, captured) = (median(alone), median(captured));
    let ratio = captured / alone;
    say(&format!(
        "      {bytes} bytes: {alone:.0} frames/s, {captured:.0} captured: {ratio:.2}; the captures lost {lost}"
    ));
    ensure!(alone > 0.0, "nothing was sent");
    ensure!(ratio >= BOUND, "a capture costs too much: {ratio:.2}");
    c.quit()?;
    d.quit()?;
    daemon.stop()
}

#[test]
fn a_captured_port_keeps_its_throughput() -> Result<()> {
    scenario(
        "testpmd_capture::a_captured_port_keeps_its_throughput",
        &[Need::Program("dpdk-testpmd", "dpdk-dev")],
        |lab| {
            let sizes: &[&str] = if long() { &["1500", "64"] } else { &["1500"] };
            for bytes in sizes {
                let dir = lab.path().join(bytes);
                std::fs::create_dir(&dir)?;
                exchange(&dir, bytes)?;
            }
            Ok(())
        },
    )
}
