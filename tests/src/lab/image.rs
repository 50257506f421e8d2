//! What guests are made of: QEMU, the kernel, the file system. All of it got by `ci/setup`.

use super::{built_program, find_program, say};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// For every guest. Boots three times as fast as with the defaults, under emulation.
pub const KERNEL_ARGUMENTS: &str = "console=ttyS1 quiet panic=-1 mitigations=off tsc=reliable \
    no_timer_check nokaslr cryptomgr.notests random.trust_cpu=on audit=0 nowatchdog \
    rcupdate.rcu_expedited=1";

/// A QEMU to test with.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Directories with its firmware, looked at before its own.
    pub data_dirs: Vec<PathBuf>,
    /// Major and minor version.
    pub version: (u32, u32),
}

impl Qemu {
    fn new(program: PathBuf, data_dirs: Vec<PathBuf>) -> Result<Self> {
        let output = Command::new(&program).arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = parse_version(&text)
            .with_context(|| format!("{} --version says: {text}", program.display()))?;
        Ok(Self {
            program,
            data_dirs,
            version,
        })
    }

    /// `7.2`
    pub fn name(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Whether a guest's driver that uses MSI-X on a vhost-user card ends this QEMU when it
    /// emulates: older ones take the way of KVM's interrupt descriptors there, which do not exist
    /// then (`virtio_pci_vq_vector_unmask` in its `hw/virtio/virtio-pci.c`).
    pub fn crashes_emulating_msix(&self) -> bool {
        self.version < (9, 0)
    }

    /// The chardev option that makes QEMU connect again, in the version's own words.
    pub fn reconnect(&self) -> &'static str {
        if self.version >= (9, 2) {
            "reconnect-ms=1000"
        } else {
            "reconnect=1"
        }
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.strip_prefix("QEMU emulator version ")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The root of the source tree.
pub fn source_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Where `ci/setup` keeps kernels and images.
pub fn lab_dir() -> PathBuf {
    std::env::var_os("TANDEM_LAB_DIR")
        .map_or_else(|| source_root().join("target/lab"), PathBuf::from)
}

/// The guest kernel, uncompressed.
pub fn kernel() -> PathBuf {
    lab_dir().join("kernel/vmlinux")
}

/// Why no guest can be booted; `None` when it can.
pub fn missing() -> Option<String> {
    for program in [
        "qemu-system-x86_64",
        "busybox",
        "cpio",
        "modprobe",
        "setpriv",
    ] {
        if find_program(program).is_none() {
            return Some(format!("{program} is not installed; run ci/setup"));
        }
    }
    (!kernel().exists()).then(|| "no guest kernel; run ci/setup".to_string())
}

/// The system's QEMU, then the newer one from `ci/setup` where there is one.
pub fn qemus() -> Result<Vec<Qemu>> {
    let system = find_program("qemu-system-x86_64").context("no qemu-system-x86_64")?;
    let mut found = vec![Qemu::new(system, vec![])?];
    let newer = lab_dir().join("qemu");
    let program = newer.join("usr/bin/qemu-system-x86_64");
    if program.exists() {
        let data = ["usr/share/qemu", "usr/share/seabios"].map(|dir| newer.join(dir));
        found.push(Qemu::new(program, data.to_vec())?);
    }
    Ok(found)
}

/// Builds the guests' file system if it is not up to date, and gives its path.
pub fn initramfs() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build_initramfs().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn build_initramfs() -> Result<PathBuf> {
    let image = lab_dir().join("guest.cpio");
    let script = source_root().join("ci/guest-image");
    let output = Command::new(&script)
        .arg(built_program("guest-agent")?)
        .arg(&image)
        .env("TANDEM_LAB_DIR", lab_dir())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {}", script.display()))?;
    if !output.status.success() {
        bail!(
            "{} failed:\n{}",
            script.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(image)
}

/// What executes the guests' code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

/// KVM if a guest really boots with it, else emulation.
///
/// That `/dev/kvm` is there says little: nested virtualisation may hang a guest. So one is tried,
/// with a time limit, and the answer is kept until the machine boots again.
pub fn accelerator() -> Result<Accelerator> {
    static CHOSEN: OnceLock<Accelerator> = OnceLock::new();
    if let Some(&chosen) = CHOSEN.get() {
        return Ok(chosen);
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let cache = lab_dir().join("kvm");
    let works = match std::fs::read_to_string(&cache) {
        Ok(text) if text.starts_with(&boot) => text.ends_with("works"),
        _ => {
            let works = kvm_works();
            std::fs::write(
                &cache,
                format!("{boot}{}", if works { "works" } else { "hangs" }),
            )?;
            works
        }
    };
    let chosen = if works {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    };
    Ok(*CHOSEN.get_or_init(|| chosen))
}

fn kvm_works() -> bool {
    if std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return false;
    }
    let works = super::guest::try_accelerator(Accelerator::Kvm).is_ok();
    if !works {
        say("      /dev/kvm is there but no guest boots with it: emulating");
    }
    works
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_are_read() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(parse_version(debian), Some((10, 0)));
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian)"),
            Some((7, 2))
        );
        assert_eq!(parse_version("qemu: not found"), None);
    }
}
