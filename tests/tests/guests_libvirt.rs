//! libvirt with the lines of the README, word for word, and on two hosts.

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use tandem_tests::lab::agent::Agent;
use tandem_tests::lab::process::{Lifetime, Process};
use tandem_tests::lab::{
    Daemon, GuestConfig, Libvirtd, Need, Nic, PATIENCE, Qemu, find_program, image, libvirtd, qemus,
    say, scenario, wait_until,
};
use tandem_tests::migration::rig::{FAR, NAMES, NEIGHBOURS, PORT, VM};
use tandem_tests::migration::{Rig, Wiring};

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

/// A domain `a` with the README's interface at this socket.
fn domain(dir: &Path, socket: &Path, qemu: &Qemu) -> Result<String> {
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
    // What libvirt has no words for.
    let workaround = if qemu.crashes_emulating_msix() {
        "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>
           <arg value='-global'/><arg value='virtio-net-pci.vectors=0'/></commandline>"
    } else {
        ""
    };
    let qemu = qemu.program.display();
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
        std::fs::write(
            &xml,
            domain(lab.path(), &daemon.socket("a"), &qemus()?.remove(0))?,
        )?;
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

/// Two hosts with a libvirtd each, a VM on the first, and who moves it.
struct Hosts {
    // Dropped in this order.
    libvirt: [Libvirtd; 2],
    rig: Rig,
    migrate_uri: String,
}

impl Hosts {
    fn start(dir: &Path) -> Result<Self> {
        let rig = Rig::start(dir, Wiring::Direct, "")?;
        let start = |i: usize| {
            let run_dir = rig.hosts[i].daemon.run_dir();
            Libvirtd::start(dir, NAMES[i], i as u8, &run_dir)
        };
        Ok(Self {
            libvirt: [start(0)?, start(1)?],
            rig,
            migrate_uri: format!("unix://{}", dir.join("migration").display()),
        })
    }

    /// Boots the VM on host 0, and waits until all stations know it.
    fn boot(&self, dir: &Path) -> Result<()> {
        let mut qemu = qemus()?.pop().context("no QEMU")?;
        qemu.program = libvirtd::QEMU.into();
        let socket = Path::new(libvirtd::RUN_DIR).join(format!("{PORT}.sock"));
        let mac = VM.mac.map(|byte| format!("{byte:02x}")).join(":");
        let xml = domain(dir, &socket, &qemu)?.replace("52:54:00:00:00:01", &mac);
        ensure!(xml.contains(&mac), "no MAC address in {xml}");
        let file = dir.join("a.xml");
        std::fs::write(&file, xml)?;
        let file = file.to_str().context("path")?;
        let logs = || self.libvirt[0].logs("a");
        (self.libvirt[0].virsh(&["create", "--validate", file])).with_context(logs)?;
        let mut agent = Agent::connect(&dir.join("a.agent")).with_context(logs)?;
        agent.wait_ready(PATIENCE).with_context(logs)?;
        let ip = Ipv4Addr::from(VM.ip);
        let mut exec = |line: &str| {
            let output = agent.exec(line, PATIENCE).with_context(logs)?;
            ensure!(output.status == 0, "{line}: {}", output.text);
            Ok(())
        };
        exec(&format!(
            "ip addr add {ip}/24 dev eth0 && ip link set eth0 up"
        ))?;
        for station in [FAR, NEIGHBOURS[0], NEIGHBOURS[1]] {
            exec(&format!("ping -c 1 -w 20 {}", Ipv4Addr::from(station.ip)))?;
        }
        Ok(())
    }

    /// `tandem migration start` on host `from`; `more` are arguments besides.
    fn start_move(&self, from: usize, more: &[String]) -> Result<Output> {
        let [here, there] = [from, 1 - from].map(|host| self.libvirt[host].uri());
        let mut words = vec!["migration", "start", PORT, "--virsh", "a"];
        words.extend(["--connect", &here, "--uri", &there]);
        words.extend(["--migrate-uri", &self.migrate_uri]);
        words.extend(more.iter().map(String::as_str));
        self.rig.hosts[from].daemon.cli_output(&words)
    }

    /// `virsh migrate` from host `from`, which Tandem has no part in.
    fn virsh_move(&self, from: usize) -> Result<Output> {
        let there = self.libvirt[1 - from].uri();
        let words = [
            "migrate",
            "--live",
            "a",
            &there,
            "--migrateuri",
            &self.migrate_uri,
        ];
        self.libvirt[from].virsh_output(&words)
    }

    /// The VM is on this host, and only there.
    fn check_host(&self, host: usize) -> Result<()> {
        let state = self.libvirt[host].virsh(&["domstate", "a"])?;
        ensure!(state.trim() == "running", "on host {host} it is {state}");
        let elsewhere = self.libvirt[1 - host].virsh(&["list", "--name"])?;
        ensure!(elsewhere.trim().is_empty(), "also there: {elsewhere}");
        let port = self.rig.hosts[host].daemon.port(PORT)?;
        ensure!(port.is_up(), "its port is down: {}", port.reason());
        Ok(())
    }
}

fn check_refused(output: &Output, words: &str) -> Result<()> {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "it has moved");
    ensure!(error.contains("Hook script execution failed"), "{error}");
    ensure!(error.contains(words), "{error}");
    Ok(())
}

/// By `tandem migration start`, by virsh between `prepare` and the hook's commit, and not at all where the hook of
/// the other host refuses.
#[test]
fn a_domain_is_moved_and_hooks_have_a_say() -> Result<()> {
    let needs = [
        Need::Guests,
        Need::Root,
        Need::Program("ovs-vswitchd", "openvswitch-switch"),
        Need::Program("ethtool", "ethtool"),
        Need::Program("virsh", "libvirt-clients"),
        Need::File(libvirtd::PROGRAM, "libvirt-daemon"),
        Need::File(DRIVER, "libvirt-daemon-driver-qemu"),
        Need::File("/etc/libvirt/qemu.conf", "libvirt-daemon-system"),
    ];
    let name = "guests_libvirt::a_domain_is_moved_and_hooks_have_a_say";
    scenario(name, &needs, |lab| {
        let hosts = Hosts::start(lab.path())?;
        hosts.boot(lab.path())?;
        let prober = hosts.rig.prober()?;
        let output = hosts.start_move(0, &hosts.rig.way(0))?;
        let logs = || format!("{output:?}\n{}", hosts.libvirt[1].logs("a"));
        ensure!(output.status.success(), "{}", logs());
        hosts.rig.wait_stage(0, "committed")?;
        hosts.check_host(1).with_context(logs)?;

        // Somebody is quicker than the VM.
        hosts.rig.prepare(1)?;
        let daemon = &hosts.rig.hosts[0].daemon;
        let other = UnixStream::connect(daemon.socket(PORT))?;
        daemon.wait_port(PORT, "is taken", |port| {
            port.0["session"]["connected"] == true
        })?;
        let output = hosts.start_move(1, &[])?;
        check_refused(&output, "port vm is taken")?;
        hosts.rig.wait_stage(1, "aborted")?;
        hosts.check_host(1)?;
        drop(other);
        daemon.wait_port(PORT, "is free", |port| {
            port.0["session"]["connected"] == false
        })?;
        let log = prober.stop()?;
        let (lost, asked) = (log.lost().count(), log.probes.len());
        say(&format!(
            "      {lost} of {asked} lost, silent for {:?}",
            log.longest_gap().length()
        ));
        log.check_alive()?;
        ensure!(lost == 0, "{lost} of {asked} lost");

        // The hook of the host that it leaves commits before virsh is done.
        hosts.rig.prepare(1)?;
        let output = hosts.virsh_move(1)?;
        ensure!(output.status.success(), "{output:?}");
        let now = hosts.rig.hosts[1].daemon.get("migrations/vm")?;
        ensure!(now["stage"] == "committed", "{now}");
        hosts.check_host(0)?;

        hosts.rig.hosts[1].daemon.cli(&["port", "remove", PORT])?;
        let output = hosts.virsh_move(0)?;
        check_refused(&output, "no port has the socket /run/tandem/vm.sock")?;
        hosts.check_host(0)
    })
}
