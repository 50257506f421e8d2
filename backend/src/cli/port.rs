//! `tandem port …`.

use clap::{Arg, ArgMatches, Command};
use serde_json::Value;

use super::keys::{changes, defaults, flag, name, settings};
use super::show;
use super::text::{Table, count};
use super::{Failure, Session, parse, watch};
use crate::config::PORT_KEYS;

pub(super) fn command() -> Command {
    let name = || {
        Arg::new("name")
            .value_name("NAME")
            .required(true)
            .help("The port's name")
    };
    Command::new("port")
        .about("A VM NIC's place on the switch")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("list")
                .visible_alias("ls")
                .about("List all ports")
                .arg(watch()),
        )
        .subcommand(
            Command::new("show")
                .about("Show one port")
                .arg(name())
                .arg(watch()),
        )
        .subcommand(
            Command::new("add")
                .about("Add a port; it survives a restart of the daemon")
                .arg(name())
                .args(PORT_KEYS.iter().map(flag)),
        )
        .subcommand(
            Command::new("set")
                .about("Change some settings of a port; they survive a restart of the daemon")
                .arg(name())
                .args(PORT_KEYS.iter().map(flag))
                .arg(defaults()),
        )
        .subcommand(
            Command::new("reset")
                .about("Drop what was changed over the API: back to file and command line")
                .arg(name()),
        )
        .subcommand(
            Command::new("remove")
                .visible_alias("del")
                .about(
                    "Remove a port; one that tandemd was started with by --port comes back with it",
                )
                .arg(name()),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => list(&Session::new(matches)?),
        Some(("show", matches)) => {
            let name = name(matches)?;
            let session = Session::new(matches)?;
            let text = session.get(&path(name))?;
            if session.json {
                Ok(text + "\n")
            } else {
                Ok(show::port(&parse(&text)?))
            }
        }
        Some(("add", matches)) => add(matches),
        Some(("set", matches)) => set(matches),
        Some(("reset", matches)) => {
            let name = name(matches)?;
            let session = Session::new(matches)?;
            let text = session.post(&format!("{}/reset", path(name)))?;
            if session.json {
                return Ok(text + "\n");
            }
            Ok(format!("port {name} is what file and command line say\n"))
        }
        Some(("remove", matches)) => {
            let name = name(matches)?;
            let session = Session::new(matches)?;
            let text = session.delete(&path(name))?;
            removed(name, &text, session.json)
        }
        _ => Err(Failure::Usage(
            "a verb is missing; see tandem port --help".to_owned(),
        )),
    }
}

/// The answer to a removal; the daemon has something to say only if the port comes back.
fn removed(name: &str, text: &str, json: bool) -> Result<String, Failure> {
    if text.is_empty() {
        let words = format!("port {name} removed\n");
        return Ok(if json { String::new() } else { words });
    }
    if json {
        return Ok(format!("{text}\n"));
    }
    let answer = parse(text)?;
    let note = answer["note"].as_str().unwrap_or_default();
    Ok(format!("port {name} removed; {note}\n"))
}

fn path(name: &str) -> String {
    format!("/api/v1/ports/{name}")
}

fn set(matches: &ArgMatches) -> Result<String, Failure> {
    let name = name(matches)?;
    let changes = changes(matches, PORT_KEYS)?;
    if changes.is_empty() {
        let words = "there is nothing to set; see tandem port set --help".to_owned();
        return Err(Failure::Usage(words));
    }
    let session = Session::new(matches)?;
    let text = session.patch(&path(name), &Value::Object(changes))?;
    if session.json {
        return Ok(text + "\n");
    }
    Ok(format!("port {name} changed\n"))
}

fn add(matches: &ArgMatches) -> Result<String, Failure> {
    let name = name(matches)?;
    let settings = settings(matches, PORT_KEYS)?;
    let session = Session::new(matches)?;
    let text = session.create(&path(name), &Value::Object(settings))?;
    if session.json {
        return Ok(text + "\n");
    }
    let port = parse(&text)?;
    Ok(match (port["tap"].as_str(), port["socket"].as_str()) {
        (Some(tap), _) => format!("port {name} added: TAP {tap}\n"),
        (None, Some(socket)) => format!("port {name} added: socket {socket}\n"),
        (None, None) => format!("port {name} added\n"),
    })
}

fn list(session: &Session) -> Result<String, Failure> {
    let text = session.get("/api/v1/ports")?;
    if session.json {
        return Ok(text + "\n");
    }
    let answer = parse(&text)?;
    let ports = answer["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if ports.is_empty() {
        return Ok("no ports; add one with: tandem port add NAME\n".to_owned());
    }
    let mut table = Table::new(&[
        "PORT", "VM", "SWITCH", "STATE", "MAC", "VLAN", "FROM_VM", "TO_VM",
    ])
    .right(&[6, 7])
    .shrinking(&[0, 1, 2]);
    for port in ports {
        table.row(row(port));
    }
    Ok(table.to_string())
}

fn row(port: &Value) -> Vec<String> {
    let word = |key: &str| port[key].as_str().unwrap_or("-").to_owned();
    let frames = |direction: &str| count(port["counters"][direction]["frames"].as_u64());
    let mac = port["mac"]
        .as_str()
        .or_else(|| port["learned_macs"][0].as_str());
    let vlan = match (port["vlan"].as_u64(), port["trunk_vlans"].as_str()) {
        (Some(vlan), _) => vlan.to_string(),
        (None, Some(_)) => "trunk".to_owned(),
        (None, None) => "-".to_owned(),
    };
    vec![
        word("name"),
        word("vm"),
        word("switch"),
        word("state"),
        mac.unwrap_or("-").to_owned(),
        vlan,
        frames("from_vm"),
        frames("to_vm"),
    ]
}
