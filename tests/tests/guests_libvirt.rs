//! libvirt with the lines of the README, word for word.

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tandem_tests::lab::agent::Agent;
use tandem_tests::lab::process::{Lifetime, Process};
use tandem_tests::lab::{
    Daemon, GuestConfig, Need, Nic, PATIENCE, find_program, image, qemus, scenario, wait_until,
};

const DRIVER: &str = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so";

/// The part of the README from `<NAME` to `</NAME>`.
fn readme_element(name: &str) -> Result<String> {
    let text = std::fs::read_to_string(image::source_root().join("README.md"))?;
    let end = format!("</{name}>");
    let found = text.find(&format!("<{name}")).and_then(|start| {
        let length = text[start..].find(&end)? + end.len();
        Some(text[start..start + length].to_string())
    });
    found.with_context(|| format!("no <{name}> in README.md"))
}

fn domain(dir: &Path, socket: &Path) -> Result<String> {
    let interface = readme_element("interface")?;
    let example = "/run/tandem/web1.sock";
    ensure!(
        interface.contains(example),
        "no {example} in the README's interface"
    );
    let interface = interface.replace(example, &socket.display().to_string());
    let memory = readme_element("memoryBacking")?;
    let (kernel, initrd) = (image::kernel(), image::initramfs()?);
    let arguments = image::KERNEL_ARGUMENTS;
    let (kernel, initrd, dir) = (kernel.display(), initrd.display(), dir.display());
    let system = qemus()?.remove(0);
    // What libvirt has no words for.
    let workaround = if system.crashes_emulating_msix() {
        "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>
           <arg value='-global'/><arg value='virtio-net-pci.vectors=0'/></commandline>"
    } else {
        ""
    };
    let qemu = system.program.display();
    Ok(format!(
        "<domain type='qemu'><name>a</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
        {memory}
        <os><type arch='x86_64' machine='q35'>hvm</type>
          <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{arguments}</cmdline></os>
        <features><acpi/></features><cpu mode='maximum'/>
        <devices><emulator>{qemu}</emulator>
          {interface}
          <serial type='unix'><source mode='bind' path='{dir}/a.agent'/></serial>
          <serial type='file'><source path='{dir}/a.console.log'/></serial>
          <controller type='usb' model='none'/><memballoon model='none'/>
        </devices>{workaround}</domain>"
    ))
}

/// virsh with libvirt inside, so that nothing of the machine's libvirt is touched.
struct Libvirt {
    virsh: Process,
    /// Ends QEMU, which libvirt starts as a daemon, when this process is gone or done: it waits
    /// for the end of its input.
    reaper: Process,
}

impl Libvirt {
    fn start(dir: &Path, xml: &Path) -> Result<Self> {
        let root = dir.join("libvirt");
        let program = find_program("virsh").context("no virsh")?;
        let connection = format!("qemu:///embed?root={}", root.display());
        // Our directory is for nobody but us, so QEMU runs as us, and needs no other protection.
        std::fs::create_dir_all(root.join("etc"))?;
        let settings = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n\
            dynamic_ownership = 0\nremember_owner = 0\nstdio_handler = \"file\"\n";
        std::fs::write(root.join("etc/qemu.conf"), settings)?;
        let mut virsh = Process::start(dir, "virsh", &program, Lifetime::Owner, |command| {
            command.args(["-c", &connection]).stdin(Stdio::piped());
        })?;
        let mut stdin = virsh.child().stdin.take().context("no input")?;
        writeln!(stdin, "create --validate {}", xml.display())?;
        // virsh ends with its input.
        virsh.child().stdin = Some(stdin);
        let pid_file = root.join("run/qemu/a.pid");
        let mut pid = String::new();
        wait_until("libvirt to start QEMU", PATIENCE, || {
            virsh.check_running()?;
            pid = std::fs::read_to_string(&pid_file).unwrap_or_default();
            Ok(!pid.trim().is_empty())
        })
        .with_context(|| libvirt_logs(dir, &root))?;
        let reaper = reaper(dir, pid.trim())?;
        Ok(Self { virsh, reaper })
    }

    /// Asks libvirt to end the guest, and waits until it has.
    fn destroy(mut self) -> Result<()> {
        let mut stdin = self.virsh.child().stdin.take().context("no input")?;
        writeln!(stdin, "destroy a")?;
        drop(stdin);
        self.virsh.wait(PATIENCE)?;
        drop(self.reaper.child().stdin.take());
        self.reaper.wait(PATIENCE).map(drop)
    }
}

fn reaper(dir: &Path, pid: &str) -> Result<Process> {
    let script = "cat >/dev/null; kill -9 \"$0\" 2>/dev/null; exit 0";
    let shell = PathBuf::from("/bin/sh");
    let mut reaper = Process::start(dir, "reaper", &shell, Lifetime::Detached, |command| {
        command.args(["-c", script, pid]).stdin(Stdio::piped());
    })?;
    // It must outlive us.
    reaper.release();
    Ok(reaper)
}

fn libvirt_logs(dir: &Path, root: &Path) -> String {
    let log = |path: PathBuf| tandem_tests::lab::tail(&path, 20);
    format!(
        "virsh: {}\nQEMU: {}",
        log(dir.join("virsh.log")),
        log(root.join("log/qemu/a.log"))
    )
}

#[test]
fn the_readmes_lines_work() -> Result<()> {
    let needs = [
        Need::Guests,
        Need::Program("virsh", "libvirt-clients"),
        Need::File(DRIVER, "libvirt-daemon-driver-qemu"),
        // With it comes the user that libvirt insists on.
        Need::File("/etc/libvirt/qemu.conf", "libvirt-daemon-system"),
    ];
    let name = "guests_libvirt::the_readmes_lines_work";
    scenario(name, &needs, |lab| {
        let daemon = Daemon::with_ports(lab.path(), &["a", "b"])?;
        let xml = lab.path().join("a.xml");
        std::fs::write(&xml, domain(lab.path(), &daemon.socket("a"))?)?;
        let nic = Nic::vhost_user(daemon.socket("b"), "52:54:00:00:00:0b");
        let mut b = GuestConfig::new("b").nic(nic).start(lab.path())?;
        let libvirt = Libvirt::start(lab.path(), &xml)?;
        let mut a = Agent::connect(&lab.path().join("a.agent"))?;
        a.wait_ready(PATIENCE)
            .with_context(|| libvirt_logs(lab.path(), &lab.path().join("libvirt")))?;
        b.wait_ready(PATIENCE)?;
        b.configure("eth0", &["10.0.0.2/24"])?;
        let up = a.exec(
            "ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up",
            PATIENCE,
        )?;
        ensure!(up.status == 0, "{}", up.text);
        b.ping("10.0.0.1", &[1472])?;
        b.stream("10.0.0.1", 2 << 20)?;
        daemon.check_arithmetic()?;
        libvirt.destroy()?;
        daemon.wait_port("a", "is free again", |port| !port.is_up())
    })
}
