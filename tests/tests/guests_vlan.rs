//! VLANs: access ports, a trunk with a native VLAN, and what must not pass between them.

use anyhow::{Result, ensure};
use tandem_tests::lab::{Daemon, GuestConfig, Need, Nic, boot_two, scenario};

/// One guest with a card in each of three VLANs, one guest on the trunk.
#[test]
fn access_and_trunk() -> Result<()> {
    scenario("guests_vlan::access_and_trunk", &[Need::Guests], |lab| {
        let ports = [
            "v10,vm=access,vlan=10",
            "v20,vm=access,vlan=20",
            "v30,vm=access,vlan=30",
            "trunk,trunk_vlans=10+20,native_vlan=20",
        ];
        let daemon = Daemon::with_ports(lab.path(), &ports)?;
        let access = ["v10", "v20", "v30"].iter().zip(1..).fold(
            GuestConfig::new("access"),
            |guest, (port, n)| {
                let mac = format!("52:54:00:00:01:{n:02x}");
                guest.nic(Nic::vhost_user(daemon.socket(port), &mac))
            },
        );
        let trunk = GuestConfig::new("trunk")
            .nic(Nic::vhost_user(daemon.socket("trunk"), "52:54:00:00:02:01"));
        let (mut access, mut trunk) = boot_two(lab.path(), access, trunk)?;
        access.configure("eth0", &["10.0.10.1/24", "fd00:0:0:10::1/64"])?;
        access.configure("eth1", &["10.0.20.1/24"])?;
        // The third card is in another VLAN and says it is in the first's network.
        access.configure("eth2", &["10.0.10.3/32"])?;
        trunk.configure("eth0", &["10.0.20.2/24"])?;
        trunk.exec("ip link add link eth0 name eth0.10 type vlan id 10")?;
        trunk.configure("eth0.10", &["10.0.10.2/24", "fd00:0:0:10::2/64"])?;
        // Tagged on the trunk, untagged at the other end; offloads must survive the tag.
        access.ping("10.0.10.2", &[1472])?;
        access.stream("10.0.10.2", 2 << 20)?;
        trunk.stream("fd00:0:0:10::1", 2 << 20)?;
        trunk.echo("10.0.10.1", &[1, 1472, 5000])?;
        // The native VLAN goes untagged.
        access.ping("10.0.20.2", &[1472])?;
        trunk.stream("10.0.20.1", 1 << 20)?;

        // ARP asks without regard to routes.
        let ask = |card: &str| format!("arping -c 3 -w 3 -I {card} 10.0.10.2");
        ensure!(
            access.try_exec(&ask("eth0"))?.status == 0,
            "arping finds nobody in VLAN 10"
        );
        for card in ["eth1", "eth2"] {
            let heard = access.try_exec(&ask(card))?;
            ensure!(
                heard.status != 0,
                "{card} reaches VLAN 10 from its own:\n{}",
                heard.text
            );
        }
        // Tags a port is not a member of: dropped, and counted.
        trunk.exec("ip link add link eth0 name eth0.30 type vlan id 30")?;
        trunk.configure("eth0.30", &[])?;
        let before = daemon.port("trunk")?.drops("from_vm")?;
        trunk.try_exec("arping -c 2 -w 2 -I eth0.30 10.0.10.3")?;
        let after = daemon.port("trunk")?.drops("from_vm")?;
        ensure!(
            after > before,
            "frames of a foreign VLAN are not counted as dropped"
        );
        daemon.check_arithmetic().map(drop)
    })
}
