//! What loads a switch: testpmd for small frames, iperf3 for a TCP connection.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::wire::{FAR, Wire};
use super::{Cell, Way};
use crate::bench::cell::Size;
use crate::bench::guests::{self, Rate};
use crate::bench::switch::{Switch, words};
use crate::bench::{GUEST_CPU, mac, replay};
use crate::lab::process::{Lifetime, Process};
use crate::lab::{PATIENCE, Testpmd, find_program, tail, wait_until};

/// As many as the other cells have.
const FLOWS: usize = 1024;
const BYTES: usize = 64;
/// The VM's port.
const VM: usize = 0;

/// A load that runs.
pub(super) trait Running {
    /// The time that counts starts here, or ends here.
    fn mark(&mut self, wire: &Wire) -> Result<()>;
    /// Clock ticks of CPU time used so far.
    fn cpu_ticks(&mut self) -> Result<u64>;
    /// Ends it. What came through, and what was sent: frames, or bits.
    fn finish(self) -> Result<Rate>;
}

/// Frames from the VM to the wire, or back: testpmd plays them from a file.
pub(super) struct Small {
    testpmd: Testpmd,
    way: Way,
    marks: Vec<(Instant, u64, u64)>,
}

impl Small {
    pub(super) fn start(dir: &Path, cell: Cell, switch: &Switch, wire: &Wire) -> Result<Self> {
        let (from, to) = match cell.way {
            Way::Out => (VM, FAR),
            Way::In => (FAR, VM),
        };
        let file = dir.join(format!("uplink-{from}.pcap"));
        replay::write(&file, from, to, FLOWS, Size::Bytes(BYTES))?;
        let vm = format!(
            "net_virtio_user0,path={},mac={},queues=1,queue_size=1024",
            switch.socket(VM).display(),
            mac(VM)
        );
        let pcap = format!("net_pcap0,rx_pcap={},infinite_rx=1", file.display());
        // Frames go from the first port to the second, and from the third to the fourth; and back,
        // where there are none.
        let (devices, prefix) = match cell.way {
            Way::Out => (vec![pcap, vm], vec![]),
            Way::In => {
                let wire_end = format!("net_af_xdp0,iface={}", wire.device());
                let sink = "net_null0,no-rx=1".to_string();
                (vec![pcap, wire_end, vm, sink], wire.far_prefix())
            }
        };
        let mut line = guests::environment();
        line.extend(devices.iter().map(|device| format!("--vdev={device}")));
        line.extend(words(
            "-- -i --nb-cores=1 --burst=64 --rxd=1024 --txd=1024 --forward-mode=io --port-topology=paired",
        ));
        let mut testpmd = Testpmd::start_under(dir, "uplink", &prefix, &line)?;
        if cell.way == Way::Out {
            wire.announce()?;
        }
        testpmd.command("start")?;
        Ok(Self {
            testpmd,
            way: cell.way,
            marks: vec![],
        })
    }
}

impl Running for Small {
    fn mark(&mut self, wire: &Wire) -> Result<()> {
        let stats = self.testpmd.all_stats()?;
        let port = |n: usize| stats.get(n).context("too few ports in testpmd");
        let (received, sent) = match self.way {
            Way::Out => (wire.received()?, port(1)?.sent),
            Way::In => (port(2)?.received, port(1)?.sent),
        };
        self.marks.push((Instant::now(), received, sent));
        Ok(())
    }

    fn cpu_ticks(&mut self) -> Result<u64> {
        self.testpmd.process().cpu_ticks()
    }

    fn finish(mut self) -> Result<Rate> {
        self.testpmd.quit()?;
        let [(start, received, sent), (end, received_after, sent_after)] = self.marks[..] else {
            anyhow::bail!("the load has two marks");
        };
        let seconds = (end - start).as_secs_f64();
        Ok(Rate {
            delivered: (received_after - received) as f64 / seconds,
            sent: (sent_after - sent) as f64 / seconds,
        })
    }
}

/// One TCP connection between the host's port and the far end, by iperf3.
pub(super) struct Bulk {
    server: Process,
    client: Process,
}

impl Bulk {
    /// Seconds that are left out of what iperf3 says: the connection gets up to its speed. It knows
    /// whole seconds only.
    const LEFT_OUT: u64 = 1;

    pub(super) fn start(dir: &Path, cell: Cell, wire: &Wire, time: Duration) -> Result<Self> {
        let address = wire.far_address();
        let taskset = find_program("taskset").context("no taskset (package util-linux)")?;
        let iperf = |name: &str, prefix: &[String], arguments: &str| {
            // Of this turn only.
            let _ = std::fs::remove_file(dir.join(format!("{name}.log")));
            Process::start(dir, name, &taskset, Lifetime::Owner, |command| {
                command.args(["--cpu-list", &GUEST_CPU.to_string()]);
                command.args(prefix).arg("iperf3").args(words(arguments));
            })
        };
        let arguments = format!("--server --one-off --forceflush --bind {address}");
        let server = iperf("iperf3-server", &wire.far_prefix(), &arguments)?;
        wait_until("iperf3 to listen", PATIENCE, || {
            Ok(tail(server.log(), 5).contains("listening"))
        })?;
        let seconds = time.as_secs_f64().ceil();
        let back = match cell.way {
            Way::Out => "",
            Way::In => "--reverse",
        };
        let arguments = format!(
            "--client {address} --json --time {seconds} --omit {} {back}",
            Self::LEFT_OUT
        );
        let client = iperf("iperf3-client", &[], &arguments)?;
        Ok(Self { server, client })
    }
}

impl Running for Bulk {
    fn mark(&mut self, _: &Wire) -> Result<()> {
        self.server.check_running()?;
        self.client.check_running()
    }

    fn cpu_ticks(&mut self) -> Result<u64> {
        Ok(self.server.cpu_ticks()? + self.client.cpu_ticks()?)
    }

    fn finish(mut self) -> Result<Rate> {
        self.client.wait(PATIENCE)?;
        self.server.wait(PATIENCE)?;
        let file = File::open(self.client.log())?;
        let all: Value = serde_json::from_reader(file).context("what iperf3 says")?;
        let rate = |of: &str| {
            let rate = all["end"][of]["bits_per_second"].as_f64();
            rate.with_context(|| format!("no {of} in {all}"))
        };
        let (delivered, sent) = (rate("sum_received")?, rate("sum_sent")?);
        ensure!(delivered > 0.0, "nothing came through: {all}");
        Ok(Rate { delivered, sent })
    }
}
