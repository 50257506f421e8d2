//! A libvirtd that shares nothing with the machine's: neither its files nor its network, name and processes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use super::process::{Lifetime, Process};
use super::{PATIENCE, built_program, image, tail, wait_until};

/// The daemon, for [`super::Need::File`].
pub const PROGRAM: &str = "/usr/sbin/libvirtd";
/// Where a guest of this libvirtd finds what is in the directory of the Tandem daemon beside it.
pub const RUN_DIR: &str = "/run/tandem";
/// The system's QEMU as this libvirtd sees it, which is the newest there is.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// Makes the host in the namespaces of a shell: `$0` is its directory, `$1` its name, `$2` a tree with a newer QEMU, `$3`
/// the directory of a Tandem daemon. QEMU's modules must be those of its build. The shell stays to reap what libvirtd
/// leaves to it.
const SCRIPT: &str = r#"
set -e
hostname "$1"
mount -t tmpfs tmpfs /run
mkdir -p /run/libvirt /run/lock /run/tandem
mount --bind "$3" /run/tandem
for kind in lib log cache; do
    mkdir -p "$0/$kind"
    mount --bind "$0/$kind" "/var/$kind/libvirt"
done
mount --bind "$0/etc" /etc/libvirt
for path in /usr/bin/qemu-system-x86_64 /usr/lib/x86_64-linux-gnu/qemu /usr/share/qemu /usr/share/seabios; do
    if [ -e "$2$path" ] && [ -e "$path" ]; then mount --bind "$2$path" "$path"; fi
done
libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirtd.pid &
wait
"#;

/// QEMU runs as us, in our directory, without further protection: what is tested is another thing.
const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n\
    dynamic_ownership = 0\nremember_owner = 0\nstdio_handler = \"file\"\n\
    namespaces = []\ncgroup_controllers = []\n";

/// A running libvirtd. Its guests end with it: they are in its process namespace.
#[derive(Debug)]
pub struct Libvirtd {
    process: Process,
    dir: PathBuf,
}

impl Libvirtd {
    /// Starts one, number `number`, for a host of this name with a Tandem daemon that has this run directory, whose
    /// CLI is its hook. All that it has is in `dir/NAME`.
    pub fn start(dir: &Path, name: &str, number: u8, run_dir: &Path) -> Result<Self> {
        let dir = dir.join(name);
        let hooks = dir.join("etc/hooks/qemu.d");
        std::fs::create_dir_all(&hooks)?;
        std::fs::write(dir.join("etc/qemu.conf"), QEMU_CONF)?;
        // A guest does not move to the host where it is: hosts are told apart by this and by their names.
        let settings = format!(
            "unix_sock_dir = \"{}\"\nauth_unix_rw = \"none\"\n\
             host_uuid = \"{number:08x}-1111-4222-8333-444444444444\"\n",
            dir.display()
        );
        std::fs::write(dir.join("etc/libvirtd.conf"), settings)?;
        let hook = hooks.join("tandem");
        std::fs::write(&hook, hook_script(run_dir)?)?;
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
        let process = Process::start(
            &dir,
            "libvirtd",
            Path::new("unshare"),
            Lifetime::Owner,
            |command| {
                command
                    .args(["--uts", "--net", "--mount", "--propagation", "private"])
                    .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
                    .args(["sh", "-c", SCRIPT])
                    .arg(&dir)
                    .arg(name)
                    .arg(image::lab_dir().join("qemu"))
                    .arg(run_dir);
            },
        )?;
        let mut daemon = Self { process, dir };
        wait_until("libvirtd to listen", PATIENCE, || {
            daemon.process.check_running()?;
            Ok(daemon.socket().exists())
        })?;
        Ok(daemon)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("libvirt-sock")
    }

    /// Its URI, here and on the other host.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Runs virsh with these arguments.
    pub fn virsh_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string());
        command.args(["virsh", "--quiet", "--connect", &self.uri()]);
        Ok(command.args(arguments).env("LC_ALL", "C").output()?)
    }

    /// Runs virsh; an error when it fails. Gives what it prints.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        let output = self.virsh_output(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "virsh {arguments:?}: {error}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What it and the QEMU of a domain have to say.
    pub fn logs(&self, domain: &str) -> String {
        let qemu = self.dir.join(format!("log/qemu/{domain}.log"));
        let logs = [tail(self.process.log(), 20), tail(&qemu, 20)];
        format!("libvirtd: {}\nQEMU: {}", logs[0], logs[1])
    }
}

/// The packaged hook, for the program under test and the daemon beside it.
fn hook_script(run_dir: &Path) -> Result<String> {
    let path = image::source_root().join("packaging/libvirt-hook");
    let script = std::fs::read_to_string(path)?;
    let installed = "/usr/bin/tandem ";
    ensure!(script.contains(installed), "no {installed}in {script}");
    ensure!(run_dir.is_absolute(), "{}", run_dir.display());
    let tandem = built_program("tandem").context("the hook")?;
    let ours = format!("{} --api-socket {RUN_DIR}/api.sock ", tandem.display());
    Ok(script.replace(installed, &ours))
}
