//! The program `tandem`: noun, verb, name, flags.

mod capture;
mod events;
mod keys;
mod migration;
mod noun;
mod pages;
mod port;
mod show;
mod status;
mod switch;
mod team;
mod text;
mod top;
mod vm;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use hyper::Method;
use serde_json::Value;

use crate::client::{self, Answer, ClientError};
use crate::config::check::API_SOCKET;
use crate::control::Condition;
use crate::daemon::default_run_dir;

/// Where the daemon of the host listens, which runs as root or as a user of its own.
const HOST_SOCKET: &str = "/run/tandem/api.sock";
/// Status of a usage error; 1 is a refusal or a failure.
const USAGE: u8 = 2;

/// Runs one command, the program's name first in `words`. Returns the exit status: 0 done, 1
/// refused or failed, 2 usage.
pub fn run(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => return usage("tandem", &error),
    };
    let result = match watched(&matches) {
        None => dispatch(&matches).and_then(|text| say(&text)),
        Some(pause) => repeat(wants_json(&matches), pause, None, || dispatch(&matches)),
    };
    match result {
        Ok(()) | Err(Failure::NobodyReads) => ExitCode::SUCCESS,
        Err(Failure::Usage(reason)) => {
            eprintln!("tandem: {reason}");
            ExitCode::from(USAGE)
        }
        Err(Failure::Failed(reason)) => {
            eprintln!("tandem: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what clap has to say, errors in one line, and returns the exit status.
pub fn usage(program: &str, error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return match say(&error.to_string()) {
            Ok(()) | Err(Failure::NobodyReads) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let text = error.to_string();
    let words: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty() && !line.starts_with("tip: to pass"))
        .collect();
    let reason = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing".to_owned(),
        _ => words
            .join("; ")
            .trim_start_matches("error: ")
            .replace(":; ", ": "),
    };
    let help = match text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Usage: "))
    {
        Some(line) => line
            .split(['[', '<', '-'])
            .next()
            .unwrap_or(program)
            .trim()
            .to_owned(),
        None => program.to_owned(),
    };
    let help = if help.is_empty() { program } else { &help };
    eprintln!("{program}: {reason}; see {help} --help");
    ExitCode::from(USAGE)
}

/// Why a command was not done, in one line that says what to do.
#[derive(Debug)]
enum Failure {
    Usage(String),
    Failed(String),
    /// Whoever reads has seen enough (`tandem port list | head`).
    NobodyReads,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Prints an answer.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::NobodyReads),
        Err(error) => {
            let words = format!("cannot write the answer: {error}");
            Err(Failure::Failed(words))
        }
    }
}

/// The flag of commands whose answer has numbers to look at.
fn watch() -> Arg {
    Arg::new("watch")
        .long("watch")
        .value_name("SECONDS")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("1")
        .value_parser(seconds)
        .help("Show it again and again, until interrupted [default: every second]")
}

/// A time as a user gives it.
fn seconds(text: &str) -> Result<Duration, String> {
    let words = || "give seconds from 0.1 to 3600".to_owned();
    let seconds: f64 = text.parse().map_err(|_| words())?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err(words());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// The value of [`watch`] of the command that was given.
fn watched(matches: &ArgMatches) -> Option<Duration> {
    match matches.subcommand() {
        Some((_, matches)) => watched(matches),
        None => matches.try_get_one("watch").ok().flatten().copied(),
    }
}

fn wants_json(matches: &ArgMatches) -> bool {
    match matches.subcommand() {
        Some((_, matches)) => wants_json(matches),
        None => matches.get_flag("json"),
    }
}

/// Shows texts one after the other, `times` or until interrupted: on a terminal each in place of the
/// one before, else with an empty line between them. JSON is one object a line.
fn repeat(
    json: bool,
    pause: Duration,
    times: Option<u64>,
    mut next: impl FnMut() -> Result<String, Failure>,
) -> Result<(), Failure> {
    let terminal = io::stdout().is_terminal();
    let mut shown = 0;
    loop {
        let text = next()?;
        say(&match (json, terminal) {
            (true, _) => text,
            (false, true) => in_place(&text),
            (false, false) if shown == 0 => text,
            (false, false) => format!("\n{text}"),
        })?;
        shown += 1;
        if times == Some(shown) {
            return Ok(());
        }
        std::thread::sleep(pause);
    }
}

/// The text from the top of the terminal on, as much as fits.
fn in_place(text: &str) -> String {
    let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_row);
    let rows = match rows {
        0 => usize::MAX,
        rows => usize::from(rows) - 1,
    };
    // Cursor home, clear to the end of each line, and what is below (ECMA-48: CUP, EL, ED).
    let lines = text.lines().take(rows);
    let lines: String = lines.map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\x1b[H{lines}\x1b[J")
}

const EXAMPLES: &str = "\
Examples:
  tandem port add web2 --mac 52:54:00:00:00:02 --vlan 10
  tandem port show web2       # settings, counters, and in words why it is down
  tandem port set web2 --vlan 20 --default mtu
  tandem port list --watch
  tandem team add team0 --members eth0,eth1 --standby eth1
  tandem switch set default --uplink team0
  tandem team member add team0 eth2
  tandem vm list --json
  tandem migration prepare web2 --to beta:4792
  tandem port remove web2";

fn command() -> Command {
    Command::new("tandem")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Talks to tandemd, the virtual switch")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("api-socket")
                .long("api-socket")
                .env("TANDEM_API_SOCKET")
                .hide_env_values(true)
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .global(true)
                .help("Socket of the daemon [default: api.sock in the run directory of this user, or of the host]"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .global(true)
                .help("Print the API's own objects"),
        )
        .subcommand(port::PORT.command())
        .subcommand(vm::command())
        .subcommand(switch::SWITCH.command())
        .subcommand(team::command())
        .subcommand(switch::profile_command())
        .subcommand(migration::command())
        .subcommand(capture::command())
        .subcommand(status::command())
        .subcommand(top::command())
        .subcommand(events::command())
        .subcommand(pages::completions_command())
        .subcommand(pages::man_command())
}

fn dispatch(matches: &ArgMatches) -> Result<String, Failure> {
    match matches.subcommand() {
        Some(("port", matches)) => port::PORT.run(matches),
        Some(("vm", matches)) => vm::run(matches),
        Some(("switch", matches)) => switch::SWITCH.run(matches),
        Some(("team", matches)) => team::run(matches),
        Some(("profile", matches)) => switch::run_profile(matches),
        Some(("migration", matches)) => migration::run(matches),
        Some(("capture", matches)) => capture::run(matches),
        Some(("status", matches)) => status::run(matches),
        Some(("top", matches)) => top::run(matches),
        Some(("events", matches)) => events::run(matches),
        Some(("completions", matches)) => pages::completions(matches),
        Some(("man", matches)) => pages::man(matches),
        _ => Err(Failure::Usage(
            "a command is missing; see tandem --help".to_owned(),
        )),
    }
}

/// A connection to be made, with what all commands share.
struct Session {
    socket: PathBuf,
    json: bool,
}

/// The socket of the user's own daemon; if there is none, that of the host's.
fn default_socket() -> Result<PathBuf, Failure> {
    let hosts = PathBuf::from(HOST_SOCKET);
    match default_run_dir().map(|dir| dir.join(API_SOCKET)) {
        Ok(own) if own.exists() || !hosts.exists() => Ok(own),
        Err(refused) if !hosts.exists() => Err(Failure::Failed(refused.to_string())),
        _ => Ok(hosts),
    }
}

impl Session {
    fn new(matches: &ArgMatches) -> Result<Self, Failure> {
        let socket = match matches.get_one::<PathBuf>("api-socket") {
            Some(socket) => socket.clone(),
            None => default_socket()?,
        };
        Ok(Self {
            socket,
            json: matches.get_flag("json"),
        })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        condition: &Condition,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        client::request(&self.socket, method, path, condition, body)
    }

    fn get(&self, path: &str) -> Result<String, Failure> {
        self.get_tagged(path).map(|(text, _)| text)
    }

    /// An object and the tag of its settings.
    fn get_tagged(&self, path: &str) -> Result<(String, Option<String>), Failure> {
        let answer = self.request(Method::GET, path, &Condition::Always, None)?;
        Ok((answer.text, answer.tag))
    }

    fn create(&self, path: &str, body: &Value) -> Result<String, Failure> {
        let answer = self.request(Method::PUT, path, &Condition::IsNew, Some(body))?;
        Ok(answer.text)
    }

    fn patch(&self, path: &str, body: &Value) -> Result<String, Failure> {
        let answer = self.request(Method::PATCH, path, &Condition::Always, Some(body))?;
        Ok(answer.text)
    }

    /// The same if it still has this tag.
    fn patch_if(
        &self,
        path: &str,
        tag: Option<String>,
        body: &Value,
    ) -> Result<String, ClientError> {
        let condition = Condition::Is(tag.into_iter().collect());
        let answer = self.request(Method::PATCH, path, &condition, Some(body))?;
        Ok(answer.text)
    }

    fn post(&self, path: &str) -> Result<String, Failure> {
        let answer = self.request(Method::POST, path, &Condition::Always, None)?;
        Ok(answer.text)
    }

    fn delete(&self, path: &str) -> Result<String, Failure> {
        let answer = self.request(Method::DELETE, path, &Condition::Always, None)?;
        Ok(answer.text)
    }
}

/// Reads an answer whose members this version knows.
fn read<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| {
        Failure::Failed(format!(
            "tandemd is of another version: {error}; use its own tandem"
        ))
    })
}

/// Reads an answer; a daemon of another version may have other fields.
fn parse(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|error| {
        Failure::Failed(format!("tandemd's answer is no JSON: {error}; see its log"))
    })
}
