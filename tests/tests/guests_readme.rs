//! QEMU with the line of the README, word for word.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use tandem_tests::lab::agent::Agent;
use tandem_tests::lab::image::Accelerator;
use tandem_tests::lab::process::{Lifetime, Process};
use tandem_tests::lab::readme::ReadmeCommand;
use tandem_tests::lab::{
    Daemon, GuestConfig, Need, Nic, PATIENCE, Qemu, image, qemus, scenario, tail,
};

/// The README's line for this machine: its paths, the lab's kernel and file system for the
/// reader's disk, less memory, and what the text below the line says about QEMU without KVM and
/// newer QEMU.
fn line(qemu: &Qemu, socket: &Path) -> Result<ReadmeCommand> {
    let boot = format!(
        "-kernel {} -initrd {}",
        image::kernel().display(),
        image::initramfs()?.display()
    );
    let mut line = ReadmeCommand::find("qemu-system-x86_64")?
        .replace("/run/tandem/web1.sock", &socket.display().to_string())?
        .replace("-drive file=web.qcow2,if=virtio", &boot)?
        .replace("-m 1G", "-m 256M")?
        .replace("size=1G", "size=256M")?
        .replace("reconnect=1", qemu.reconnect())?;
    if image::accelerator()? == Accelerator::Tcg {
        line = line.replace("accel=kvm", "accel=tcg")?;
        if qemu.crashes_emulating_msix() {
            let mac = "mac=52:54:00:00:00:01";
            line = line.replace(mac, &format!("{mac},vectors=0"))?;
        }
    }
    Ok(line)
}

/// Adds no more than a serial line for the agent, and takes away the screen.
fn start(dir: &Path, qemu: &Qemu, socket: &Path) -> Result<Process> {
    let line = line(qemu, socket)?;
    let agent = format!("unix:{},server=on,wait=off", dir.join("a.agent").display());
    let console = format!("file:{}", dir.join("a.console.log").display());
    Process::start(dir, "qemu-a", &qemu.program, Lifetime::Owner, |command| {
        for data in &qemu.data_dirs {
            command.arg("-L").arg(data);
        }
        command.args(line.arguments());
        command.args(["-append", image::KERNEL_ARGUMENTS, "-display", "none"]);
        command.args(["-serial", &agent, "-serial", &console]);
    })
}

#[test]
fn the_qemu_line_works() -> Result<()> {
    scenario(
        "guests_readme::the_qemu_line_works",
        &[Need::Guests],
        |lab| {
            let daemon = Daemon::with_ports(lab.path(), &["a", "b"])?;
            let nic = Nic::vhost_user(daemon.socket("b"), "52:54:00:00:00:0b");
            let mut b = GuestConfig::new("b").nic(nic).boot(lab.path())?;
            b.configure("eth0", &["10.0.0.2/24"])?;
            for qemu in qemus()? {
                let vmm = start(lab.path(), &qemu, &daemon.socket("a"))?;
                let mut a = Agent::connect(&lab.path().join("a.agent"))?;
                a.wait_ready(PATIENCE)
                    .with_context(|| tail(vmm.log(), 20))?;
                let up = "ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up";
                let up = a.exec(up, PATIENCE)?;
                ensure!(up.status == 0, "{}", up.text);
                b.ping("10.0.0.1", &[1472])?;
                b.stream("10.0.0.1", 2 << 20)?;
                daemon.check_arithmetic()?;
                drop(vmm);
                daemon.wait_port("a", "is free again", |port| !port.is_up())?;
                std::fs::remove_file(lab.path().join("a.agent"))?;
            }
            Ok(())
        },
    )
}
