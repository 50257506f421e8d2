//! A machine without a disk: its firmware's own driver gets an operating system from the network.
//!
//! iPXE negotiates next to nothing and polls. Then Linux takes the same card with everything.
//! OVMF's driver is a third one.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use tandem_tests::lab::{
    Daemon, GuestConfig, Lab, Need, Nic, PATIENCE, boot_all, image, scenario, wait_until,
};

const ROM: &str = "/usr/lib/ipxe/qemu/pxe-virtio.rom";
const MAC: &str = "52:54:00:00:00:02";

/// The server's file system: that of any guest, and what it serves. Linux unpacks one archive
/// after the other.
fn server_image(lab: &Lab) -> Result<PathBuf> {
    let tree = lab.path().join("tree");
    let served = tree.join("srv");
    std::fs::create_dir_all(&served)?;
    let kernel = std::fs::read_dir(image::lab_dir().join("kernel/boot"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
        })
        .context("no compressed kernel")?;
    std::fs::copy(kernel, served.join("kernel"))?;
    std::fs::copy(image::initramfs()?, served.join("initrd"))?;
    let arguments = image::KERNEL_ARGUMENTS;
    let script = format!(
        "#!ipxe\nkernel http://10.0.0.1/kernel initrd=initrd {arguments}\n\
         initrd http://10.0.0.1/initrd\nboot\n"
    );
    std::fs::write(served.join("script"), script)?;
    let lease = "start 10.0.0.2\nend 10.0.0.9\ninterface eth0\nlease_file /tmp/leases\n\
        siaddr 10.0.0.1\nboot_file http://10.0.0.1/script\nopt subnet 255.255.255.0\n";
    std::fs::write(served.join("udhcpd.conf"), lease)?;
    let archive = lab.path().join("server.cpio");
    archive_tree(&tree, &archive)?;
    Ok(archive)
}

fn archive_tree(tree: &Path, archive: &Path) -> Result<()> {
    let command =
        "cat \"$1\" >\"$2\" && cd \"$0\" && find . | cpio --quiet -o -H newc -R 0:0 >>\"$2\"";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .arg(tree)
        .arg(image::initramfs()?)
        .arg(archive);
    let output = shell.output()?;
    if !output.status.success() {
        bail!("cpio: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn ipxe_boots_linux_through_the_switch() -> Result<()> {
    let needs = [Need::Guests, Need::File(ROM, "ipxe-qemu")];
    scenario(
        "guests_netboot::ipxe_boots_linux_through_the_switch",
        &needs,
        |lab| {
            let daemon = Daemon::with_ports(lab.path(), &["server", "client"])?;
            let server = GuestConfig::new("server")
                .memory_mib(768)
                .initramfs(server_image(lab)?)
                .nic(Nic::vhost_user(
                    daemon.socket("server"),
                    "52:54:00:00:00:01",
                ));
            let mut server = boot_all(lab.path(), [server])?.remove(0);
            server.configure("eth0", &["10.0.0.1/24"])?;
            server.exec("httpd -vv -h /srv 2>/tmp/requests && touch /tmp/leases")?;
            server.exec("udhcpd /srv/udhcpd.conf >/tmp/dhcp 2>&1")?;

            let nic = Nic::vhost_user(daemon.socket("client"), MAC);
            let client = GuestConfig::new("client")
                .memory_mib(768)
                .firmware_boot()
                .nic(nic.option("bootindex=1"));
            let mut client = client.start(lab.path())?;
            wait_until("iPXE to take its script", PATIENCE, || {
                client.process().check_running()?;
                Ok(daemon.port("client")?.frames("to_vm")? > 10)
            })?;
            client.wait_ready(2 * PATIENCE)?;
            let arguments = client.exec("cat /proc/cmdline")?;
            ensure!(
                arguments.contains("initrd=initrd"),
                "booted from elsewhere: {arguments}"
            );
            // The same card under another driver, with other features.
            client.configure("eth0", &["10.0.0.2/24"])?;
            client.stream("10.0.0.1", 2 << 20)?;
            daemon.check_arithmetic().map(drop)
        },
    )
}

const OVMF_PACKAGE: &str = "ovmf";
/// Code and variables of the UEFI firmware, by the names that distributions have had for them.
const OVMF: [[&str; 2]; 2] = [
    [
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ],
    [
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ],
];

/// The firmware on this machine; the names of one that is missing when there is none.
fn ovmf() -> [&'static str; 2] {
    let there = |files: &[&str; 2]| files.iter().all(|file| Path::new(file).exists());
    OVMF.into_iter().find(there).unwrap_or(OVMF[0])
}

#[test]
fn ovmf_asks_for_an_address() -> Result<()> {
    let [code, variables] = ovmf();
    let needs = [
        Need::Guests,
        Need::File(code, OVMF_PACKAGE),
        Need::File(variables, OVMF_PACKAGE),
    ];
    scenario("guests_netboot::ovmf_asks_for_an_address", &needs, |lab| {
        let daemon = Daemon::with_ports(lab.path(), &["client", "other"])?;
        let own = lab.path().join("variables");
        std::fs::copy(variables, &own)?;
        let nic = Nic::vhost_user(daemon.socket("client"), MAC);
        let client = GuestConfig::new("client")
            .firmware_boot()
            // The firmware's own driver, not the ROM of the card.
            .nic(nic.option("bootindex=1").option("romfile="))
            .argument("-drive")
            .argument(&format!(
                "if=pflash,unit=0,format=raw,readonly=on,file={code}"
            ))
            .argument("-drive")
            .argument(&format!(
                "if=pflash,unit=1,format=raw,file={}",
                own.display()
            ));
        let mut client = client.start(lab.path())?;
        wait_until("OVMF to send", PATIENCE, || {
            client.process().check_running()?;
            let port = daemon.port("client")?;
            let learned = port.0["learned_macs"] == serde_json::json!([MAC]);
            Ok(learned && port.frames("from_vm")? > 0)
        })?;
        drop(client);
        daemon.check_arithmetic().map(drop)
    })
}
