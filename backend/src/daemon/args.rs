//! The command line of `tandemd`.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{CommandFactory, FromArgMatches, Parser};

use super::dirs::{default_run_dir, default_state_dir};
use crate::config::PORT_KEYS;
use crate::control::{Refused, RefusedKind};

/// A virtual switch for KVM guests, over vhost-user.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "tandemd", version)]
pub struct Args {
    /// Add a port; may be repeated. KEYs are below
    #[arg(long, value_name = "NAME[,KEY=VALUE…]")]
    pub port: Vec<String>,
    /// Configuration file [default: /etc/tandem/tandem.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the sockets [default: /run/tandem, or $XDG_RUNTIME_DIR/tandem if not root]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Directory of what was set over the API [default: /var/lib/tandem, or $XDG_STATE_HOME/tandem
    /// if not root]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// CPUs that carry frames, such as 2-7,9 [default: all that the process may use]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
    /// Serve the metrics, and nothing else, on this address too, such as 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Talk to other hosts about VMs that move here, on this address, such as 192.0.2.7:4792
    #[arg(long, value_name = "ADDRESS:PORT", requires = "migration_keys")]
    pub migration_listen: Option<SocketAddr>,
    /// Directory of the keys by which other hosts know this one: see `tandem migration keys`
    #[arg(long, value_name = "DIR")]
    pub migration_keys: Option<PathBuf>,
    /// Check the configuration, and what was set over the API, print all that is wrong, and exit; TAP
    /// devices and sockets are not opened
    #[arg(long)]
    pub check: bool,
    /// Serve one VM on this socket, as a vhost-user back-end program; no file is read unless named
    #[arg(long, value_name = "PATH", conflicts_with_all = ["fd", "port"])]
    pub socket_path: Option<PathBuf>,
    /// The same on an inherited socket that listens or is connected
    #[arg(long, value_name = "FD", conflicts_with = "port", value_parser = clap::value_parser!(i32).range(3..))]
    pub fd: Option<i32>,
    /// Give up what is not needed once it runs: capabilities, system calls, files [default: on]; off
    /// is for debuggers
    #[arg(
        long,
        value_enum,
        value_name = "on|off",
        default_value = "on",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub sandbox: Sandbox,
    /// Print what this back-end program can do as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
}

/// Whether the daemon gives up what it does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sandbox {
    /// It does, as far as the kernel lets it.
    #[default]
    On,
    /// It keeps all it was started with.
    Off,
}

impl Args {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// What clap says: a usage error, or a request for help.
    pub fn read(words: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, clap::Error> {
        let matches = Self::full_command().try_get_matches_from(words)?;
        Self::from_arg_matches(&matches)
    }

    /// The command line with all that its help says.
    pub fn full_command() -> clap::Command {
        let mut keys = String::from(EXAMPLES) + "\nKeys of --port (lists join with +):\n";
        for key in PORT_KEYS {
            let _ = writeln!(keys, "  {:<19} {}", key.name, key.help);
        }
        Self::command().after_help(keys)
    }

    /// Whether this is one VM's back-end program rather than the host's daemon.
    pub fn is_program(&self) -> bool {
        self.socket_path.is_some() || self.fd.is_some()
    }

    /// The run directory and the state directory, absolute. Back-end programs run side by side, so
    /// each has directories of its own.
    ///
    /// # Errors
    /// There is no default, or a path is empty.
    pub(super) fn dirs(&self) -> Result<(PathBuf, PathBuf), Refused> {
        let named = |dir: &Option<PathBuf>, option| {
            dir.as_ref().map(|dir| absolute(dir, option)).transpose()
        };
        let run = match named(&self.run_dir, "--run-dir")? {
            Some(dir) => dir,
            None if self.is_program() => {
                default_run_dir()?.join(format!("program-{}", std::process::id()))
            }
            None => default_run_dir()?,
        };
        let state = match named(&self.state_dir, "--state-dir")? {
            Some(dir) => dir,
            None if self.is_program() => run.clone(),
            None => default_state_dir()?,
        };
        Ok((run, state))
    }
}

/// `path` from the root; `option` is what a user gave it with.
pub(super) fn absolute(path: &Path, option: &str) -> Result<PathBuf, Refused> {
    std::path::absolute(path).map_err(|error| {
        let reason = format!("{path:?}: {error}");
        Refused::new(RefusedKind::Invalid, reason, "give a path").about(option)
    })
}

const EXAMPLES: &str = "\
Examples:
  tandemd --port web1 --port db1
  tandemd --port web1,vlan=10,queue_pairs=4 --metrics-listen 127.0.0.1:9464
  tandemd --check --config /etc/tandem/tandem.toml
";

/// CPUs as a user writes them: `2-7,9`. Not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub BTreeSet<usize>);

/// More than any kernel has.
const CPU_MAX: usize = 8191;

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |word: &str| match word.trim().parse::<usize>() {
            Ok(cpu) if cpu <= CPU_MAX => Ok(cpu),
            _ => Err(format!(
                "{word:?} is no CPU; write numbers and ranges, such as 2-7,9"
            )),
        };
        let mut cpus = BTreeSet::new();
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{range} runs backwards; write {last}-{first}"));
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while cpus.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            match last {
                last if last == first => write!(f, "{comma}{first}")?,
                last => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_and_shown() {
        for (text, shown) in [
            ("0", "0"),
            ("2-7,9", "2-7,9"),
            ("9,2-4,3-5", "2-5,9"),
            ("1,2", "1-2"),
        ] {
            assert_eq!(
                text.parse::<CpuList>().unwrap().to_string(),
                shown,
                "{text}"
            );
        }
        for text in [
            "",
            "a",
            "1-",
            "-1",
            "3-1",
            "1,,2",
            "8192",
            "1-99999999999999999999",
        ] {
            assert!(text.parse::<CpuList>().is_err(), "{text}");
        }
    }

    #[test]
    fn backend_programs_have_directories_of_their_own() {
        let words = |text: &'static str| Args::read(text.split(' ').map(Into::into)).unwrap();
        let (run, state) = words("tandemd --fd 3 --run-dir /r").dirs().unwrap();
        assert_eq!((run.to_str(), state.to_str()), (Some("/r"), Some("/r")));
        let (run, state) = words("tandemd --run-dir /r --state-dir /s").dirs().unwrap();
        assert_eq!((run.to_str(), state.to_str()), (Some("/r"), Some("/s")));
        if let Ok((run, state)) = words("tandemd --socket-path /x").dirs() {
            assert_eq!(
                run,
                default_run_dir()
                    .unwrap()
                    .join(format!("program-{}", std::process::id()))
            );
            assert_eq!(run, state);
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }
}
