//! What loads a switch: testpmd for small frames, iperf3 for a TCP connection.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};

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
/// Ethernet, IPv4, and TCP with time stamps (RFC 7323), of a frame or a segment that is still whole.
const HEADERS: u64 = 14 + 20 + 32;
/// So many bytes of TCP, and it flows.
const STARTED: u64 = 1 << 20;
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
            Way::Out => (wire.received()?.0, port(1)?.sent),
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
            bail!("the load has two marks");
        };
        let seconds = (end - start).as_secs_f64();
        Ok(Rate {
            delivered: (received_after - received) as f64 / seconds,
            sent: (sent_after - sent) as f64 / seconds,
        })
    }
}

/// One TCP connection between the host's port and the far end, by iperf3. What counts is what came out
/// at the receiver's device.
pub(super) struct Bulk {
    // Dropped in this order.
    client: Process,
    server: Process,
    way: Way,
    marks: Vec<(Instant, u64)>,
}

impl Bulk {
    pub(super) fn start(dir: &Path, cell: Cell, wire: &Wire) -> Result<Self> {
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
        let back = match cell.way {
            Way::Out => "",
            Way::In => "--reverse",
        };
        // Until it is ended.
        let arguments = format!("--client {address} --time 3600 --congestion cubic {back}");
        let mut load = Self {
            client: iperf("iperf3-client", &[], &arguments)?,
            server,
            way: cell.way,
            marks: vec![],
        };
        // The first segments wait for ARP, and the switch may have to be ready first.
        let start = load.received(wire)?;
        wait_until("TCP to flow", PATIENCE, || {
            load.client.check_running()?;
            Ok(load.received(wire)? > start + STARTED)
        })?;
        Ok(load)
    }

    /// Bytes of TCP's payload that have come out.
    fn received(&self, wire: &Wire) -> Result<u64> {
        let (frames, bytes) = match self.way {
            Way::Out => wire.received()?,
            Way::In => wire.received_by_host()?,
        };
        Ok(bytes.saturating_sub(frames * HEADERS))
    }
}

impl Running for Bulk {
    fn mark(&mut self, wire: &Wire) -> Result<()> {
        self.server.check_running()?;
        self.client.check_running()?;
        self.marks.push((Instant::now(), self.received(wire)?));
        Ok(())
    }

    fn cpu_ticks(&mut self) -> Result<u64> {
        Ok(self.server.cpu_ticks()? + self.client.cpu_ticks()?)
    }

    fn finish(self) -> Result<Rate> {
        let [(start, before), (end, after)] = self.marks[..] else {
            bail!("the load has two marks");
        };
        let bits = 8.0 * after.saturating_sub(before) as f64 / (end - start).as_secs_f64();
        Ok(Rate {
            delivered: bits,
            sent: bits,
        })
    }
}
