//! The Debian package on a clean machine: from `dpkg -i` to the purge, under its own systemd.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::lab::container::Container;
use tandem_tests::lab::image::source_root;
use tandem_tests::lab::process::{Lifetime, Process};
use tandem_tests::lab::{
    Lab, Need, PATIENCE, build_daemon, qemus, say, scenario, skip_part, wait_until,
};

/// The group of a VMM that is nobody otherwise.
const VMM: u32 = 4242;
/// The user and group `nobody`.
const NOBODY: u32 = 65534;

/// Builds the package of the programs under test, in a directory of its own.
fn package(lab: &Lab) -> Result<PathBuf> {
    build_daemon()?;
    let files = lab.path().join("files");
    let script = source_root().join("ci/package");
    let output = Command::new(&script)
        .arg("--debug")
        .arg(&files)
        .output()
        .context("ci/package")?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{error}");
    Ok(files)
}

/// The machine with the package on it.
struct Host {
    container: Container,
}

impl Host {
    /// A port as the API shows it.
    fn port(&self, name: &str) -> Result<Value> {
        let text = self.tandem(&["port", "show", name, "--json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    fn tandem(&self, arguments: &[&str]) -> Result<String> {
        self.container.run(&[&["tandem"], arguments].concat())
    }

    fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        self.container.run(&[&["systemctl"], arguments].concat())
    }

    /// What systemd knows of the service.
    fn property(&self, name: &str) -> Result<String> {
        let text = self.systemctl(&["show", "--property", name, "--value", "tandemd"])?;
        Ok(text.trim().to_string())
    }

    /// Waits until the service runs as another process than `before`, ready.
    fn wait_new_process(&self, before: &str) -> Result<()> {
        wait_until("the service to be there again", PATIENCE, || {
            let state = self.property("ActiveState")?;
            ensure!(state != "failed", "{}", self.log()?);
            Ok(state == "active" && self.property("MainPID")? != before)
        })
    }

    fn socket(&self, port: &str) -> PathBuf {
        self.container.path(&format!("/run/tandem/{port}.sock"))
    }

    fn log(&self) -> Result<String> {
        self.container
            .run(&["journalctl", "--no-pager", "--unit", "tandemd"])
    }

    /// Files of the root file system, but for what dpkg and systemd write about themselves.
    fn files(&self) -> Result<BTreeSet<String>> {
        let own =
            "-path /var/lib/dpkg -o -path /var/cache -o -path /var/log -o -path /var/lib/systemd";
        let list = self
            .container
            .sh(&format!("find / -xdev \\( {own} \\) -prune -o -print"))?;
        Ok(list.lines().map(str::to_string).collect())
    }
}

/// Two VMs on the ports `web1` and `web2`, which greet each other.
struct Vms {
    nics: [Nic; 2],
    sent: u64,
}

impl Vms {
    fn start(host: &Host) -> Result<Self> {
        let nic = |port| Nic::start(&host.socket(port), &Config::default());
        Ok(Self {
            nics: [nic("web1")?, nic("web2")?],
            sent: 0,
        })
    }

    /// A frame each way arrives.
    fn talk(&mut self) {
        let [a, b] = &mut self.nics;
        self.sent += 1;
        a.send_plain(&numbered(mac(1), mac(2), self.sent));
        while number_of(&b.recv().1) != self.sent {}
        b.send_plain(&numbered(mac(2), mac(1), self.sent));
        while number_of(&a.recv().1) != self.sent {}
    }

    /// Connects again, as a VMM does that tries again and again.
    fn reconnect(&mut self) -> Result<()> {
        for nic in &mut self.nics {
            let bases = nic.bases_after_loss();
            wait_until("a VM to be connected again", PATIENCE, || {
                Ok(nic.reconnect(&bases).is_ok())
            })?;
        }
        self.talk();
        Ok(())
    }
}

#[test]
fn from_installation_to_purge() -> Result<()> {
    let needs = [
        Need::Root,
        Need::Guests,
        Need::Program("systemd-nspawn", "systemd-container"),
        Need::Program("dpkg-deb", "dpkg"),
        Need::CleanMachine,
    ];
    let name = "guests_package::from_installation_to_purge";
    scenario(name, &needs, |lab| {
        let files = package(lab)?;
        let host = Host {
            container: Container::boot(lab.path(), &files)?,
        };
        let before = host.files()?;
        install(&host)?;
        confined(&host)?;
        ports(&host)?;
        let mut vms = Vms::start(&host)?;
        vms.talk();
        let _vmm = unprivileged_vmm(lab, &host)?;
        groups(&host)?;
        reload(&host, &mut vms)?;
        restart(&host, &mut vms)?;
        crash(&host, &mut vms)?;
        hang(&host, &mut vms)?;
        upgrade(&host, &mut vms)?;
        documented(&host)?;
        hooked(&host)?;
        remove(&host, &before)
    })
}

fn install(host: &Host) -> Result<()> {
    host.container.sh("dpkg -i /mnt/*.deb")?;
    // It is started at once, and at each boot.
    ensure!(host.property("ActiveState")? == "active", "{}", host.log()?);
    host.systemctl(&["is-enabled", "tandemd"])?;
    host.tandem(&["status"])?;
    host.container.run(&["tandemd", "--check"])?;
    let described = "/usr/share/qemu/vhost-user/50-tandem.json";
    let described: Value = serde_json::from_str(&host.container.run(&["cat", described])?)?;
    let program = described["binary"].as_str().context("binary")?;
    let said = host.container.run(&[program, "--print-capabilities"])?;
    let said: Value = serde_json::from_str(&said)?;
    ensure!(
        described["type"] == "net" && said["type"] == "net",
        "{said}"
    );
    Ok(())
}

/// It is nobody special, and systemd finds little to say against it.
fn confined(host: &Host) -> Result<()> {
    let pid = host.property("MainPID")?;
    let status = host
        .container
        .run(&["cat", &format!("/proc/{pid}/status")])?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        Ok::<_, anyhow::Error>(line.with_context(|| format!("no {name}"))?.trim())
    };
    ensure!(
        !field("Uid:")?.split('\t').any(|uid| uid == "0"),
        "{status}"
    );
    let limit = host.property("LimitNOFILE")?.parse::<u64>()?;
    ensure!(
        limit >= 100_000,
        "{limit} descriptors are too few for 1,000 ports"
    );
    // CAP_CHOWN is bit 0, CAP_NET_ADMIN bit 12, CAP_NET_RAW bit 13.
    let bounds = u64::from_str_radix(field("CapBnd:")?, 16)?;
    ensure!(bounds & !(3 << 12 | 1) == 0, "{status}");
    ensure!(field("NoNewPrivs:")? == "1", "{status}");
    let exposure = [
        "systemd-analyze",
        "security",
        "--no-pager",
        "--threshold=25",
        "tandemd",
    ];
    host.container.run(&exposure).map(drop)
}

fn ports(host: &Host) -> Result<()> {
    host.container
        .run(&["groupadd", "--gid", &VMM.to_string(), "vmm"])?;
    host.tandem(&["port", "add", "web1", "--queue-pairs", "2"])?;
    host.tandem(&["port", "add", "web2"])?;
    host.tandem(&["port", "add", "desk", "--socket-group", "vmm"])?;
    host.tandem(&["port", "add", "host", "--tap", "tandem0"])?;
    ensure!(host.port("host")?["state"] == "up", "no TAP device");
    host.container
        .run(&["test", "-e", "/sys/class/net/tandem0"])
        .map(drop)
}

/// QEMU as nobody in the group of the socket, on the port `desk`. It tries again by itself.
fn unprivileged_vmm(lab: &Lab, host: &Host) -> Result<Process> {
    let qemu = qemus()?.remove(0);
    let setpriv = Path::new("/usr/bin/setpriv");
    let vmm = Process::start(lab.path(), "vmm", setpriv, Lifetime::Owner, |command| {
        // It is in the directory before it is nobody, who cannot get at a container from outside.
        command.current_dir(host.container.path("/run/tandem"));
        command.arg(format!("--reuid={NOBODY}"));
        command.args([&format!("--regid={VMM}"), "--clear-groups", "--"]);
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
        command.arg(&qemu.program);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S"]);
        command.args([
            "-M",
            "q35,accel=tcg",
            "-m",
            "64M",
            "-numa",
            "node,memdev=mem",
        ]);
        command.args(["-object", "memory-backend-memfd,id=mem,size=64M,share=on"]);
        let again = qemu.reconnect();
        command.args(["-chardev", &format!("socket,id=c0,path=desk.sock,{again}")]);
        command.args(["-netdev", "vhost-user,id=n0,chardev=c0"]);
        command.args(["-device", "virtio-net-pci,netdev=n0,romfile="]);
    })?;
    wait_connected(host, "desk")?;
    Ok(vmm)
}

fn wait_connected(host: &Host, port: &str) -> Result<()> {
    wait_until(&format!("a VMM on {port}"), PATIENCE, || {
        Ok(host.port(port)?["session"]["connected"] == true)
    })
}

/// The threads of a VM are in a group of their own, the others are not.
fn groups(host: &Host) -> Result<()> {
    if !host.log()?.contains("threads of VMs are in") {
        skip_part(
            "guests_package: control groups",
            "no cgroup v2 is mounted here",
        );
        return Ok(());
    }
    let pid = host.property("MainPID")?;
    let list = format!("for t in /proc/{pid}/task/*; do cat $t/comm; grep ^0:: $t/cgroup; done");
    let list = host.container.sh(&list)?;
    let lines: Vec<&str> = list.lines().collect();
    let group = |thread: &str| {
        let found = lines.chunks(2).find(|pair| pair[0] == thread);
        found.map(|pair| pair[1].rsplit('/').next().unwrap_or_default())
    };
    for (thread, expected) in [
        ("web1/0", "vm-web1"),
        ("web2/0", "vm-web2"),
        ("control", "main"),
        ("api", "main"),
    ] {
        ensure!(group(thread) == Some(expected), "{thread}: {list}");
    }
    Ok(())
}

/// A good file is taken, a bad one refused by `systemctl reload`, and no VM notices either.
fn reload(host: &Host, vms: &mut Vms) -> Result<()> {
    let pid = host.property("MainPID")?;
    let add = "printf '[port.filed]\\nvlan = 10\\n' >>/etc/tandem/tandem.toml";
    host.container.sh(add)?;
    host.systemctl(&["reload", "tandemd"])?;
    wait_until("the port of the file", PATIENCE, || {
        Ok(host.socket("filed").exists())
    })?;
    vms.talk();
    host.container
        .sh("cp /etc/tandem/tandem.toml /root/good; echo 'vlna = 11' >>/etc/tandem/tandem.toml")?;
    let refused = host.container.output(&["systemctl", "reload", "tandemd"])?;
    ensure!(!refused.status.success(), "a bad file was taken");
    ensure!(host.log()?.contains("vlna"), "{}", host.log()?);
    host.container.sh("mv /root/good /etc/tandem/tandem.toml")?;
    vms.talk();
    ensure!(host.property("MainPID")? == pid, "it was restarted");
    Ok(())
}

/// How long nobody listened at a port: from the first refusal to the next time.
fn outage(socket: PathBuf, act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut last = Instant::now();
            let mut longest = Duration::ZERO;
            let mut over = false;
            loop {
                if UnixStream::connect(&socket).is_ok() {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                    if over {
                        return longest;
                    }
                    over = done.load(Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = act();
        done.store(true, Ordering::Relaxed);
        let longest = watcher.join().expect("the watcher");
        result.map(|()| longest)
    })
}

fn restart(host: &Host, vms: &mut Vms) -> Result<()> {
    let pid = host.property("MainPID")?;
    let idle = host.socket("filed");
    let gone = outage(idle, || host.systemctl(&["restart", "tandemd"]).map(drop))?;
    say(&format!("      a restart: nobody listened for {gone:?}"));
    ensure!(host.property("MainPID")? != pid, "it was not restarted");
    vms.reconnect()?;
    wait_connected(host, "desk")?;
    groups(host)
}

fn crash(host: &Host, vms: &mut Vms) -> Result<()> {
    let pid = host.property("MainPID")?;
    host.container.sh(&format!("kill -KILL {pid}"))?;
    host.wait_new_process(&pid)?;
    vms.reconnect()?;
    groups(host)
}

/// A daemon that stands still is ended by systemd and started again.
fn hang(host: &Host, vms: &mut Vms) -> Result<()> {
    let dir = "/run/systemd/system/tandemd.service.d";
    host.container.sh(&format!(
        "mkdir -p {dir}; printf '[Service]\\nWatchdogSec=2\\n' >{dir}/watchdog.conf"
    ))?;
    host.systemctl(&["daemon-reload"])?;
    host.systemctl(&["restart", "tandemd"])?;
    let pid = host.property("MainPID")?;
    host.container.sh(&format!("kill -STOP {pid}"))?;
    host.wait_new_process(&pid)?;
    ensure!(host.log()?.contains("Watchdog timeout"), "{}", host.log()?);
    vms.reconnect()?;
    host.container.run(&["rm", "-r", dir])?;
    host.systemctl(&["daemon-reload"]).map(drop)
}

/// The same version again stands for a newer one.
fn upgrade(host: &Host, vms: &mut Vms) -> Result<()> {
    let pid = host.property("MainPID")?;
    host.container.sh("dpkg -i /mnt/*.deb")?;
    host.wait_new_process(&pid)?;
    vms.reconnect()?;
    ensure!(host.port("filed")?["vlan"] == 10, "the file was replaced");
    wait_connected(host, "desk")
}

/// The blocks of docs/service.md in a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let rest = text.split(&format!("```{language}\n")).collect::<Vec<_>>();
    let blocks = rest.into_iter().skip(1);
    blocks.flat_map(|rest| rest.split("```").next()).collect()
}

/// All of docs/service.md: what can be typed here is, and the rest is what this test does otherwise.
fn documented(host: &Host) -> Result<()> {
    host.tandem(&["port", "remove", "web1"])?;
    host.container.run(&["groupadd", "libvirt-qemu"])?;
    let text = std::fs::read_to_string(source_root().join("docs/service.md"))?;
    let typed = blocks(&text, "sh");
    ensure!(typed.len() >= 4, "few commands in docs/service.md");
    for block in typed {
        host.container.sh(block)?;
    }
    // What it says of other hosts is nobody's but the administrator's, and stays.
    host.container
        .run(&["rm", "-r", "/etc/systemd/system/tandemd.service.d"])?;
    let others = blocks(&text, "console").concat();
    for line in others.lines() {
        let known = [
            "ci/package",
            "apt ",
            "virsh ",
            "/usr/lib/libvirt/virt-aa-helper ",
        ];
        let known = known.iter().any(|start| line.starts_with(start));
        ensure!(known, "nobody runs: {line}");
    }
    // A member of the group, as the text has it.
    let member = "setpriv --reuid=nobody --regid=nogroup --groups=tandem -- tandem status";
    host.container.sh(member)?;
    let other = "setpriv --reuid=nobody --regid=nogroup --clear-groups -- tandem status";
    let other = host.container.output(&["sh", "-c", other])?;
    let words = String::from_utf8_lossy(&other.stderr).into_owned();
    ensure!(words.contains("join the group tandem"), "{words}");
    Ok(())
}

/// The hook for libvirt, as docs/migration.md installs it.
fn hooked(host: &Host) -> Result<()> {
    const DOMAIN: &str = "<domain><devices><interface type='vhostuser'>\
        <source type='unix' path='/run/tandem/none.sock' mode='client'/></interface></devices></domain>";
    let text = std::fs::read_to_string(source_root().join("docs/migration.md"))?;
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("sudo install "));
    let line = line.context("no command that installs the hook")?;
    host.container.sh(&format!("install {line}"))?;
    let call = |operation: &str| {
        let hook = "/etc/libvirt/hooks/qemu.d/tandem web1";
        let line = format!("echo \"{DOMAIN}\" | {hook} {operation} begin -");
        host.container.output(&["sh", "-c", &line])
    };
    let refused = call("migrate")?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(words.contains("no port has the socket"), "{words}");
    ensure!(call("reconnect")?.status.success(), "the VM would end");
    host.container.run(&["rm", "-r", "/etc/libvirt"]).map(drop)
}

/// libvirt lets a confined guest at the port's socket, in the words of docs/service.md.
#[test]
fn libvirts_apparmor_helper_allows_the_socket() -> Result<()> {
    const HELPER: &str = "/usr/lib/libvirt/virt-aa-helper";
    let name = "guests_package::libvirts_apparmor_helper_allows_the_socket";
    scenario(
        name,
        &[Need::File(HELPER, "libvirt-daemon-system")],
        |lab| {
            let readme = std::fs::read_to_string(source_root().join("README.md"))?;
            let start = readme.find("    <interface ").context("no interface")?;
            let (interface, _) = readme[start..]
                .split_once("</interface>")
                .context("its end")?;
            let uuid = "7a1d7f8e-0b5e-4a53-9a3a-2f2f0e0b9c11";
            let file = lab.path().join("web.xml");
            let domain = format!(
                "<domain type='kvm'><name>web</name><uuid>{uuid}</uuid><memory>262144</memory>
            <os><type arch='x86_64' machine='q35'>hvm</type></os>
            <devices>{interface}</interface></devices></domain>"
            );
            std::fs::write(&file, domain)?;
            let output = Command::new(HELPER)
                .args(["--dryrun", "--create", "--uuid", &format!("libvirt-{uuid}")])
                .stdin(std::fs::File::open(&file)?)
                .output()?;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            let line = "\"/run/tandem/web1.sock\" rw,";
            ensure!(said.contains(line), "{said}");
            let text = std::fs::read_to_string(source_root().join("docs/service.md"))?;
            ensure!(text.contains(line), "docs/service.md says otherwise");
            Ok(())
        },
    )
}

/// What is left is configuration and state, and not even that of a purge.
fn remove(host: &Host, before: &BTreeSet<String>) -> Result<()> {
    host.container.run(&["dpkg", "--remove", "tandem"])?;
    let names = host.container.sh("cat /proc/[0-9]*/comm")?;
    ensure!(
        names.contains("systemd") && !names.contains("tandemd"),
        "{names}"
    );
    ensure!(!host.container.path("/run/tandem").exists(), "/run/tandem");
    let left = |before| -> Result<Vec<String>> {
        let after = host.files()?;
        Ok(after.difference(before).cloned().collect())
    };
    let expected = [
        "/etc/default/tandemd",
        "/etc/systemd/system/multi-user.target.wants/tandemd.service",
        "/etc/tandem",
        "/etc/tandem/tandem.toml",
        "/var/lib/tandem",
        "/var/lib/tandem/ports.json",
    ];
    let mut found = left(before)?;
    found.retain(|path| !is_user_database(path));
    ensure!(found == expected, "left behind: {found:#?}");
    host.container.run(&["dpkg", "--purge", "tandem"])?;
    let mut found = left(before)?;
    found.retain(|path| !is_user_database(path));
    ensure!(found.is_empty(), "left behind by a purge: {found:#?}");
    Ok(())
}

/// What making users leaves: by policy the user stays, lest another gets its number.
fn is_user_database(path: &str) -> bool {
    let names = ["passwd", "group", "shadow", "gshadow"];
    let name = path.strip_prefix("/etc/").unwrap_or_default();
    let name = name.trim_start_matches('.').trim_end_matches('-');
    names.contains(&name.trim_end_matches(".pwd.lock")) || name == "pwd.lock"
}
