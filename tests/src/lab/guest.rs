//! A Linux guest under QEMU.

use super::agent::{Agent, Output};
use super::image::{self, Accelerator, Qemu};
use super::process::{Lifetime, Process};
use super::qmp::Qmp;
use super::{Namespace, PATIENCE, qemus, tail};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A command in a guest that takes longer is stuck.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A network card of a guest.
#[derive(Clone, Debug)]
pub struct Nic {
    backend: NicBackend,
    mac: String,
    pairs: usize,
    options: Vec<String>,
    reconnect: Option<String>,
}

#[derive(Clone, Debug)]
enum NicBackend {
    VhostUser(PathBuf),
    Other(String),
}

impl Nic {
    /// On a port of the switch: `socket` is the port's.
    pub fn vhost_user(socket: impl Into<PathBuf>, mac: &str) -> Self {
        Self::new(NicBackend::VhostUser(socket.into()), mac)
    }

    /// On anything else QEMU knows: `-netdev BACKEND,id=…`.
    pub fn other(backend: &str, mac: &str) -> Self {
        Self::new(NicBackend::Other(backend.to_string()), mac)
    }

    fn new(backend: NicBackend, mac: &str) -> Self {
        Self {
            backend,
            mac: mac.to_string(),
            pairs: 1,
            options: vec![],
            reconnect: None,
        }
    }

    /// How QEMU is to connect again, such as `reconnect-ms=100`.
    pub fn reconnect(mut self, option: &str) -> Self {
        self.reconnect = Some(option.to_string());
        self
    }

    /// Several queue pairs.
    pub fn pairs(mut self, pairs: usize) -> Self {
        self.pairs = pairs;
        self
    }

    /// Adds a property of virtio-net-pci, such as `packed=on`.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_string());
        self
    }

    fn arguments(&self, index: usize, qemu: &Qemu, accelerator: Accelerator) -> Vec<String> {
        let mut arguments = vec![];
        let netdev = match &self.backend {
            NicBackend::Other(backend) => format!("{backend},id=n{index}"),
            NicBackend::VhostUser(socket) => {
                let usual = qemu.reconnect();
                let reconnect = self.reconnect.as_deref().unwrap_or(usual);
                arguments.push("-chardev".into());
                arguments.push(format!(
                    "socket,id=c{index},path={},{reconnect}",
                    socket.display()
                ));
                format!(
                    "vhost-user,id=n{index},chardev=c{index},queues={}",
                    self.pairs
                )
            }
        };
        let mut device = format!("virtio-net-pci,netdev=n{index},mac={}", self.mac);
        if self.pairs > 1 {
            device.push_str(",mq=on");
        }
        if accelerator == Accelerator::Tcg && qemu.crashes_emulating_msix() {
            device.push_str(",vectors=0");
        } else if self.pairs > 1 {
            device.push_str(&format!(",vectors={}", 2 * self.pairs + 2));
        }
        for option in &self.options {
            device.push(',');
            device.push_str(option);
        }
        // No ROM to run, unless the guest is to boot from this card.
        if !self
            .options
            .iter()
            .any(|option| option.starts_with("bootindex="))
        {
            device.push_str(",romfile=");
        }
        arguments.extend(["-netdev".into(), netdev, "-device".into(), device]);
        arguments
    }
}

/// A guest to be.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    name: String,
    qemu: Option<Qemu>,
    accelerator: Option<Accelerator>,
    memory_mib: usize,
    shared_memory: bool,
    cpus: usize,
    nics: Vec<Nic>,
    boots_kernel: bool,
    initramfs: Option<PathBuf>,
    arguments: Vec<String>,
    lifetime: Lifetime,
    boot_limit: Duration,
    /// What starts QEMU, with its own arguments; itself if it is empty.
    prefix: Vec<String>,
}

impl GuestConfig {
    /// One CPU, 256 MiB of shared memory, no network card.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_string(),
            qemu: None,
            accelerator: None,
            memory_mib: 256,
            shared_memory: true,
            cpus: 1,
            nics: vec![],
            boots_kernel: true,
            initramfs: None,
            arguments: vec![],
            lifetime: Lifetime::Owner,
            boot_limit: PATIENCE,
            prefix: vec![],
        }
    }

    /// With its TAP devices in a network namespace, which must live longer.
    pub fn inside(mut self, namespace: &Namespace) -> Self {
        self.prefix = namespace.prefix();
        self
    }

    /// A QEMU other than the system's.
    pub fn qemu(mut self, qemu: &Qemu) -> Self {
        self.qemu = Some(qemu.clone());
        self
    }

    /// Adds a network card: `eth0`, `eth1` and so on in the guest, in this order.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// Virtual CPUs.
    pub fn cpus(mut self, cpus: usize) -> Self {
        self.cpus = cpus;
        self
    }

    /// Memory in MiB.
    pub fn memory_mib(mut self, size: usize) -> Self {
        self.memory_mib = size;
        self
    }

    /// Memory no other process can map, as QEMU has it unless told: the usual mistake.
    pub fn private_memory(mut self) -> Self {
        self.shared_memory = false;
        self
    }

    /// No kernel given: the firmware looks for one.
    pub fn firmware_boot(mut self) -> Self {
        self.boots_kernel = false;
        self
    }

    /// A file system other than that of every guest.
    pub fn initramfs(mut self, path: PathBuf) -> Self {
        self.initramfs = Some(path);
        self
    }

    /// An argument of QEMU.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_string());
        self
    }

    /// A guest that goes on when the program that started it ends.
    pub fn detached(mut self) -> Self {
        self.lifetime = Lifetime::Detached;
        self
    }

    /// Starts QEMU and waits until the guest is up.
    pub fn boot(self, dir: &Path) -> Result<Guest> {
        let limit = self.boot_limit;
        let mut guest = self.start(dir)?;
        guest.wait_ready(limit)?;
        Ok(guest)
    }

    /// Starts QEMU; the guest boots meanwhile.
    pub fn start(self, dir: &Path) -> Result<Guest> {
        let qemu = match &self.qemu {
            Some(qemu) => qemu.clone(),
            None => qemus()?.remove(0),
        };
        let accelerator = match self.accelerator {
            Some(accelerator) => accelerator,
            None => image::accelerator()?,
        };
        let arguments = self.command_line(dir, &qemu, accelerator)?;
        // A socket left by a guest killed before would be connected to in vain.
        for kind in ["agent", "qmp"] {
            let _ = std::fs::remove_file(socket(dir, &self.name, kind));
        }
        let name = format!("qemu-{}", self.name);
        let first = self
            .prefix
            .first()
            .map_or(qemu.program.as_path(), Path::new);
        let mut process = Process::start(dir, &name, first, self.lifetime, |command| {
            if !self.prefix.is_empty() {
                command.args(&self.prefix[1..]).arg(&qemu.program);
            }
            command.args(&arguments);
        })?;
        let agent = connect(&mut process, &socket(dir, &self.name, "agent"))?;
        let qmp = socket(dir, &self.name, "qmp");
        let console = dir.join(format!("{}.console.log", self.name));
        Ok(Guest {
            config: self,
            process,
            agent: Agent::new(agent),
            qmp,
            console,
        })
    }

    fn command_line(
        &self,
        dir: &Path,
        qemu: &Qemu,
        accelerator: Accelerator,
    ) -> Result<Vec<String>> {
        let mut line = vec![];
        for data in &qemu.data_dirs {
            line.extend(["-L".into(), data.display().to_string()]);
        }
        let (accel, cpu) = match accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg,thread=multi", "max"),
        };
        let name = &self.name;
        let (memory, cpus) = (self.memory_mib, self.cpus);
        let backend = if self.shared_memory {
            "memfd,share=on"
        } else {
            "ram"
        };
        let agent = socket(dir, name, "agent");
        let qmp = socket(dir, name, "qmp");
        let dir = dir.display();
        line.extend(words(&format!(
            "-name {name} -nodefaults -no-user-config -display none \
             -M q35,hpet=off,vmport=off,sata=off,smbus=off,usb=off \
             -accel {accel} -cpu {cpu} -smp {cpus} -m {memory}M \
             -object memory-backend-{backend},id=mem,size={memory}M \
             -numa node,memdev=mem \
             -chardev socket,id=agent,path={},server=on,wait=off -serial chardev:agent \
             -chardev file,id=console,path={dir}/{name}.console.log -serial chardev:console \
             -qmp unix:{},server=on,wait=off",
            agent.display(),
            qmp.display()
        )));
        if self.boots_kernel {
            line.extend(["-kernel".into(), image::kernel().display().to_string()]);
            let initramfs = match &self.initramfs {
                Some(path) => path.clone(),
                None => image::initramfs()?,
            };
            line.extend(["-initrd".into(), initramfs.display().to_string()]);
            line.extend([
                "-append".into(),
                format!("{} tandem.name={name}", image::KERNEL_ARGUMENTS),
            ]);
        }
        for (index, nic) in self.nics.iter().enumerate() {
            line.extend(nic.arguments(index, qemu, accelerator));
        }
        line.extend(self.arguments.iter().cloned());
        Ok(line)
    }
}

fn words(line: &str) -> impl Iterator<Item = String> + '_ {
    line.split_whitespace().map(str::to_string)
}

/// The path of a guest's socket; `kind` is `agent` or `qmp`.
pub fn socket(dir: &Path, guest: &str, kind: &str) -> PathBuf {
    dir.join(format!("{guest}.{kind}"))
}

/// Connects to a socket that `process` makes as it starts.
fn connect(process: &mut Process, socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("connecting to {}", socket.display()));
            }
            Err(_) => process.check_running()?,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a guest boots with this accelerator, within a time that emulation would make too.
pub(super) fn try_accelerator(accelerator: Accelerator) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut config = GuestConfig::new("probe");
    config.accelerator = Some(accelerator);
    config.boot_limit = Duration::from_secs(10);
    config.boot(dir.path()).map(drop)
}

/// A running guest. QEMU ends when this is dropped.
#[derive(Debug)]
pub struct Guest {
    config: GuestConfig,
    process: Process,
    agent: Agent,
    qmp: PathBuf,
    console: PathBuf,
}

impl Guest {
    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// QEMU itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for the end of a boot that has begun.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let outcome = self.agent.wait_ready(limit);
        self.explain(outcome)
    }

    /// Runs a shell command; an error when it fails. Gives its output.
    pub fn exec(&mut self, command: &str) -> Result<String> {
        let output = self.try_exec(command)?;
        if output.status != 0 {
            let (name, status, text) = (self.name(), output.status, output.text);
            bail!("in {name}: `{command}` failed with status {status}:\n{text}");
        }
        Ok(output.text)
    }

    /// Runs a shell command and gives its output and status.
    pub fn try_exec(&mut self, command: &str) -> Result<Output> {
        let outcome = self.agent.exec(command, COMMAND_LIMIT);
        self.explain(outcome)
    }

    /// Brings up an interface with addresses such as `10.0.0.1/24` and `fd00::1/64`.
    pub fn configure(&mut self, interface: &str, addresses: &[&str]) -> Result<()> {
        for address in addresses {
            self.exec(&format!("ip addr add {address} dev {interface}"))?;
        }
        self.exec(&format!("ip link set {interface} up")).map(drop)
    }

    /// Pings until one answer comes, then once more with each size. Nothing of the latter may be
    /// lost.
    pub fn ping(&mut self, address: &str, sizes: &[usize]) -> Result<()> {
        self.exec(&format!("ping -c 1 -w 20 {address}"))?;
        for size in sizes {
            let said = self.exec(&format!("ping -c 2 -i 0.1 -W 5 -s {size} {address}"))?;
            ensure!(said.contains(" 0% packet loss"), "{said}");
        }
        Ok(())
    }

    /// A TCP stream of `bytes` each way at once, every byte checked at both ends.
    pub fn stream(&mut self, address: &str, bytes: u64) -> Result<String> {
        self.exec(&format!("/real/guest-agent stream {address} {bytes}"))
    }

    /// A UDP echo of each size, every byte checked.
    pub fn echo(&mut self, address: &str, sizes: &[usize]) -> Result<()> {
        let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
        self.exec(&format!(
            "/real/guest-agent echo {address} {}",
            sizes.join(" ")
        ))
        .map(drop)
    }

    /// Starts an iperf3 server in the background and waits until it listens.
    pub fn serve_iperf(&mut self) -> Result<()> {
        self.exec("/real/iperf3 -s -D && until netstat -ltn | grep -q :5201; do sleep 0.05; done")
            .map(drop)
    }

    /// The virtio features an interface's driver negotiated, as bit numbers.
    pub fn features(&mut self, interface: &str) -> Result<Vec<usize>> {
        let bits = self.exec(&format!("cat /sys/class/net/{interface}/device/features"))?;
        Ok(bits
            .trim()
            .chars()
            .enumerate()
            .filter(|(_, c)| *c == '1')
            .map(|(bit, _)| bit)
            .collect())
    }

    /// Resets the machine as its button would, and waits until it is up again.
    pub fn reset(&mut self) -> Result<()> {
        self.qmp()?.execute("system_reset", json!({}))?;
        self.wait_ready(PATIENCE)
    }

    /// Reboots from inside, and waits until it is up again.
    pub fn reboot(&mut self) -> Result<()> {
        // In the background, so that the reply gets out.
        self.exec("(sleep 0.2; reboot -f) &")?;
        self.wait_ready(PATIENCE)
    }

    /// Kills QEMU as a crash would (SIGKILL). [`Guest::start_again`] brings it back.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// The same guest again in `dir`, after a [`Guest::kill`].
    pub fn start_again(&mut self, dir: &Path) -> Result<()> {
        *self = self.config.clone().boot(dir)?;
        Ok(())
    }

    /// QEMU's monitor.
    pub fn qmp(&mut self) -> Result<Qmp> {
        Qmp::new(connect(&mut self.process, &self.qmp)?)
    }

    /// Adds what QEMU and the guest's console say.
    fn explain<T>(&mut self, outcome: Result<T>) -> Result<T> {
        let Err(error) = outcome else { return outcome };
        // Its serial line closes a moment before QEMU is gone.
        if let Ok(status) = self.process.wait(Duration::from_millis(300)) {
            let log = tail(self.process.log(), 15);
            return Err(error.context(format!("QEMU ended ({status}):\n{log}\n")));
        }
        let name = &self.config.name;
        let console = tail(&self.console, 15);
        Err(error.context(format!("guest {name}; its console:\n{console}\n")))
    }
}

/// Boots guests at the same time.
pub fn boot_all(dir: &Path, configs: impl IntoIterator<Item = GuestConfig>) -> Result<Vec<Guest>> {
    let started: Result<Vec<Guest>> = configs
        .into_iter()
        .map(|config| config.start(dir))
        .collect();
    let mut guests = started?;
    for guest in &mut guests {
        guest.wait_ready(PATIENCE)?;
    }
    Ok(guests)
}

/// Boots two guests at the same time.
pub fn boot_two(dir: &Path, a: GuestConfig, b: GuestConfig) -> Result<(Guest, Guest)> {
    let (mut a, mut b) = (a.start(dir)?, b.start(dir)?);
    a.wait_ready(PATIENCE)?;
    b.wait_ready(PATIENCE)?;
    Ok((a, b))
}

/// Runs a command in a guest started by another process in `dir`.
pub fn exec_in(dir: &Path, guest: &str, command: &str) -> Result<Output> {
    let path = socket(dir, guest, "agent");
    let stream = UnixStream::connect(&path)
        .with_context(|| format!("no guest answers at {}", path.display()))?;
    Agent::new(stream).exec(command, Duration::from_secs(600))
}
