//! Open vSwitch with DPDK.

use std::path::Path;

use anyhow::Result;

use super::switch::{Kind, Layout, port_name};
use super::uplink::{self, Driver};
use super::{GUEST_CPU, SWITCH_CPU, mac};
use crate::lab::process::Process;
use crate::lab::{PATIENCE, wait_until};

/// Where Debian and Ubuntu put the build with DPDK.
pub const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";

/// Why there is no Open vSwitch with DPDK here; `None` when there is.
pub fn missing() -> Option<String> {
    (!Path::new(VSWITCHD).exists())
        .then(|| format!("{VSWITCHD} is not there (package openvswitch-switch-dpdk)"))
}

/// A running Open vSwitch.
pub struct Ovs(crate::lab::Ovs);

impl Ovs {
    /// Starts it with one bridge and `layout`'s ports.
    pub fn start(dir: &Path, layout: Layout) -> Result<Self> {
        let (switch_mask, guest_mask) = (1 << SWITCH_CPU, 1 << GUEST_CPU);
        let pmd = format!("other_config:pmd-cpu-mask={switch_mask:#x}");
        let lcore = format!("other_config:dpdk-lcore-mask={guest_mask:#x}");
        let settings = [
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            &pmd,
            &lcore,
            "other_config:dpdk-socket-mem=768",
            "other_config:dpdk-extra=--no-pci --in-memory",
        ];
        let ovs = crate::lab::Ovs::start(dir, Path::new(VSWITCHD), &settings)?;
        add_ports(&ovs, dir, layout)?;
        Ok(Self(ovs))
    }

    /// The switch itself.
    pub fn process(&mut self) -> &mut Process {
        self.0.process()
    }
}

fn add_ports(ovs: &crate::lab::Ovs, dir: &Path, layout: Layout) -> Result<()> {
    let mut line = "add-br br0 -- set bridge br0 datapath_type=netdev".to_string();
    for port in 0..layout.ports {
        let name = port_name(port);
        line.push_str(&format!(
            " -- add-port br0 {name} -- set Interface {name} type=dpdkvhostuser"
        ));
    }
    let host = layout
        .host
        .then(|| (uplink::switch_side(Kind::Ovs), Driver::AfPacket));
    let uplink = layout
        .uplink
        .map(|driver| (uplink::uplink_device(Kind::Ovs), driver));
    for (n, (device, driver)) in host.into_iter().chain(uplink).enumerate() {
        let driver = driver.name();
        line.push_str(&format!(
            " -- add-port br0 {device} -- set Interface {device} type=dpdk \
             options:dpdk-devargs=net_{driver}{n},iface={device}"
        ));
    }
    ovs.vsctl(&line)?;
    for port in 0..layout.ports {
        wait_until("a port of Open vSwitch", PATIENCE, || {
            Ok(dir.join(port_name(port)).exists())
        })?;
        if layout.static_macs {
            ovs.appctl(&["fdb/add", "br0", &port_name(port), "0", &mac(port)])?;
        }
    }
    Ok(())
}
