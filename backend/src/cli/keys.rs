//! Keys as flags, and names.

use clap::{Arg, ArgAction, ArgMatches};
use serde_json::{Map, Value};

use super::Failure;
use crate::config::{Key, Kind, flag_value, valid_name};

/// The flag of a key: the same name with hyphens.
pub(super) fn flag<T>(key: &'static Key<T>) -> Arg {
    let arg = Arg::new(key.name)
        .long(key.name.replace('_', "-"))
        .value_name(key.value)
        .help(key.help);
    match key.kind {
        Kind::Flag => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Kind::Text | Kind::Number | Kind::List => arg,
    }
}

/// The flag that takes settings back.
pub(super) fn defaults() -> Arg {
    Arg::new("default")
        .long("default")
        .value_name("KEY[,KEY…]")
        .value_delimiter(',')
        .action(ArgAction::Append)
        .help("Set these keys no more: the profile's value or the default holds")
}

/// A name that can be part of a path, which keeps others from the daemon.
pub(super) fn name(matches: &ArgMatches) -> Result<&str, Failure> {
    let name = matches.get_one::<String>("name").map_or("", String::as_str);
    valid_name(name).map_err(|refused| Failure::Usage(refused.to_string()))?;
    Ok(name)
}

/// What the flags of keys say.
pub(super) fn settings<T>(
    matches: &ArgMatches,
    keys: &'static [Key<T>],
) -> Result<Map<String, Value>, Failure> {
    let mut settings = Map::new();
    for key in keys {
        if let Some(text) = matches.get_one::<String>(key.name) {
            let value = flag_value(key, Some(text))
                .map_err(|refused| Failure::Usage(refused.to_string()))?;
            settings.insert(key.name.to_owned(), value);
        }
    }
    Ok(settings)
}

/// What the flags of keys change: null takes a setting back.
pub(super) fn changes<T>(
    matches: &ArgMatches,
    keys: &'static [Key<T>],
) -> Result<Map<String, Value>, Failure> {
    let mut changes = settings(matches, keys)?;
    for key in matches.get_many::<String>("default").unwrap_or_default() {
        // As keys are written elsewhere, or as the flag is.
        let key = key.replace('-', "_");
        let before = changes.insert(key.clone(), Value::Null);
        if before.is_some_and(|value| !value.is_null()) {
            let words = format!("{key} is given a value and its default; choose one");
            return Err(Failure::Usage(words));
        }
    }
    Ok(changes)
}
