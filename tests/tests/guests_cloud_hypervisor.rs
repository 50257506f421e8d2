//! cloud-hypervisor with the line of the README, word for word.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use tandem_tests::lab::agent::Agent;
use tandem_tests::lab::process::{Lifetime, Process};
use tandem_tests::lab::readme::ReadmeCommand;
use tandem_tests::lab::{
    Daemon, GuestConfig, Need, Nic, PATIENCE, find_program, image, scenario, tail,
};

/// Starts the README's VM on a port's socket. The lab's kernel and file system stand in for the
/// reader's kernel and disk, and a serial line for the agent is added.
fn start(dir: &Path, socket: &Path) -> Result<Process> {
    let kernel = format!("--kernel {}", image::kernel().display());
    let initramfs = format!("--initramfs {}", image::initramfs()?.display());
    let line = ReadmeCommand::find("cloud-hypervisor")?
        .replace("--kernel vmlinux", &kernel)?
        .replace("--disk path=web.raw", &initramfs)?
        .replace("/run/tandem/web1.sock", &socket.display().to_string())?;
    let program = find_program("cloud-hypervisor").context("no cloud-hypervisor")?;
    let serial = format!("socket={}", dir.join("a.agent").display());
    Process::start(
        dir,
        "cloud-hypervisor",
        &program,
        Lifetime::Owner,
        |command| {
            command.args(line.arguments());
            command.args(["--cmdline", image::KERNEL_ARGUMENTS]);
            command.args(["--serial", &serial, "--console", "off"]);
        },
    )
}

#[test]
fn the_readmes_line_works() -> Result<()> {
    let needs = [
        Need::Guests,
        Need::Program("cloud-hypervisor", "cloud-hypervisor"),
        Need::Kvm,
    ];
    let name = "guests_cloud_hypervisor::the_readmes_line_works";
    scenario(name, &needs, |lab| {
        let daemon = Daemon::with_ports(lab.path(), &["a", "b"])?;
        let nic = Nic::vhost_user(daemon.socket("b"), "52:54:00:00:00:0b");
        let mut b = GuestConfig::new("b").nic(nic).boot(lab.path())?;
        b.configure("eth0", &["10.0.0.2/24"])?;

        let vmm = start(lab.path(), &daemon.socket("a"))?;
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
        daemon.wait_port("a", "is free again", |port| !port.is_up())
    })
}
