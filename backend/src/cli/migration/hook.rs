//! `tandem migration hook`: what libvirt's hook for QEMU calls.
//!
//! ```text
//! DOMAIN migrate begin -           on the destination, before QEMU is started: a failure keeps the VM where it is
//! DOMAIN release end REASON        after QEMU has ended, also on the source when the VM has left
//! ```
//!
//! Source: libvirt, docs/hooks.rst: the domain's XML is on standard input; what is printed by `migrate` replaces it, so
//! nothing is; REASON is `-` before libvirt 10.5. All else succeeds unseen: a failure of `reconnect`, say, ends the VM.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command, value_parser};
use hyper::Method;
use roxmltree::Document;
use serde::Deserialize;

use crate::cli::{Failure, Session, read};
use crate::control::Condition;
use crate::migration::{Migration, Role, Stage};

/// Bytes of a domain's XML; libvirt's own limit is 10 MB.
const XML_LEN: u64 = 16 << 20;
/// For how long a VM that has left may be yet to be seen on the other host.
const ARRIVAL: Duration = Duration::from_secs(5);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);

const HELP: &str = "\
For a script such as /etc/libvirt/hooks/qemu.d/tandem (libvirt 6.5 and later), executable:

  #!/bin/sh
  exec /usr/bin/tandem migration hook -- \"$@\"

A VM that comes is refused if a port that its XML names is missing, or taken by another VM. When one has left,
its move is committed. All else succeeds at once, as it does without tandemd.";

pub(super) fn command() -> Command {
    Command::new("hook")
        .about("Answer to libvirt's hook for QEMU")
        .after_help(HELP)
        .arg(
            Arg::new("words")
                .value_name("ARGUMENT")
                .num_args(0..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .value_parser(value_parser!(OsString))
                .help("What libvirt gives the script: domain, operation, sub-operation, extra"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let words = matches.get_many::<OsString>("words").into_iter().flatten();
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap_or("")).collect();
    match words.get(1..).unwrap_or_default() {
        ["migrate", "begin", ..] => arrives(matches)?,
        ["release", "end"] | ["release", "end", "-" | "migrated", ..] => has_left(matches),
        _ => {}
    }
    Ok(String::new())
}

/// A VM comes to this host.
fn arrives(matches: &ArgMatches) -> Result<(), Failure> {
    let found = domain().and_then(|sockets| Ok((ports(matches, &sockets)?, sockets)));
    let Some((ports, sockets)) = found.map_err(warn).ok() else {
        return Ok(());
    };
    let run_dir = Session::new(matches)?.socket;
    let run_dir = run_dir.parent().unwrap_or(Path::new("/"));
    let objections = sockets.iter().filter_map(|socket| {
        match ports.iter().find(|port| port.has(socket)) {
            Some(port) => port.objection(),
            // That of a port which is not there.
            None if socket.parent().is_some_and(|dir| same(dir, run_dir)) => Some(format!(
                "no port has the socket {}: tandem port add it, with the settings it has on the other host",
                socket.display()
            )),
            None => None,
        }
    });
    let objections: Vec<String> = objections.collect();
    match objections.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(objections.join("; "))),
    }
}

/// A VM's QEMU on this host has ended: if that is so because it runs on the other, this is the commit.
fn has_left(matches: &ArgMatches) {
    let found = domain().and_then(|sockets| Ok((ports(matches, &sockets)?, sockets)));
    let Some((ports, sockets)) = found.map_err(warn).ok() else {
        return;
    };
    let theirs = ports
        .iter()
        .filter(|port| sockets.iter().any(|s| port.has(s)));
    let vms: BTreeSet<&str> = theirs.map(|port| port.vm.as_str()).collect();
    for vm in vms {
        if let Err(failure) = commit(matches, vm) {
            warn(failure);
        }
    }
}

/// Commits the move of a VM from this host, if there is one, once the VM has been seen on the other.
fn commit(matches: &ArgMatches, vm: &str) -> Result<(), Failure> {
    let session = Session::new(matches)?;
    let path = format!("/api/v1/migrations/{vm}");
    let end = Instant::now() + ARRIVAL;
    loop {
        // Without a move there is nothing to look at.
        let Ok(text) = session.get(&path) else {
            return Ok(());
        };
        let now: Migration = read(&text)?;
        match (now.role, now.stage) {
            (Role::Source, Stage::There) => {
                let path = format!("{path}/commit");
                session.request(Method::POST, &path, &Condition::Always, None)?;
                return Ok(());
            }
            (Role::Source, Stage::Moving) if Instant::now() < end => std::thread::sleep(LOOK),
            _ => return Ok(()),
        }
    }
}

/// The sockets of the domain on standard input.
fn domain() -> Result<Vec<PathBuf>, Failure> {
    let mut xml = String::new();
    let read = io::stdin().take(XML_LEN).read_to_string(&mut xml);
    let failed = |why: String| Failure::Failed(format!("the domain's XML cannot be read: {why}"));
    read.map_err(|error| failed(error.to_string()))?;
    sockets(&xml).map_err(|error| failed(error.to_string()))
}

/// The vhost-user sockets of a domain's interfaces (libvirt, docs/formatdomain.rst, "vhost-user interface").
fn sockets(xml: &str) -> Result<Vec<PathBuf>, roxmltree::Error> {
    let document = Document::parse(xml)?;
    let domain = document.root_element();
    let devices = domain
        .children()
        .filter(|node| node.has_tag_name("devices"));
    let interfaces = devices.flat_map(|node| node.children()).filter(|node| {
        node.has_tag_name("interface") && node.attribute("type") == Some("vhostuser")
    });
    let sources = interfaces.flat_map(|node| node.children());
    let paths = sources.filter(|node| node.has_tag_name("source"));
    Ok(paths
        .filter_map(|node| node.attribute("path").map(PathBuf::from))
        .collect())
}

/// A port, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Port {
    name: String,
    vm: String,
    socket: Option<PathBuf>,
    socket_role: String,
    session: Option<Connection>,
}

#[derive(Debug, Deserialize)]
struct Connection {
    connected: bool,
}

#[derive(Debug, Deserialize)]
struct Ports {
    ports: Vec<Port>,
}

/// The daemon's ports; it is not asked on behalf of a VM without sockets.
fn ports(matches: &ArgMatches, sockets: &[PathBuf]) -> Result<Vec<Port>, Failure> {
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    let text = Session::new(matches)?.get("/api/v1/ports")?;
    Ok(read::<Ports>(&text)?.ports)
}

impl Port {
    fn has(&self, socket: &Path) -> bool {
        self.socket.as_deref().is_some_and(|own| same(own, socket))
    }

    /// Why no VM can come to it.
    fn objection(&self) -> Option<String> {
        let (name, socket) = (&self.name, self.socket.as_deref()?);
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.connected)
        {
            return Some(format!(
                "port {name} is taken, a VM runs behind it: end that, or see tandem port show {name}"
            ));
        }
        // The one that QEMU makes is not there yet.
        let missing = self.socket_role == "listen" && !socket.exists();
        missing.then(|| {
            format!(
                "port {name} has lost its socket {}: tandem port remove and add it",
                socket.display()
            )
        })
    }
}

/// Whether two paths lead to the same, by links and mounts, too.
fn same(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    one == other || identity(one).is_some_and(|id| identity(other) == Some(id))
}

/// No VM has to wait for a daemon that does not run.
fn warn(failure: Failure) {
    if let Failure::Usage(why) | Failure::Failed(why) = failure {
        eprintln!("tandem: {why}; libvirt goes on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_of_a_domain_are_found() {
        let xml = "<domain type='kvm'><name>a</name><devices>
            <interface type='vhostuser'><mac address='52:54:00:00:00:01'/>
              <source type='unix' path='/run/tandem/a&amp;b.sock' mode='client'>
                <reconnect enabled='yes' timeout='1'/></source><model type='virtio'/></interface>
            <interface type='network'><source network='default' path='/no'/></interface>
            <interface type='vhostuser'><source dev='eth0'/></interface>
            <filesystem type='vhostuser'><source path='/run/fs.sock'/></filesystem>
            </devices><metadata><x xmlns='urn:x'><interface type='vhostuser'/></x></metadata></domain>";
        assert_eq!(sockets(xml).unwrap(), [Path::new("/run/tandem/a&b.sock")]);
        assert!(sockets("<domain/>").unwrap().is_empty());
        assert!(sockets("<domain>").is_err());
        assert!(sockets("").is_err());
    }

    #[test]
    fn paths_are_the_same_by_where_they_lead() {
        let dir = tempfile::tempdir().unwrap();
        let [one, link] = ["one", "link"].map(|name| dir.path().join(name));
        assert!(same(&one, &one), "also of what is not there");
        assert!(!same(&one, &link));
        fs::write(&one, "").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        assert!(same(&one, &link));
    }
}
