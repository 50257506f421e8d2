//! Checks of single values, whichever way they came in.

use std::ops::RangeInclusive;

use serde_json::Value;
use tandem_virtio_net::wire::vlan::MAX_VID;

use super::keys::Kind;

/// A value that is not accepted: why, and what to do. No full stops.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) reason: String,
    pub(super) remedy: String,
}

impl Bad {
    pub(super) fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

/// Reads a value that was written as text; `None` is a key alone.
pub(super) fn from_text(kind: Kind, text: Option<&str>) -> Result<Value, Bad> {
    let Some(text) = text else {
        return match kind {
            Kind::Flag => Ok(Value::Bool(true)),
            _ => Err(Bad::new("it has no value", "add =VALUE")),
        };
    };
    Ok(match kind {
        Kind::Number => match text.parse::<u64>() {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(text),
        },
        Kind::Flag => match text {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => Value::from(text),
        },
        Kind::Text | Kind::List => Value::from(text),
    })
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// Text that is not empty.
pub(super) fn text(value: &Value) -> Result<&str, Bad> {
    match value {
        Value::String(text) if text.is_empty() => Err(Bad::new(
            "it is empty",
            "give a value, or leave the key out",
        )),
        Value::String(text) => Ok(text),
        other => Err(Bad::new(
            format!("{} is not text", shown(other)),
            "write it in quotes",
        )),
    }
}

/// Text that stands for a list; `remedy` has an example.
pub(super) fn listed<'a>(value: &'a Value, remedy: &str) -> Result<&'a str, Bad> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Bad::new(format!("{} is not text", shown(other)), remedy)),
    }
}

/// The words of a list: an array of text, or text with commas.
pub(super) fn words<'a>(value: &'a Value, remedy: &str) -> Result<Vec<&'a str>, Bad> {
    match value {
        Value::Array(words) => {
            let words = words.iter().map(|word| match word {
                Value::String(word) => Ok(word.as_str()),
                other => Err(Bad::new(format!("{} is not text", shown(other)), remedy)),
            });
            words.collect()
        }
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(text.split(',').collect()),
        other => Err(Bad::new(format!("{} is no list", shown(other)), remedy)),
    }
}

/// One of these words; `what` they are.
pub(super) fn one_of<T: Copy>(value: &Value, what: &str, choices: &[(&str, T)]) -> Result<T, Bad> {
    let text = text(value)?;
    let chosen = choices.iter().find(|(word, _)| *word == text);
    chosen.map(|(_, choice)| *choice).ok_or_else(|| {
        let (last, others) = choices
            .split_last()
            .map_or(("", choices), |((w, _), o)| (*w, o));
        let others: Vec<&str> = others.iter().map(|(word, _)| *word).collect();
        let remedy = format!("say {} or {last}", others.join(", "));
        Bad::new(format!("{text:?} is no {what}"), remedy)
    })
}

/// A whole number in `range`.
pub(super) fn number(value: &Value, range: RangeInclusive<u64>) -> Result<u64, Bad> {
    let remedy = || match (range.start(), range.end()) {
        (first, last) if first == last => format!("the only value is {first}"),
        (first, last) => format!("give a number from {first} to {last}"),
    };
    match value {
        Value::Number(number) => match number.as_u64() {
            Some(number) if range.contains(&number) => Ok(number),
            Some(n) if range.start() == range.end() => {
                Err(Bad::new(format!("there is no {n}"), remedy()))
            }
            Some(n) if n > *range.end() => Err(Bad::new(format!("{n} is too large"), remedy())),
            Some(n) => Err(Bad::new(format!("{n} is too small"), remedy())),
            None => Err(Bad::new(
                format!("{number} is not a whole number"),
                remedy(),
            )),
        },
        other => Err(Bad::new(
            format!("{} is not a number", shown(other)),
            remedy(),
        )),
    }
}

/// A VLAN that a tag can carry.
pub(super) fn vlan(value: &Value) -> Result<u16, Bad> {
    if value.as_u64() == Some(0) {
        return Err(Bad::new(
            "0 is no VLAN",
            "leave the key out for untagged frames",
        ));
    }
    Ok(number(value, 1..=u64::from(MAX_VID))? as u16)
}

/// `true` or `false`.
pub(super) fn flag(value: &Value) -> Result<bool, Bad> {
    value.as_bool().ok_or_else(|| {
        Bad::new(
            format!("{} is no truth value", shown(value)),
            "say true or false",
        )
    })
}

/// Permission bits in octal, as text: the number 660 would be read as decimal.
pub(super) fn octal(value: &Value) -> Result<u32, Bad> {
    let remedy = "write octal digits in quotes, such as \"0660\"";
    let Value::String(text) = value else {
        return Err(Bad::new(format!("{} is not text", shown(value)), remedy));
    };
    match u32::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o777 && !text.starts_with('+') => Ok(bits),
        _ => Err(Bad::new(format!("{text:?} are no permissions"), remedy)),
    }
}

/// A name of a port, VM or switch. See [`check_name`].
pub(super) fn name(value: &Value) -> Result<String, Bad> {
    let name = text(value)?;
    check_name(name)?;
    Ok(name.to_owned())
}

/// Names are parts of paths, of addresses and of flags: `[A-Za-z0-9._-]{1,64}`, the first a letter
/// or a digit.
pub(super) fn check_name(name: &str) -> Result<(), Bad> {
    let remedy = "use letters, digits, '.', '_' and '-', the first a letter or a digit";
    if name.is_empty() {
        return Err(Bad::new("the name is empty", remedy));
    }
    if name.len() > 64 {
        let reason = format!("the name has {} characters", name.chars().count());
        return Err(Bad::new(reason, "use at most 64"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(odd) = name.chars().find(|c| !fits(*c)) {
        return Err(Bad::new(
            format!("a name cannot have {odd:?} in it"),
            remedy,
        ));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(Bad::new(format!("{name:?} begins with a sign"), remedy));
    }
    Ok(())
}
