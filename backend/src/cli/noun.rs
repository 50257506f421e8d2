//! The verbs that ports, switches and teams have in common: list, show, add, set, reset, remove.

use clap::{Arg, ArgMatches, Command};
use serde_json::Value;

use super::keys::{changes, defaults, flag, name, settings};
use super::{Failure, Session, parse, watch};
use crate::config::Key;

/// A noun of the command line, and how its objects are shown to people.
pub(super) struct Noun<T: 'static> {
    /// The word itself.
    pub(super) noun: &'static str,
    /// What it is.
    pub(super) about: &'static str,
    /// What its verbs do.
    pub(super) verbs: Verbs,
    /// The API's list of all.
    pub(super) path: &'static str,
    /// Its settings.
    pub(super) keys: &'static [Key<T>],
    /// What a reset goes back to.
    pub(super) base: &'static str,
    /// The list of all, from the API's answer.
    pub(super) list: fn(&Value) -> String,
    /// One object.
    pub(super) show: fn(&Value) -> String,
    /// What there is to say of one that was added, behind `added`.
    pub(super) added: fn(&Value) -> String,
}

/// What the verbs do, for the help.
pub(super) struct Verbs {
    pub(super) list: &'static str,
    pub(super) show: &'static str,
    pub(super) add: &'static str,
    pub(super) set: &'static str,
    pub(super) reset: &'static str,
    pub(super) remove: &'static str,
}

impl<T> Noun<T> {
    /// The commands.
    pub(super) fn command(&self) -> Command {
        let name = || {
            Arg::new("name")
                .value_name("NAME")
                .required(true)
                .help(format!("The {}'s name", self.noun))
        };
        let verb = |verb: &'static str, about: &'static str| Command::new(verb).about(about);
        let flags = || self.keys.iter().map(flag);
        Command::new(self.noun)
            .about(self.about)
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(
                verb("list", self.verbs.list)
                    .visible_alias("ls")
                    .arg(watch()),
            )
            .subcommand(verb("show", self.verbs.show).arg(name()).arg(watch()))
            .subcommand(verb("add", self.verbs.add).arg(name()).args(flags()))
            .subcommand(
                verb("set", self.verbs.set)
                    .arg(name())
                    .args(flags())
                    .arg(defaults()),
            )
            .subcommand(verb("reset", self.verbs.reset).arg(name()))
            .subcommand(
                verb("remove", self.verbs.remove)
                    .visible_alias("del")
                    .arg(name()),
            )
    }

    /// Does what was asked for.
    pub(super) fn run(&self, matches: &ArgMatches) -> Result<String, Failure> {
        let Some((verb, matches)) = matches.subcommand() else {
            let words = format!("a verb is missing; see tandem {} --help", self.noun);
            return Err(Failure::Usage(words));
        };
        let session = || Session::new(matches);
        if verb == "list" {
            let session = session()?;
            return shown(&session, session.get(self.path)?, self.list);
        }
        let noun = self.noun;
        let name = name(matches)?;
        let path = self.path_of(name);
        match verb {
            "show" => {
                let session = session()?;
                shown(&session, session.get(&path)?, self.show)
            }
            "add" => {
                let settings = Value::Object(settings(matches, self.keys)?);
                let session = session()?;
                let answer = session.create(&path, &settings)?;
                let words =
                    |object: &Value| format!("{noun} {name} added{}\n", (self.added)(object));
                shown(&session, answer, words)
            }
            "set" => {
                let changes = changes(matches, self.keys)?;
                if changes.is_empty() {
                    let words = format!("there is nothing to set; see tandem {noun} set --help");
                    return Err(Failure::Usage(words));
                }
                let session = session()?;
                let answer = session.patch(&path, &Value::Object(changes))?;
                shown(&session, answer, |_| format!("{noun} {name} changed\n"))
            }
            "reset" => {
                let session = session()?;
                let answer = session.post(&format!("{path}/reset"))?;
                let words = format!("{noun} {name} is what {}\n", self.base);
                shown(&session, answer, |_| words)
            }
            _ => {
                let session = session()?;
                removed(
                    &session,
                    session.delete(&path)?,
                    &format!("{noun} {name} removed"),
                )
            }
        }
    }

    /// The API's path of one.
    pub(super) fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }
}

/// An answer of the daemon as it is, or in words.
pub(super) fn shown(
    session: &Session,
    answer: String,
    words: impl FnOnce(&Value) -> String,
) -> Result<String, Failure> {
    if session.json {
        return Ok(answer + "\n");
    }
    Ok(words(&parse(&answer)?))
}

/// The answer to a removal; the daemon has something to say only if what was removed comes back.
fn removed(session: &Session, answer: String, words: &str) -> Result<String, Failure> {
    match (session.json, answer.is_empty()) {
        (true, true) => Ok(String::new()),
        (false, true) => Ok(format!("{words}\n")),
        (_, false) => shown(session, answer, |answer| {
            let note = answer["note"].as_str().unwrap_or_default();
            format!("{words}; {note}\n")
        }),
    }
}
