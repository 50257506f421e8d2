//! The laboratory itself, without the switch: if these fail, look here first.

use anyhow::Result;
use tandem_tests::lab::{Guest, GuestConfig, Need, Nic, long, qemus, scenario};

/// Two guests on a cable that QEMU itself provides.
#[test]
fn two_guests_talk_without_the_switch() -> Result<()> {
    scenario(
        "guests_lab::two_guests_talk_without_the_switch",
        &[Need::Guests],
        |lab| {
            // The others boot in many more tests.
            let some = if long() { usize::MAX } else { 1 };
            for qemu in qemus()?.into_iter().take(some) {
                let cable = lab.path().join(format!("cable-{}", qemu.name()));
                let end = |name: &str, number: u8, role: &str| -> Result<Guest> {
                    let backend = match qemu.version {
                        (7.., 2..) | (8.., _) => format!(
                            "stream,addr.type=unix,addr.path={},server={role}",
                            cable.display()
                        ),
                        _ => format!(
                            "socket,{}=127.0.0.1:47123",
                            if role == "on" { "listen" } else { "connect" }
                        ),
                    };
                    let nic = Nic::other(&backend, &format!("52:54:00:00:00:{number:02x}"));
                    GuestConfig::new(name)
                        .qemu(&qemu)
                        .nic(nic)
                        .start(lab.path())
                };
                let mut a = end("a", 1, "on")?;
                let mut b = end("b", 2, "off")?;
                a.wait_ready(tandem_tests::lab::PATIENCE)?;
                b.wait_ready(tandem_tests::lab::PATIENCE)?;
                a.configure("eth0", &["10.0.0.1/24", "fd00::1/64"])?;
                b.configure("eth0", &["10.0.0.2/24", "fd00::2/64"])?;
                a.ping("10.0.0.2", &[56, 1472, 4000])?;
                b.stream("10.0.0.1", 1 << 20)?;
                a.stream("fd00::2", 1 << 20)?;
                a.echo("10.0.0.2", &[1, 100, 1472, 5000])?;
                a.reset()?;
                b.reboot()?;
            }
            Ok(())
        },
    )
}
