//! A clean machine with systemd: a container with a file system and a network of its own.
//!
//! systemd-nspawn boots the directory that `ci/setup` has made. What is written goes to memory and is
//! gone afterwards.

use super::image::lab_dir;
use super::process::{Lifetime, Process};
use super::{PATIENCE, wait_until};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The file system that `ci/setup` has made, as it is before a boot.
pub fn root() -> PathBuf {
    lab_dir().join("root")
}

/// A booted container. Ends when dropped, with all that runs in it.
#[derive(Debug)]
pub struct Container {
    /// The program that holds it.
    process: Process,
    /// Its first process, by our number.
    init: u32,
    /// Goes after the processes in it: fields drop in order.
    _groups: Groups,
}

impl Container {
    /// Boots one that sees our directory `files` as `/mnt`.
    pub fn boot(dir: &Path, files: &Path) -> Result<Self> {
        let name = dir.file_name().context("no name")?.to_string_lossy();
        let groups = Groups::new(&name)?;
        let shell = Path::new("/bin/sh");
        let process = Process::start(dir, "container", shell, Lifetime::Owner, |command| {
            let join = "while [ \"$1\" != -- ]; do echo $$ >\"$1/cgroup.procs\"; shift; done";
            command.args(["-ec", &format!("{join}; shift; exec \"$@\""), "sh"]);
            command.args(&groups.dirs).arg("--");
            // Its own numbers for processes: when the first of them ends, the kernel ends all.
            command.args(["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]);
            command.args(["systemd-nspawn", "--boot", "--volatile=overlay"]);
            command.args(["--register=no", "--keep-unit", "--private-network"]);
            command.args(["--console=pipe", &format!("--machine={name}")]);
            command.arg(format!("--directory={}", root().display()));
            command.arg(format!("--bind-ro={}:/mnt", files.display()));
        })?;
        let mut container = Self {
            process,
            init: 0,
            _groups: groups,
        };
        wait_until("systemd to start in the container", PATIENCE, || {
            container.process.check_running()?;
            container.init = find_init(container.process.pid()).unwrap_or_default();
            Ok(container.init != 0)
        })?;
        container.wait_booted()?;
        Ok(container)
    }

    fn wait_booted(&mut self) -> Result<()> {
        let mut state = String::new();
        let outcome = wait_until("the container to boot", PATIENCE, || {
            self.process.check_running()?;
            let output = self.output(&["systemctl", "is-system-running", "--wait"])?;
            state = String::from_utf8_lossy(&output.stdout).trim().to_string();
            Ok(state == "running")
        });
        outcome.with_context(|| format!("it is {state:?}"))
    }

    /// Runs a command in it, as its root.
    pub fn output(&self, command: &[&str]) -> Result<Output> {
        let init = self.init.to_string();
        let mut enter = Command::new("nsenter");
        enter.args(["-t", &init, "-m", "-u", "-i", "-n", "-p", "-C", "--"]);
        enter
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(enter.args(command).output()?)
    }

    /// The same; an error when it fails. Gives what it prints.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let output = self.output(command)?;
        if !output.status.success() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (said, error) = (text(&output.stdout), text(&output.stderr));
            bail!("{command:?} failed ({}): {said}{error}", output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same for a line of shell.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(&["sh", "-ec", line])
    }

    /// Where we see a path of its file system.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }
}

/// The first process of the container that `holder` holds.
fn find_init(holder: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{holder}/task/{holder}/children"));
    let mut children: Vec<u32> = children
        .ok()?
        .split_whitespace()
        .flat_map(str::parse)
        .collect();
    while let Some(pid) = children.pop() {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "systemd" {
            return Some(pid);
        }
        children.extend(find_init(pid));
    }
    None
}

/// Control groups for one container, so that two of them do not meet: in version 2, and in the
/// hierarchy that systemd has for itself where version 1 is in use.
#[derive(Debug)]
struct Groups {
    /// Also the container's.
    name: String,
    dirs: Vec<PathBuf>,
}

impl Groups {
    fn new(name: &str) -> Result<Self> {
        let mut groups = Self {
            name: name.to_string(),
            dirs: vec![],
        };
        for line in std::fs::read_to_string("/proc/self/mounts")?.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, at, kind, options, ..] = fields[..] else {
                continue;
            };
            let of_systemd = kind == "cgroup" && options.contains("name=systemd");
            if kind == "cgroup2" || of_systemd {
                let group = Path::new(at).join(name);
                std::fs::create_dir(&group)
                    .with_context(|| format!("making {}", group.display()))?;
                groups.dirs.push(group);
            }
        }
        Ok(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in &self.dirs {
            // A process that was killed leaves its group a moment later.
            let gone = || {
                remove_group(group);
                Ok(!group.exists())
            };
            if let Err(error) = wait_until("a control group to be empty", PATIENCE, gone) {
                super::say(&format!("      {}: {error}", group.display()));
            }
        }
        // systemd-nspawn had no time to remove this.
        let _ = std::fs::remove_dir(Path::new("/run/systemd/nspawn/propagate").join(&self.name));
    }
}

fn remove_group(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    // Not while there is somebody in it.
    let _ = std::fs::remove_dir(group);
}
