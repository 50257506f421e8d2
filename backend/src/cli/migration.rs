//! `tandem migration …`: a VM moves to another host.

use std::net::ToSocketAddrs;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use hyper::Method;
use serde_json::{Value, json};
use tandem_migration::keys::{Authority, KeysError};

use super::text::{Table, paragraph};
use super::{Failure, Session, read, watch};
use crate::config::valid_name;
use crate::control::Condition;
use crate::migration::{List, Migration, Role};

mod hook;
mod start;
mod vmm;

/// Where the authority of a site keeps its files unless it is named.
const AUTHORITY: &str = "/etc/tandem/authority";

const EXAMPLES: &str = "\
Examples:
  tandem migration keys beta 192.0.2.7 --to beta-keys   # for beta's --migration-keys
  tandem migration prepare web1 --to beta:4792
  tandem migration start web1 --qmp /run/web1.qmp --uri tcp:192.0.2.7:4444
  tandem migration start web1 --to beta:4792 --virsh web1 --uri qemu+ssh://beta/system
  tandem migration status web1
  tandem migration abort web1 --reason maintenance";

const KEYS_HELP: &str = "\
The authority signs for all hosts of a site: hosts with keys of the same authority talk to each other,
others are turned away. It is made with the first keys, and stays where it is; copy what is written
to --to to the host, for example to /etc/tandem/migration, owned by tandemd's user, and start tandemd with
--migration-keys /etc/tandem/migration --migration-listen ADDRESS:4792.";

fn vm() -> Arg {
    Arg::new("vm")
        .value_name("VM")
        .required(true)
        .help("The VM")
}

/// Where the VM goes.
fn destination_arguments(required: bool) -> [Arg; 3] {
    [
        Arg::new("to")
            .long("to")
            .value_name("HOST:PORT")
            .required(required)
            .help("Where the other host's tandemd listens (--migration-listen)"),
        Arg::new("name")
            .long("name")
            .value_name("NAME")
            .requires("to")
            .help("The host's name in its certificate [default: HOST]"),
        Arg::new("limit")
            .long("limit")
            .value_name("SECONDS")
            .requires("to")
            .value_parser(value_parser!(u32).range(1..=86_400))
            .help("In what time the VM must have begun to move [default: 60]"),
    ]
}

pub(super) fn command() -> Command {
    let keys = Command::new("keys")
        .about("Make the keys by which other hosts know a host")
        .after_help(KEYS_HELP)
        .arg(
            Arg::new("names")
                .value_name("NAME")
                .required(true)
                .num_args(1..)
                .help("Names and addresses of the host; it is called by the first"),
        )
        .arg(
            Arg::new("to")
                .long("to")
                .value_name("DIR")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("Where to write them; files that are there stay"),
        )
        .arg(
            Arg::new("authority")
                .long("authority")
                .value_name("DIR")
                .default_value(AUTHORITY)
                .value_parser(value_parser!(PathBuf))
                .help("The authority of the site; made if it is not there"),
        );
    let prepare = Command::new("prepare")
        .about("Ask another host whether a VM can come, which may say no")
        .arg(vm())
        .args(destination_arguments(true));
    let abort = Command::new("abort")
        .about("Have a VM stay where it is")
        .arg(vm())
        .arg(
            Arg::new("reason")
                .long("reason")
                .value_name("TEXT")
                .help("Why, for the logs of both hosts"),
        )
        .args(vmm::arguments())
        .after_help("With a VMM named, it is told to end its part, too.");
    Command::new("migration")
        .about("Live migration: a VM moves to another host")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(keys)
        .subcommand(prepare)
        .subcommand(start::command())
        .subcommand(
            Command::new("commit")
                .about("Have a VM stay where it has gone")
                .arg(vm()),
        )
        .subcommand(abort)
        .subcommand(hook::command())
        .subcommand(
            Command::new("status")
                .visible_alias("show")
                .about("Show how far a VM is, and what took how long")
                .arg(vm())
                .arg(watch()),
        )
        .subcommand(
            Command::new("list")
                .visible_alias("ls")
                .about("List the VMs that move, or have moved last")
                .arg(watch()),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    match matches.subcommand() {
        Some(("keys", matches)) => keys(matches),
        Some(("prepare", matches)) => shown(matches, prepare(matches)?),
        Some(("start", matches)) => start::run(matches),
        Some(("hook", matches)) => hook::run(matches),
        Some(("commit", matches)) => shown(matches, post(matches, "commit", &Value::Null)?),
        Some(("abort", matches)) => {
            let reason = matches.get_one::<String>("reason");
            let body = reason.map_or_else(|| json!({}), |reason| json!({"reason": reason}));
            let answer = post(matches, "abort", &body)?;
            if let Some(mut vmm) = vmm::connect(matches)? {
                vmm.cancel().map_err(vmm::failed)?;
            }
            shown(matches, answer)
        }
        Some(("status", matches)) => {
            let path = format!("/api/v1/migrations/{}", name(matches)?);
            shown(matches, Session::new(matches)?.get(&path)?)
        }
        Some(("list", matches)) => list(matches),
        _ => {
            let words = "a verb is missing; see tandem migration --help";
            Err(Failure::Usage(words.to_owned()))
        }
    }
}

fn name(matches: &ArgMatches) -> Result<&str, Failure> {
    let name = matches.get_one::<String>("vm").map_or("", String::as_str);
    valid_name(name).map_err(|refused| Failure::Usage(refused.to_string()))?;
    Ok(name)
}

fn post(matches: &ArgMatches, what: &str, body: &Value) -> Result<String, Failure> {
    let path = format!("/api/v1/migrations/{}/{what}", name(matches)?);
    let body = Some(body).filter(|body| !body.is_null());
    let session = Session::new(matches)?;
    let answer = session.request(Method::POST, &path, &Condition::Always, body)?;
    Ok(answer.text)
}

/// The answer as the user wants it.
fn shown(matches: &ArgMatches, text: String) -> Result<String, Failure> {
    if Session::new(matches)?.json {
        return Ok(text + "\n");
    }
    Ok(words(&read(&text)?))
}

fn prepare(matches: &ArgMatches) -> Result<String, Failure> {
    let text = |key: &str| matches.get_one::<String>(key);
    let to = text("to").map_or("", String::as_str);
    let mut body = json!({"to": address(to)?});
    // The daemon does not look up names, and a certificate has the one that was meant.
    let host = to.rsplit_once(':').map_or(to, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    body["name"] = json!(text("name").map_or(host, String::as_str));
    if let Some(limit) = matches.get_one::<u32>("limit") {
        body["limit_seconds"] = json!(limit);
    }
    post(matches, "prepare", &body)
}

fn address(to: &str) -> Result<String, Failure> {
    let wrong = |why: String| {
        Failure::Usage(format!(
            "--to {to}: {why}; use HOST:PORT, such as beta:4792"
        ))
    };
    let mut found = to.to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    let first = found.next();
    first
        .map(|address| address.to_string())
        .ok_or_else(|| wrong("it has no address".to_owned()))
}

fn keys(matches: &ArgMatches) -> Result<String, Failure> {
    let path = |key: &str| matches.get_one::<PathBuf>(key).cloned().unwrap_or_default();
    let (dir, to) = (path("authority"), path("to"));
    let names: Vec<&str> = matches
        .get_many::<String>("names")
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let failed = |e: KeysError| Failure::Failed(e.to_string());
    let mut text = String::new();
    let authority = match Authority::load(&dir) {
        Err(KeysError::NoAuthority(_)) => {
            text += &paragraph("authority", &format!("made in {}", dir.display()));
            Authority::create(&dir).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let files = authority.issue(&names, &to).map_err(failed)?;
    for (what, path) in [
        ("key", files.key),
        ("certificate", files.certificate),
        ("authority", files.authority),
    ] {
        text += &paragraph(what, &path.display().to_string());
    }
    Ok(text)
}

fn list(matches: &ArgMatches) -> Result<String, Failure> {
    let session = Session::new(matches)?;
    let text = session.get("/api/v1/migrations")?;
    if session.json {
        return Ok(text + "\n");
    }
    let List { migrations } = read(&text)?;
    if migrations.is_empty() {
        return Ok("no VM moves, or has moved\n".to_owned());
    }
    let mut table = Table::new(&["VM", "THIS_HOST", "PEER", "STAGE", "AGE_S", "REASON"])
        .right(&[4])
        .shrinking(&[0, 2, 5]);
    for one in migrations {
        table.row(vec![
            one.vm.clone(),
            role(&one).to_owned(),
            one.peer.clone(),
            word(&one.stage),
            format!("{:.1}", one.age_ms as f64 / 1e3),
            one.reason.clone().unwrap_or_default(),
        ]);
    }
    Ok(table.to_string())
}

fn role(one: &Migration) -> &'static str {
    match one.role {
        Role::Source => "source",
        Role::Destination => "destination",
    }
}

/// Its name, as JSON has it.
fn word(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().unwrap_or_default().to_owned()
}

/// A migration in words: what it is, its timeline, what it cost.
fn words(one: &Migration) -> String {
    let way = match one.role {
        Role::Source => format!("to {}", one.peer),
        Role::Destination => format!("from {}", one.peer),
    };
    let mut text = paragraph("VM", &format!("{} {way}", one.vm));
    let reason = one.reason.iter().map(|reason| format!(": {reason}"));
    text += &paragraph("stage", &(word(&one.stage) + &reason.collect::<String>()));
    text += "\n";
    let mut table = Table::new(&["MS", "WHAT", "PORT"])
        .right(&[0])
        .shrinking(&[2]);
    for moment in &one.timeline {
        table.row(vec![
            format!("{:.1}", moment.at_ms),
            moment.what.clone(),
            moment.port.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    text += &table.to_string();
    text += "\n";
    let headings = [
        "PORT",
        "FOLLOWED",
        "EXPIRED",
        "OVERFLOWED",
        "WAITED_MS",
        "STARVED_MS",
    ];
    let mut table = Table::new(&headings)
        .right(&[1, 2, 3, 4, 5])
        .shrinking(&[0]);
    for cost in &one.ports {
        table.row(vec![
            cost.port.clone(),
            cost.followed.to_string(),
            cost.expired.to_string(),
            cost.overflowed.to_string(),
            format!("{:.2}", cost.waited_ms),
            format!("{:.2}", cost.starved_ms),
        ]);
    }
    text + &table.to_string()
}
