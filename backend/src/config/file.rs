//! The configuration file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, OWN_KEYS, nearest};
use super::layer::{Configured, Layer, Profiles};
use super::value::Bad;
use super::{Origin, Problem, SwitchConfig, TeamConfig};

/// What the file says.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// The switches it names.
    pub switches: BTreeMap<String, Layer<SwitchConfig>>,
    /// The teams it names.
    pub teams: BTreeMap<String, Layer<TeamConfig>>,
    /// The profiles it names.
    pub profiles: Profiles,
    /// The ports it names.
    pub ports: BTreeMap<String, Layer>,
}

/// Larger files are no configuration.
const MAX_BYTES: u64 = 16 << 20;

impl File {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// That it cannot be read, or that it is no TOML. What is wrong with single tables is pushed to
    /// `problems`, and the rest is read on.
    pub fn read(path: &Path, problems: &mut Vec<Problem>) -> Result<Self, Vec<Problem>> {
        let unreadable = |why: String| {
            let bad = Bad::new(why, "check the path and its permissions");
            vec![bad.at(&path.display().to_string(), None)]
        };
        match std::fs::metadata(path) {
            Ok(meta) if meta.len() > MAX_BYTES => {
                return Err(unreadable("it is larger than 16 MiB".into()));
            }
            Ok(_) => {}
            Err(error) => return Err(unreadable(format!("cannot be read: {error}"))),
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
        Self::parse(&text, &path.display().to_string(), problems)
    }

    /// Reads the text of a file that a user knows as `place`.
    ///
    /// # Errors
    /// As [`File::read`].
    pub fn parse(
        text: &str,
        place: &str,
        problems: &mut Vec<Problem>,
    ) -> Result<Self, Vec<Problem>> {
        let source = Source { text, place };
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let problem = |error: &toml::de::Error| {
                let at = source.line(error.span().map_or(0, |span| span.start));
                let reason = error.message().trim_end_matches('.').replace('\n', ", ");
                Bad::new(reason, "see https://toml.io for the syntax").at(&at, None)
            };
            return Err(errors.iter().map(problem).collect());
        }
        let mut file = Self::default();
        for (key, value) in root.get_ref() {
            match key.get_ref().as_ref() {
                "switch" => source.layers(key, value, Origin::File, &mut file.switches, problems),
                "team" => source.layers(key, value, Origin::File, &mut file.teams, problems),
                "profile" => {
                    source.layers(key, value, Origin::Profile, &mut file.profiles, problems);
                }
                "port" => source.layers(key, value, Origin::File, &mut file.ports, problems),
                other => {
                    let reason = format!("there is no table [{other}]");
                    let bad = Bad::new(
                        reason,
                        nearest(other, &["port", "profile", "switch", "team"]),
                    );
                    problems.push(bad.at(&source.line(key.span().start), None));
                }
            }
        }
        Ok(file)
    }
}

struct Source<'a> {
    text: &'a str,
    place: &'a str,
}

impl Source<'_> {
    /// `FILE:LINE` of a byte.
    fn line(&self, byte: usize) -> String {
        let before = self.text.as_bytes().iter().take(byte);
        format!(
            "{}:{}",
            self.place,
            1 + before.filter(|byte| **byte == b'\n').count()
        )
    }

    /// Calls `visit` with the place, name and table of each `[KIND.NAME]`.
    fn each<'t>(
        &self,
        kind: &Spanned<std::borrow::Cow<'_, str>>,
        tables: &'t Spanned<DeValue<'_>>,
        problems: &mut Vec<Problem>,
        mut visit: impl FnMut(&str, &str, &'t DeTable<'_>, &mut Vec<Problem>),
    ) {
        let kind_name = kind.get_ref();
        let remedy = format!("write [{kind_name}.NAME], then its keys");
        let Some(named) = tables.get_ref().as_table() else {
            let bad = Bad::new(format!("{kind_name} is not a table"), remedy);
            return problems.push(bad.at(&self.line(kind.span().start), None));
        };
        for (name, table) in named {
            let at = format!(
                "{}: [{kind_name}.{}]",
                self.line(name.span().start),
                name.get_ref()
            );
            match table.get_ref().as_table() {
                Some(table) => visit(&at, name.get_ref(), table, problems),
                None => {
                    problems.push(Bad::new("this is a key without a name", &remedy).at(&at, None))
                }
            }
        }
    }

    /// The settings of each `[KIND.NAME]`, by name.
    fn layers<T: Configured>(
        &self,
        kind: &Spanned<std::borrow::Cow<'_, str>>,
        tables: &Spanned<DeValue<'_>>,
        origin: Origin,
        layers: &mut BTreeMap<String, Layer<T>>,
        problems: &mut Vec<Problem>,
    ) {
        self.each(
            kind,
            tables,
            problems,
            |at, name, table, problems| match self.layer(at, name, origin, table, problems) {
                Ok(layer) => drop(layers.insert(name.to_owned(), layer)),
                Err(bad) => problems.extend(bad),
            },
        );
    }

    /// The settings of a table.
    fn layer<T: Configured>(
        &self,
        at: &str,
        name: &str,
        origin: Origin,
        table: &DeTable<'_>,
        problems: &mut Vec<Problem>,
    ) -> Result<Layer<T>, Vec<Problem>> {
        let mut layer = Layer::empty(name, origin, at.to_owned())?;
        for (key, value) in table {
            let place = self.key_place(at, key);
            match keys::find(T::keys(), key.get_ref()) {
                Ok(key) if origin == Origin::Profile && OWN_KEYS.contains(&key.name) => {
                    let bad = Bad::new("a profile is shared by ports", "set it in each port");
                    problems.push(bad.at(&place, Some(key.name)));
                }
                Ok(key) => layer.push(key, json(value.get_ref()), place),
                Err(bad) => problems.push(bad.at(&place, Some(key.get_ref()))),
            }
        }
        Ok(layer)
    }

    /// The place of a table with the line of one of its keys.
    fn key_place(&self, at: &str, key: &Spanned<std::borrow::Cow<'_, str>>) -> String {
        let table = at.split_once(": ").map_or(at, |(_, table)| table);
        format!("{}: {table}", self.line(key.span().start))
    }
}

/// The value as JSON; what JSON lacks becomes text.
fn json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(integer) => {
            let digits = integer.as_str();
            match (
                u64::from_str_radix(digits, integer.radix()),
                digits.parse::<i64>(),
            ) {
                (Ok(number), _) => Value::from(number),
                (Err(_), Ok(number)) => Value::from(number),
                (Err(_), Err(_)) => Value::from(digits),
            }
        }
        DeValue::Float(float) => match float.as_str().parse::<f64>() {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(float.as_str()),
        },
        DeValue::Boolean(truth) => Value::Bool(*truth),
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Array(values) => {
            Value::Array(values.iter().map(|value| json(value.get_ref())).collect())
        }
        DeValue::Table(_) => Value::Object(serde_json::Map::new()),
    }
}
