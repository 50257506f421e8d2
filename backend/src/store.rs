//! What was set over the API, kept in the state directory so that it survives a restart.
//!
//! One small JSON file: `{"version":3,"ports":{"web1":{"mtu":9000},"old":null},"switches":{},"teams":{}}`,
//! where `null` is a port of the configuration file that was removed. Version 1 had no switches, and
//! version 2 no teams. It is replaced as a whole: written beside,
//! synced, renamed, and the directory synced, so that after a power cut there is the old file or
//! the new one. What cannot be read is never guessed at.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Configured, Layer, Origin, Overlay, Problem};
use crate::control::{Refused, RefusedKind};

/// The version of the format that is written.
const VERSION: u64 = 3;

/// The file of ports in a state directory.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u64,
    ports: BTreeMap<String, Option<Map<String, Value>>>,
    #[serde(default)]
    switches: Tables,
    #[serde(default)]
    teams: Tables,
}

impl Store {
    /// The store in `state_dir`, which exists.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("ports.json"),
        }
    }

    /// Reads what was saved; nothing saved is nothing set.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is of a newer version.
    pub fn load(&self) -> Result<Overlay, Vec<Problem>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Overlay::default()),
            Err(error) => {
                let reason = format!("cannot be read: {error}");
                return Err(self.problem(reason, "check its permissions, or --state-dir"));
            }
        };
        let remedy = "restore it from a backup, or move it away to start without what was set \
                      over the API";
        let saved: Saved =
            serde_json::from_slice(&text).map_err(
                |error| match serde_json::from_slice::<Value>(&text)
                    .ok()
                    .and_then(|v| v["version"].as_u64())
                {
                    Some(newer) if newer > VERSION => self.newer(newer),
                    // serde names its own types where the text is JSON.
                    _ if error.is_data() => self.problem(
                        format!(
                            "is damaged in line {}: not what tandemd writes",
                            error.line()
                        ),
                        remedy,
                    ),
                    _ => self.problem(format!("is damaged: {error}"), remedy),
                },
            )?;
        match saved.version {
            1..=VERSION => self.layers(saved),
            newer if newer > VERSION => Err(self.newer(newer)),
            other => Err(self.problem(format!("is damaged: there is no version {other}"), remedy)),
        }
    }

    fn layers(&self, saved: Saved) -> Result<Overlay, Vec<Problem>> {
        let mut overlay = Overlay::default();
        let mut problems = Vec::new();
        let place = |kind: &str, name: &str| format!("{}: [{kind}{name}]", self.path.display());
        for (name, settings) in saved.ports {
            let layer = settings
                .map(|settings| Layer::from_json(&name, Origin::Api, &place("", &name), &settings))
                .transpose();
            match layer {
                Ok(layer) => drop(overlay.ports.insert(name, layer)),
                Err(wrong) => problems.extend(wrong),
            }
        }
        overlay.switches = layers(saved.switches, |n| place("switch ", n), &mut problems);
        overlay.teams = layers(saved.teams, |n| place("team ", n), &mut problems);
        if problems.is_empty() {
            Ok(overlay)
        } else {
            Err(problems)
        }
    }

    fn newer(&self, version: u64) -> Vec<Problem> {
        let reason = format!("was written by a newer tandemd: format {version}");
        self.problem(reason, "use that version, or another --state-dir")
    }

    fn problem(&self, reason: String, remedy: &str) -> Vec<Problem> {
        let refused = Refused::new(RefusedKind::System, reason, remedy);
        vec![Problem {
            place: self.path.display().to_string(),
            refused,
        }]
    }

    /// Replaces what was saved. An error leaves the old file, unless it is the last sync that
    /// failed.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn save(&self, overlay: &Overlay) -> Result<(), Refused> {
        let json = |layer: &Option<Layer>| layer.as_ref().map(Layer::to_json);
        let ports = overlay.ports.iter();
        let bytes = serde_json::to_vec_pretty(&Saved {
            version: VERSION,
            ports: ports
                .map(|(name, layer)| (name.clone(), json(layer)))
                .collect(),
            switches: saved(&overlay.switches),
            teams: saved(&overlay.teams),
        });
        bytes
            .map_err(io::Error::from)
            .and_then(|bytes| replace_file(&self.path, &bytes))
            .map_err(|error| {
                let reason = format!("{} cannot be saved: {error}", self.path.display());
                Refused::new(
                    RefusedKind::System,
                    reason,
                    "check the state directory's space and owner",
                )
            })
    }
}

type Tables = BTreeMap<String, Map<String, Value>>;

/// The settings of each of these, by name.
fn saved<T: Configured>(layers: &BTreeMap<String, Layer<T>>) -> Tables {
    let each = layers.iter();
    each.map(|(name, layer)| (name.clone(), layer.to_json()))
        .collect()
}

/// The other way round.
fn layers<T: Configured>(
    saved: Tables,
    place: impl Fn(&str) -> String,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Layer<T>> {
    let mut layers = BTreeMap::new();
    for (name, settings) in saved {
        match Layer::from_json(&name, Origin::Api, &place(&name), &settings) {
            Ok(layer) => drop(layers.insert(name, layer)),
            Err(wrong) => problems.extend(wrong),
        }
    }
    layers
}

/// Replaces a file as a whole: after a crash or a power cut there is the old one or the new one. An
/// error leaves the old one, unless it is the last sync that failed.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&beside, path)) {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay() -> Overlay {
        let settings = serde_json::json!({"mtu": 9000, "trunk_vlans": "10,20-29"});
        let web1 = Layer::from_json("web1", Origin::Api, "", settings.as_object().unwrap());
        let plain = Layer::from_json("db1", Origin::Api, "", &Map::new());
        let settings = serde_json::json!({"mac_limit": 100});
        let lab = Layer::from_json("lab", Origin::Api, "", settings.as_object().unwrap());
        let settings = serde_json::json!({"members": ["eth0", "eth1:af_xdp"]});
        let team0 = Layer::from_json("team0", Origin::Api, "", settings.as_object().unwrap());
        Overlay {
            ports: [
                ("web1", Some(web1.unwrap())),
                ("db1", Some(plain.unwrap())),
                ("old", None),
            ]
            .map(|(name, layer)| (name.to_owned(), layer))
            .into(),
            switches: [("lab".to_owned(), lab.unwrap())].into(),
            teams: [("team0".to_owned(), team0.unwrap())].into(),
        }
    }

    fn plain(overlay: &Overlay) -> Value {
        let ports: Map<String, Value> = (overlay.ports.iter())
            .map(|(n, l)| (n.clone(), serde_json::json!(l.as_ref().map(Layer::to_json))))
            .collect();
        serde_json::json!([ports, saved(&overlay.switches), saved(&overlay.teams)])
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert_eq!(plain(&store.load().unwrap()), plain(&Overlay::default()));
        store.save(&overlay()).unwrap();
        assert_eq!(plain(&store.load().unwrap()), plain(&overlay()));
        store.save(&Overlay::default()).unwrap();
        assert_eq!(plain(&store.load().unwrap()), plain(&Overlay::default()));
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["ports.json"]);
    }

    #[test]
    fn a_file_cut_at_any_byte_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.save(&overlay()).unwrap();
        let whole = fs::read(&store.path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&store.path, &whole[..cut]).unwrap();
            let problems = store.load().expect_err("a cut file was taken");
            let text = problems[0].to_string();
            assert!(
                text.contains("ports.json") && text.contains("move it away"),
                "{cut}: {text}"
            );
            assert_eq!(
                fs::read(&store.path).unwrap(),
                &whole[..cut],
                "it was touched"
            );
        }
    }

    #[test]
    fn a_write_that_was_interrupted_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.save(&overlay()).unwrap();
        fs::write(dir.path().join("ports.json.new"), b"{\"vers").unwrap();
        assert_eq!(plain(&store.load().unwrap()), plain(&overlay()));
        store.save(&Overlay::default()).unwrap();
        assert_eq!(plain(&store.load().unwrap()), plain(&Overlay::default()));
    }

    #[test]
    fn other_versions_are_told_apart_from_damage() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        for (text, words) in [
            (r#"{"version":4,"ports":{}}"#, "newer"),
            (r#"{"version":4,"ports":[],"more":{}}"#, "newer"),
            (r#"{"version":0,"ports":{}}"#, "damaged"),
            (r#"{"ports":{}}"#, "damaged"),
            (
                r#"{"version":1,"ports":{"a":{"mut":1}}}"#,
                "did you mean mtu?",
            ),
            (r#"{"version":1,"ports":{"a/b":{}}}"#, "a name cannot have"),
        ] {
            fs::write(&store.path, text).unwrap();
            let problems = store.load().expect_err(text);
            assert!(
                problems[0].to_string().contains(words),
                "{text}: {}",
                problems[0]
            );
        }
    }

    #[test]
    fn what_an_older_daemon_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let mtu = serde_json::json!({"a": {"mtu": 1600}});
        let lab = serde_json::json!({"lab": {"mac_limit": 100}});
        for (text, all) in [
            (
                r#"{"version":1,"ports":{"a":{"mtu":1600}}}"#,
                serde_json::json!([mtu, {}, {}]),
            ),
            (
                r#"{"version":2,"ports":{"a":{"mtu":1600}},"switches":{"lab":{"mac_limit":100}}}"#,
                serde_json::json!([mtu, lab, {}]),
            ),
        ] {
            fs::write(&store.path, text).unwrap();
            assert_eq!(plain(&store.load().unwrap()), all);
        }
    }

    #[test]
    fn a_directory_that_is_gone_is_an_error_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(&dir.path().join("gone"));
        let refused = store.save(&overlay()).unwrap_err();
        assert!(refused.to_string().contains("cannot be saved"), "{refused}");
    }
}
