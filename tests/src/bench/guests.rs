//! The guests: one testpmd on [`GUEST_CPU`], with a virtio-user port for each VM.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::cell::{Cell, Load, Size};
use super::switch::{Switch, words};
use super::{GUEST_CPU, mac, replay};
use crate::lab::Testpmd;

/// Frames that each port of `Load::Bounce` puts into circulation, in bursts of 64. Two ports' worth
/// fits into a ring, so that none is lost.
const BOUNCE_BURSTS: usize = 4;
/// The same for `Load::Star`, of which all ports' worth fits into one ring.
const STAR_BURSTS: usize = 1;
const RING: usize = 1024;

/// The guests of one measurement.
pub struct Guests {
    testpmd: Testpmd,
    /// testpmd's numbers of the ports whose received frames count.
    receivers: Vec<usize>,
    start: String,
}

/// What the guests saw in a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// Frames received, a second.
    pub delivered: f64,
    /// Frames the rings accepted for sending, a second.
    pub sent: f64,
}

/// The words of a command line of testpmd that are about neither ports nor traffic.
pub fn environment() -> Vec<String> {
    words(&format!(
        "--lcores 0@{GUEST_CPU},1@{GUEST_CPU} --no-pci --iova-mode=va --no-telemetry --in-memory \
         --single-file-segments --file-prefix guests --log-level lib.eal:warning -m 768"
    ))
}

/// A command line in the making.
struct Line {
    devices: Vec<String>,
    arguments: Vec<String>,
    /// testpmd's numbers of the VMs' ports.
    vms: Vec<usize>,
}

impl Guests {
    /// Starts them on `first` and the following ports of a switch.
    pub fn start(dir: &Path, cell: &Cell, switch: &Switch, first: usize) -> Result<Self> {
        let line = Line::new(dir, cell, switch, first)?;
        let receivers = match cell.load {
            Load::Incast => line.vms[line.vms.len() - 1..].to_vec(),
            _ => line.vms.clone(),
        };
        let testpmd = Testpmd::start(dir, "guests", &line.finish(cell))?;
        let start = match cell.load {
            Load::Bounce => format!("start tx_first {BOUNCE_BURSTS}"),
            Load::Star => format!("start tx_first {STAR_BURSTS}"),
            _ => "start".to_string(),
        };
        Ok(Self {
            testpmd,
            receivers,
            start,
        })
    }

    /// Starts the traffic.
    pub fn go(&mut self) -> Result<()> {
        self.testpmd.command(&self.start).map(drop)
    }

    /// Looks on for a while.
    pub fn watch(&mut self, time: Duration) -> Result<Rate> {
        let (start, sent, received) = self.count()?;
        std::thread::sleep(time);
        let (end, sent_after, received_after) = self.count()?;
        let seconds = (end - start).as_secs_f64();
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        Ok(Rate {
            delivered: rate(received, received_after),
            sent: rate(sent, sent_after),
        })
    }

    fn count(&mut self) -> Result<(Instant, u64, u64)> {
        let stats = self.testpmd.all_stats()?;
        let now = Instant::now();
        ensure!(
            self.receivers.iter().all(|port| *port < stats.len()),
            "testpmd shows {} ports",
            stats.len()
        );
        let received = self.receivers.iter().map(|port| stats[*port].received);
        let sent = stats.iter().map(|port| port.sent).sum();
        Ok((now, sent, received.sum()))
    }

    /// Clock ticks of CPU time used so far.
    pub fn cpu_ticks(&mut self) -> Result<u64> {
        self.testpmd.process().cpu_ticks()
    }

    /// Ends them in order, so that the switch sees every port go.
    pub fn quit(mut self) -> Result<()> {
        self.testpmd.quit()
    }
}

impl Line {
    fn new(dir: &Path, cell: &Cell, switch: &Switch, first: usize) -> Result<Self> {
        let mut line = Self {
            devices: vec![],
            arguments: vec![],
            vms: vec![],
        };
        let last = first + cell.ports - 1;
        for vm in first..first + cell.ports {
            match cell.load {
                Load::Incast if vm == last => line.devices.push("net_null0,no-rx=1".into()),
                Load::Incast => line.add_file(dir, cell, vm, last)?,
                Load::Replay => line.add_file(dir, cell, vm, vm ^ 1)?,
                Load::Generate | Load::Bounce | Load::Star => {}
            }
            let peer = match cell.load {
                Load::Star if vm == last => first,
                Load::Star => last,
                _ => vm ^ 1,
            };
            line.add_vm(cell, vm, peer, &switch.socket(vm));
        }
        Ok(line)
    }

    fn add_vm(&mut self, cell: &Cell, vm: usize, peer: usize, socket: &Path) {
        let number = self.devices.len();
        let on = |yes: bool| u8::from(yes);
        self.devices.push(format!(
            "net_virtio_user{vm},path={},mac={},queues={},queue_size={RING},packed_vq={},in_order={},mrg_rxbuf={}",
            socket.display(),
            mac(vm),
            cell.pairs,
            on(cell.packed),
            on(cell.in_order),
            on(cell.mergeable),
        ));
        self.arguments
            .push(format!("--eth-peer={number},{}", mac(peer)));
        self.vms.push(number);
    }

    /// A port that plays a file over and over; what is sent to it is dropped.
    fn add_file(&mut self, dir: &Path, cell: &Cell, vm: usize, to: usize) -> Result<()> {
        let path = dir.join(format!("vm{vm}.pcap"));
        replay::write(&path, vm, to, cell.flows, cell.size)?;
        self.devices.push(format!(
            "net_pcap{vm},rx_pcap={},infinite_rx=1",
            path.display()
        ));
        Ok(())
    }

    fn finish(self, cell: &Cell) -> Vec<String> {
        let mut line = environment();
        line.extend(self.devices.iter().map(|device| format!("--vdev={device}")));
        line.extend(words(&format!(
            "-- -i --nb-cores=1 --burst=64 --rxd={RING} --txd={RING} --rxq={pairs} --txq={pairs}",
            pairs = cell.pairs
        )));
        let bytes = match cell.size {
            Size::Bytes(bytes) => bytes,
            Size::Mix => 64,
        };
        line.extend(words(&match cell.load {
            Load::Generate => format!(
                "--forward-mode=flowgen --flowgen-flows={} --txpkts={bytes}",
                cell.flows
            ),
            Load::Bounce | Load::Star => format!(
                "--forward-mode=macswap --port-topology=loop --txonly-multi-flow --txpkts={bytes}"
            ),
            // Recomputes the checksums of what it sends and of what it received: every byte is read.
            _ if cell.touched => "--forward-mode=csum --port-topology=paired".to_string(),
            Load::Replay | Load::Incast => "--forward-mode=io --port-topology=paired".to_string(),
        }));
        line.extend(self.arguments);
        line
    }
}
