//! Changes that fail half-way, on an engine that refuses what it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, Mutex};

use hyper::body::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::Receiver;

use super::{
    Base, Condition, Control, Engine, MovingPort, Put, Refused, RefusedKind, Reloaded, Removed,
    Resource, Setup,
};
use crate::capture;
use crate::config::{
    Config, File, Layer, Origin, Overlay, PortConfig, Problem, SwitchConfig, TeamConfig,
    add_overlay, build,
};
use crate::events::EventKind;
use crate::status::{PortStatus, SwitchStatus, SwitchesStatus, TeamStatus, VmUsage};
use crate::store::Store;

/// Records what it is told. It cannot make a port with an MTU of 666, nor one in `broken`.
#[derive(Default)]
struct Fake {
    ports: Mutex<BTreeMap<String, u16>>,
    calls: Mutex<Vec<String>>,
    broken: Mutex<BTreeSet<String>>,
    switches: Mutex<BTreeSet<String>>,
    /// By team.
    devices: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// By port; each may be had once.
    macs: Mutex<BTreeMap<String, String>>,
}

impl Fake {
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn take_mac(&self, port: &PortConfig) -> Result<(), Refused> {
        let mut macs = self.macs.lock().unwrap();
        let Some(mac) = port.mac.map(|mac| mac.to_string()) else {
            macs.remove(&port.name);
            return Ok(());
        };
        if macs
            .iter()
            .any(|(name, other)| *name != port.name && *other == mac)
        {
            return Err(Refused::new(RefusedKind::Conflict, "taken", "wait").about("mac"));
        }
        macs.insert(port.name.clone(), mac);
        Ok(())
    }

    /// Each device may be had once, and the device `bad` by nobody.
    fn take_devices(&self, name: &str, team: Option<&TeamConfig>) -> Result<(), Refused> {
        let mut devices = self.devices.lock().unwrap();
        let wanted = team.into_iter().flat_map(|team| &team.members);
        let wanted: BTreeSet<String> = wanted.map(|member| member.device.clone()).collect();
        let mut others = devices.iter().filter(|(other, _)| *other != name);
        let taken = others.any(|(_, theirs)| !theirs.is_disjoint(&wanted));
        if taken || wanted.contains("bad") {
            return Err(Refused::new(RefusedKind::Conflict, "taken", "wait").about("members"));
        }
        match team {
            Some(_) => devices.insert(name.to_owned(), wanted),
            None => devices.remove(name),
        };
        Ok(())
    }

    fn ports(&self) -> Vec<(String, u16)> {
        self.ports.lock().unwrap().clone().into_iter().collect()
    }
}

impl Engine for Fake {
    fn add_port(&self, port: &PortConfig, _: EventKind) -> Result<(), Refused> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("add {} {}", port.name, port.mtu));
        if port.mtu == 666 || self.broken.lock().unwrap().contains(&port.name) {
            return Err(Refused::new(RefusedKind::System, "no", "wait"));
        }
        self.take_mac(port)?;
        assert_eq!(
            self.ports
                .lock()
                .unwrap()
                .insert(port.name.clone(), port.mtu),
            None
        );
        Ok(())
    }

    /// All but the MTU can be changed.
    fn change_port(&self, port: &PortConfig) -> Result<bool, Refused> {
        let changed = self.ports.lock().unwrap().get(&port.name) == Some(&port.mtu);
        if changed {
            self.take_mac(port)?;
            self.calls
                .lock()
                .unwrap()
                .push(format!("change {}", port.name));
        }
        Ok(changed)
    }

    fn remove_port(&self, name: &str) -> Result<(), Refused> {
        self.calls.lock().unwrap().push(format!("remove {name}"));
        self.macs.lock().unwrap().remove(name);
        match self.ports.lock().unwrap().remove(name) {
            Some(_) => Ok(()),
            None => Err(Refused::new(RefusedKind::NotFound, "none", "look")),
        }
    }

    fn ports(&self) -> Vec<PortStatus> {
        let status = |name: &String| PortStatus {
            name: name.clone(),
            ..PortStatus::default()
        };
        self.ports.lock().unwrap().keys().map(status).collect()
    }

    fn add_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused> {
        self.take_devices(name, Some(team))?;
        self.calls.lock().unwrap().push(format!("add team {name}"));
        Ok(())
    }

    fn change_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused> {
        self.take_devices(name, Some(team))?;
        let members: Vec<String> = team.members.iter().map(ToString::to_string).collect();
        let call = format!("change team {name} {}", members.join(","));
        self.calls.lock().unwrap().push(call);
        Ok(())
    }

    fn remove_team(&self, name: &str) -> Result<(), Refused> {
        self.take_devices(name, None)?;
        let call = format!("remove team {name}");
        self.calls.lock().unwrap().push(call);
        Ok(())
    }

    fn teams(&self) -> Vec<TeamStatus> {
        Vec::new()
    }

    fn add_switch(&self, name: &str, _: &SwitchConfig) -> Result<(), Refused> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("add switch {name}"));
        self.switches.lock().unwrap().insert(name.to_owned());
        Ok(())
    }

    fn change_switch(&self, name: &str, _: &SwitchConfig) -> Result<(), Refused> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("change switch {name}"));
        Ok(())
    }

    fn remove_switch(&self, name: &str) -> Result<(), Refused> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("remove switch {name}"));
        Ok(())
    }

    fn port(&self, name: &str) -> Option<PortStatus> {
        Engine::ports(self)
            .into_iter()
            .find(|port| port.name == name)
    }

    fn has_port(&self, name: &str) -> bool {
        self.ports.lock().unwrap().contains_key(name)
    }

    fn ports_up(&self) -> usize {
        0
    }

    fn moving(&self, name: &str) -> Result<Arc<dyn MovingPort>, Refused> {
        let reason = format!("there is no VM behind {name}");
        Err(Refused::new(RefusedKind::NotFound, reason, "start one"))
    }

    fn capture(&self, _: &str, _: &capture::Request) -> Result<Receiver<Bytes>, Refused> {
        Err(Refused::new(RefusedKind::NotFound, "none", "look"))
    }

    fn end_captures(&self) {}

    fn vms(&self) -> Vec<VmUsage> {
        Vec::new()
    }

    fn status(&self) -> SwitchesStatus {
        let others = self.switches.lock().unwrap().clone();
        let names = ["default".to_owned()].into_iter().chain(others);
        let switch = |name| SwitchStatus {
            name,
            ..SwitchStatus::default()
        };
        SwitchesStatus {
            switches: names.map(switch).collect(),
            ..SwitchesStatus::default()
        }
    }

    fn beats(&self) -> u64 {
        0
    }
}

struct Bench {
    dir: tempfile::TempDir,
    engine: Arc<Fake>,
    control: Control,
}

/// A daemon whose file has the port `web1` with an MTU of 2000.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("state")).unwrap();
    start(dir, &[]).unwrap_or_else(|(port, refused)| panic!("{port}: {refused}"))
}

fn start(dir: tempfile::TempDir, line: &[&str]) -> Result<Bench, (String, Refused)> {
    let file = File::parse("[port.web1]\nmtu = 2000\n", "f", &mut Vec::new()).unwrap();
    let store = Store::new(&dir.path().join("state"));
    let overlay: Overlay = store.load().unwrap();
    let line: Vec<Layer> = line
        .iter()
        .map(|port| Layer::from_line(port).unwrap())
        .collect();
    let mut config: Config = build(&file, &overlay, &line, dir.path()).unwrap();
    add_overlay(&mut config, &overlay, dir.path());
    let engine = Arc::new(Fake::default());
    let base = base(file, line);
    let control = Control::start(Setup {
        engine: engine.clone(),
        config,
        base,
        events: Arc::default(),
        overlay,
        store,
        run_dir: dir.path().to_owned(),
    });
    if control.is_err() {
        assert_eq!(engine.ports(), [], "ports are left after a failed start");
    }
    control.map(|control| Bench {
        dir,
        engine,
        control,
    })
}

fn base(file: File, line: Vec<Layer>) -> Base {
    let named = |layer: Layer| (layer.name().to_owned(), layer);
    Base {
        switches: file.switches,
        teams: file.teams,
        profiles: file.profiles,
        file: file.ports,
        line: line.into_iter().map(named).collect(),
        program: None,
    }
}

fn restarted(bench: Bench, line: &[&str]) -> Bench {
    start(bench.dir, line).unwrap_or_else(|(port, refused)| panic!("{port}: {refused}"))
}

fn settings(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn ports(list: &[(&str, u16)]) -> Vec<(String, u16)> {
    list.iter()
        .map(|(name, mtu)| ((*name).to_owned(), *mtu))
        .collect()
}

fn saved(bench: &Bench) -> Value {
    match fs::read(bench.dir.path().join("state/ports.json")) {
        Ok(text) => serde_json::from_slice::<Value>(&text).unwrap()["ports"].clone(),
        Err(_) => json!({}),
    }
}

#[test]
fn a_failed_start_leaves_no_port() {
    let dir = tempfile::tempdir().unwrap();
    let (port, _) = start(dir, &["a", "z,mtu=666"]).err().unwrap();
    assert_eq!(port, "z");
}

#[test]
fn a_port_is_made_changed_and_removed_and_each_is_saved() {
    let bench = bench();
    let put = |mtu| {
        bench
            .control
            .put("db1", &settings(json!({"mtu": mtu})), &Condition::Always)
            .unwrap()
            .0
    };
    assert_eq!(put(1400), Put::Created);
    assert_eq!(saved(&bench), json!({"db1": {"mtu": 1400}}));
    assert_eq!(put(1300), Put::Replaced);
    assert_eq!(saved(&bench), json!({"db1": {"mtu": 1300}}));
    assert_eq!(
        bench.engine.ports(),
        ports(&[("db1", 1300), ("web1", 2000)])
    );
    bench.control.remove("db1", &Condition::Always).unwrap();
    assert_eq!(saved(&bench), json!({}));
    assert_eq!(bench.engine.ports(), ports(&[("web1", 2000)]));
}

#[test]
fn settings_that_are_the_same_leave_the_port_alone() {
    let bench = bench();
    bench.engine.calls();
    let same = settings(json!({"mtu": 2000, "vlan": null}));
    assert_eq!(
        bench
            .control
            .put("web1", &same, &Condition::Always)
            .unwrap()
            .0,
        Put::Replaced
    );
    assert_eq!(bench.engine.calls(), Vec::<String>::new());
    assert_eq!(saved(&bench), json!({"web1": {"mtu": 2000}}));
}

#[test]
fn create_only_does_not_touch_a_port_that_exists() {
    let bench = bench();
    let wrong = bench
        .control
        .put("web1", &settings(json!({"mtu": 1400})), &Condition::IsNew)
        .unwrap_err();
    assert_eq!(wrong[0].kind, RefusedKind::Stale);
    assert_eq!(wrong[0].field.as_deref(), Some("name"));
    assert_eq!(bench.engine.ports(), ports(&[("web1", 2000)]));
}

#[test]
fn a_change_that_the_engine_refuses_leaves_the_old_port() {
    let bench = bench();
    bench
        .control
        .put("web1", &settings(json!({"mtu": 666})), &Condition::Always)
        .unwrap_err();
    bench
        .control
        .put("db1", &settings(json!({"mtu": 666})), &Condition::Always)
        .unwrap_err();
    assert_eq!(bench.engine.ports(), ports(&[("web1", 2000)]));
    assert_eq!(bench.control.port("web1").unwrap().config.mtu, 2000);
    assert!(bench.control.port("db1").is_err());
    assert_eq!(saved(&bench), json!({}));
}

#[test]
fn a_change_that_cannot_be_saved_is_taken_back() {
    let bench = bench();
    fs::remove_dir(bench.dir.path().join("state")).unwrap();
    let wrong = bench
        .control
        .put("web1", &settings(json!({"mtu": 1400})), &Condition::Always)
        .unwrap_err();
    assert_eq!(wrong[0].kind, RefusedKind::System);
    bench
        .control
        .put("db1", &Map::new(), &Condition::Always)
        .unwrap_err();
    bench
        .control
        .remove("web1", &Condition::Always)
        .unwrap_err();
    assert_eq!(bench.engine.ports(), ports(&[("web1", 2000)]));
    assert_eq!(bench.control.port("web1").unwrap().config.mtu, 2000);

    // What failed is not in a later save, either.
    fs::create_dir(bench.dir.path().join("state")).unwrap();
    bench
        .control
        .put("new", &Map::new(), &Condition::Always)
        .unwrap();
    assert_eq!(saved(&bench), json!({"new": {}}));
}

#[test]
fn a_port_lost_in_a_change_can_be_made_and_removed_again() {
    let bench = bench();
    bench.engine.broken.lock().unwrap().insert("web1".into());
    bench
        .control
        .put("web1", &settings(json!({"mtu": 1400})), &Condition::Always)
        .unwrap_err();
    assert_eq!(bench.engine.ports(), []);
    assert!(bench.control.port("web1").unwrap().running.reason.is_some());
    bench.engine.broken.lock().unwrap().clear();
    bench
        .control
        .put("web1", &settings(json!({"mtu": 2000})), &Condition::Always)
        .unwrap();
    assert_eq!(bench.engine.ports(), ports(&[("web1", 2000)]));
}

#[test]
fn what_was_set_over_the_api_survives_a_restart() {
    let bench = bench();
    bench
        .control
        .put("web1", &settings(json!({"vlan": 7})), &Condition::Always)
        .unwrap();
    bench
        .control
        .put("db1", &settings(json!({"mtu": 1400})), &Condition::Always)
        .unwrap();
    let bench = restarted(bench, &[]);
    assert_eq!(
        bench.engine.ports(),
        ports(&[("db1", 1400), ("web1", 1500)])
    );
    assert_eq!(bench.control.port("web1").unwrap().config.vlan, Some(7));
    bench.control.remove("web1", &Condition::Always).unwrap();
    bench.control.remove("db1", &Condition::Always).unwrap();
    assert_eq!(saved(&bench), json!({"web1": null}));
    let bench = restarted(bench, &[]);
    assert_eq!(bench.engine.ports(), []);
    // Only the command line brings it back, without what the file said.
    let bench = restarted(bench, &["web1"]);
    assert_eq!(bench.engine.ports(), ports(&[("web1", 1500)]));
}

#[test]
fn each_setting_says_where_it_came_from() {
    let bench = restarted(bench(), &["web1,vlan=5", "db1,mtu=1400"]);
    bench
        .control
        .put("new", &settings(json!({"mtu": 1400})), &Condition::Always)
        .unwrap();
    let origin = |name: &str, key: &str| {
        serde_json::to_value(bench.control.port(name).unwrap()).unwrap()["origin"][key].clone()
    };
    assert_eq!(origin("web1", "mtu"), "file");
    assert_eq!(origin("web1", "vlan"), "command_line");
    assert_eq!(origin("web1", "mac"), "default");
    assert_eq!(origin("new", "mtu"), "api");
}

#[test]
fn ports_that_contradict_others_are_refused() {
    let bench = bench();
    let mac = json!({"mac": "52:54:00:00:00:01"});
    bench
        .control
        .put("a", &settings(mac.clone()), &Condition::Always)
        .unwrap();
    let wrong = bench
        .control
        .put("b", &settings(mac.clone()), &Condition::Always)
        .unwrap_err();
    assert_eq!(
        (wrong[0].kind, wrong[0].field.as_deref()),
        (RefusedKind::Conflict, Some("mac"))
    );
    let socket = settings(json!({"socket": "a.sock"}));
    let wrong = bench
        .control
        .put("b", &socket, &Condition::Always)
        .unwrap_err();
    assert_eq!(wrong[0].field.as_deref(), Some("socket"));
    // A port may keep what is its own.
    bench
        .control
        .put("a", &settings(mac), &Condition::Always)
        .unwrap();
    bench.control.stop();
    assert_eq!(bench.engine.ports(), []);
}

#[test]
fn a_port_is_after_a_restart_what_the_api_made_of_it() {
    let line = ["web1,trunk_vlans=1+2,mtu=1400"];
    let bench = restarted(bench(), &line);
    let put = settings(json!({"vlan": 7, "queue_pairs": 2}));
    bench.control.put("web1", &put, &Condition::Always).unwrap();
    let port = |bench: &Bench| {
        let mut port = serde_json::to_value(bench.control.port("web1").unwrap()).unwrap();
        assert_eq!(port["origin"]["vlan"], "api");
        assert_eq!(port["origin"]["mtu"], "default");
        port["reason"].take();
        port
    };
    let before = port(&bench);
    let bench = restarted(bench, &line);
    assert_eq!(port(&bench), before);
    assert_eq!(bench.engine.ports(), ports(&[("web1", 1500)]));
}

#[test]
fn a_saved_port_that_cannot_be_made_stops_no_other() {
    let bench = bench();
    let put = |name: &str, value| {
        bench
            .control
            .put(name, &settings(value), &Condition::Always)
            .unwrap()
    };
    put("a", json!({"mac": "52:54:00:00:00:01"}));
    put("b", json!({"vlan": 3}));
    put("c", json!({"vlan": 3}));
    // What a host is like after a while: other ports, no switch, and a kernel that says no.
    let path = bench.dir.path().join("state/ports.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["ports"]["b"] = json!({"switch": "gone"});
    json["ports"]["c"] = json!({"mtu": 666});
    fs::write(&path, json.to_string()).unwrap();

    let bench = restarted(bench, &["z,mac=52:54:00:00:00:01"]);
    assert_eq!(bench.engine.ports(), ports(&[("web1", 2000), ("z", 1500)]));
    for (name, word) in [
        ("a", "port z's already"),
        ("b", "no switch gone"),
        ("c", "no"),
    ] {
        let reason = bench.control.port(name).unwrap().running.reason.unwrap();
        assert!(reason.contains(word), "{reason}");
        let remedy = format!("tandem port remove {name}");
        assert!(reason.contains(&remedy), "{reason}");
    }
    let all = bench.control.ports();
    let names: Vec<&str> = all.iter().map(|port| port.config.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "web1", "z"]);
    assert_eq!(bench.control.status().ports.total, 5);

    // It can be removed, or put right; until then it is in nobody's way but its own.
    let taken = bench
        .control
        .put("c", &Map::new(), &Condition::IsNew)
        .unwrap_err();
    assert_eq!(taken[0].kind, RefusedKind::Stale);
    assert_eq!(
        bench.control.remove("b", &Condition::Always).unwrap(),
        Removed::ForGood
    );
    assert_eq!(
        bench
            .control
            .put("c", &Map::new(), &Condition::Always)
            .unwrap()
            .0,
        Put::Replaced
    );
    assert_eq!(
        bench
            .control
            .remove("b", &Condition::Always)
            .unwrap_err()
            .kind,
        RefusedKind::NotFound
    );
    let bench = restarted(bench, &[]);
    let running = ports(&[("a", 1500), ("c", 1500), ("web1", 2000)]);
    assert_eq!(bench.engine.ports(), running);
}

#[test]
fn a_removed_port_of_the_command_line_is_said_to_come_back() {
    let bench = restarted(bench(), &["z"]);
    assert_eq!(
        bench.control.remove("z", &Condition::Always).unwrap(),
        Removed::UntilRestart
    );
    assert_eq!(
        bench.control.remove("web1", &Condition::Always).unwrap(),
        Removed::ForGood
    );
    let bench = restarted(bench, &["z"]);
    assert_eq!(bench.engine.ports(), ports(&[("z", 1500)]));
}

/// Reads `file` instead of what the daemon was started with.
fn reload(bench: &Bench, file: &str) -> Result<Reloaded, Vec<Problem>> {
    bench.control.reload(|overlay| {
        let mut problems = Vec::new();
        let file = File::parse(file, "f", &mut problems)?;
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut config = build(&file, overlay, &[], bench.dir.path())?;
        add_overlay(&mut config, overlay, bench.dir.path());
        Ok((config, base(file, Vec::new())))
    })
}

#[test]
fn a_reload_touches_only_what_differs() {
    let bench = bench();
    bench
        .control
        .put("db1", &settings(json!({"mtu": 1400})), &Condition::Always)
        .unwrap();
    let file = "[port.web1]\nmtu = 2000\nvlan = 7\n[port.new]\nmtu = 1600\n[port.other]\n";
    bench.engine.calls();
    let counts = |added, changed, removed| Reloaded {
        added,
        changed,
        removed,
    };
    assert_eq!(reload(&bench, file).unwrap(), counts(2, 1, 0));
    assert_eq!(
        bench.engine.calls(),
        ["change web1", "add new 1600", "add other 1500"]
    );
    assert_eq!(reload(&bench, file).unwrap(), counts(0, 0, 0));
    assert_eq!(bench.engine.calls(), [] as [&str; 0]);
    let file = "[port.web1]\nmtu = 1900\n[port.other]\n[port.db1]\nmtu = 9000\n";
    assert_eq!(reload(&bench, file).unwrap(), counts(0, 1, 1));
    // Those that go make room first, and what the API said of a port stands.
    assert_eq!(
        bench.engine.calls(),
        ["remove new", "remove web1", "add web1 1900"]
    );
    assert_eq!(bench.control.port("web1").unwrap().config.vlan, None);
    assert!(bench.control.port("new").is_err());
    // It is known where a port is named now.
    assert_eq!(
        bench.control.remove("db1", &Condition::Always).unwrap(),
        Removed::ForGood
    );
    assert_eq!(saved(&bench), json!({"db1": null}));
}

#[test]
fn a_reload_that_fails_changes_nothing() {
    let bench = bench();
    let before = "[port.web1]\nmtu = 2000\n[port.a]\n[port.b]\n";
    reload(&bench, before).unwrap();
    let (running, shown) = (bench.engine.ports(), bench.control.ports().len());
    for (file, place) in [
        // `a` goes and `b` changes before it turns out that `z` cannot be made.
        (
            "[port.web1]\nmtu = 2000\n[port.b]\nmtu = 1400\n[port.z]\nmtu = 666\n",
            "port z",
        ),
        ("[port.web1]\nmtu = 666\n[port.a]\n[port.b]\n", "port web1"),
        ("[port.web1]\nmtu = 20\n", "f:2: [port.web1]"),
        ("[port.web1]\nmut = 2000\n", "f:2: [port.web1]"),
        ("[port.web1", "f:1"),
        (
            "[switch.more]\n[port.web1]\nmtu = 666\nswitch = \"more\"\n",
            "port web1",
        ),
    ] {
        let problems = reload(&bench, file).unwrap_err();
        assert_eq!(problems[0].place, place, "{problems:?}");
        assert!(!problems[0].refused.remedy.is_empty());
        assert_eq!(bench.engine.ports(), running, "{file}");
        assert_eq!(bench.control.ports().len(), shown);
    }
    let nothing = Reloaded::default();
    assert_eq!(reload(&bench, before).unwrap(), nothing);
}

#[test]
fn a_reload_that_would_end_a_port_of_the_api_is_refused() {
    let bench = bench();
    let mac = json!({"mac": "52:54:00:00:00:01"});
    bench
        .control
        .put("db1", &settings(mac), &Condition::Always)
        .unwrap();
    let taken = "[port.web1]\nmtu = 2000\nmac = \"52:54:00:00:00:01\"\n";
    let before = bench.engine.ports();
    let problems = reload(&bench, taken).unwrap_err();
    let words = problems[0].to_string();
    assert!(words.contains("port db1, set over the API") && words.contains("web1's already"));
    assert_eq!(bench.engine.ports(), before);
    // One that does not run keeps nothing from being made.
    let bench = restarted(bench, &["line,mac=52:54:00:00:00:01"]);
    let aside = bench.control.port("db1").unwrap();
    assert!(aside.running.reason.unwrap().contains("52:54:00:00:00:01"));
    assert_eq!(
        reload(&bench, "[port.web1]\nmtu = 2000\n").unwrap().added,
        1
    );
    assert_eq!(bench.control.port("db1").unwrap().running.reason, None);
}

#[test]
fn a_reset_port_is_what_file_and_command_line_say() {
    let bench = restarted(bench(), &["line,mtu=1600"]);
    let put = |name: &str, mtu: u16| {
        let settings = settings(json!({"mtu": mtu}));
        bench
            .control
            .put(name, &settings, &Condition::Always)
            .unwrap();
    };
    for (name, mtu) in [("line", 1600), ("web1", 2000)] {
        put(name, 3000);
        let port = bench.control.reset(name, &Condition::Always).unwrap();
        assert_eq!(port.config.mtu, mtu, "{name}");
        assert_ne!(port.origin["mtu"], Origin::Api);
        // What was removed comes back, and what nobody changed stays.
        bench.control.remove(name, &Condition::Always).unwrap();
        bench.control.reset(name, &Condition::Always).unwrap();
        bench.engine.calls();
        bench.control.reset(name, &Condition::Always).unwrap();
        assert_eq!(bench.engine.calls(), Vec::<String>::new());
    }
    put("web9", 3000);
    let refused = bench.control.reset("web9", &Condition::Always).unwrap_err();
    assert_eq!(refused[0].kind, RefusedKind::Conflict);
    let refused = bench
        .control
        .reset("nobody", &Condition::Always)
        .unwrap_err();
    assert_eq!(refused[0].kind, RefusedKind::NotFound);
    let stale = Condition::Is(vec!["\"0\"".to_owned()]);
    let refused = bench.control.reset("web1", &stale).unwrap_err();
    assert_eq!(refused[0].kind, RefusedKind::Stale);
    let bench = restarted(bench, &["line,mtu=1600"]);
    let running = ports(&[("line", 1600), ("web1", 2000), ("web9", 3000)]);
    assert_eq!(bench.engine.ports(), running);
}

#[test]
fn a_profile_gives_what_a_port_does_not_have_itself() {
    let bench = bench();
    let file = |mtu: u16| {
        format!("[profile.big]\nmtu = {mtu}\nvlan = 7\n[port.web1]\nprofile = \"big\"\nvlan = 8\n")
    };
    reload(&bench, &file(4000)).unwrap();
    let web1 = bench.control.port("web1").unwrap();
    assert_eq!((web1.config.mtu, web1.config.vlan), (4000, Some(8)));
    assert_eq!(
        (web1.origin["mtu"], web1.origin["vlan"]),
        (Origin::Profile, Origin::File)
    );
    // Over the API as well, and what is the profile's stays the profile's.
    let names_it = settings(json!({"profile": "big"}));
    bench
        .control
        .put("web9", &names_it, &Condition::Always)
        .unwrap();
    let vlan = settings(json!({"vlan": 9}));
    bench
        .control
        .patch("web9", &vlan, &Condition::Always)
        .unwrap();
    assert_eq!(reload(&bench, &file(5000)).unwrap().changed, 2);
    let web9 = bench.control.port("web9").unwrap();
    assert_eq!((web9.config.mtu, web9.config.vlan), (5000, Some(9)));
    let gone = reload(&bench, "[port.web1]\n").unwrap_err();
    assert!(gone[0].to_string().contains("there is no profile big"));
}

#[test]
fn what_one_port_gives_up_another_may_have_in_the_same_reload() {
    let bench = bench();
    let file = |a: &str, b: &str| format!("[port.a]\n{a}\n[port.b]\n{b}\n");
    let mac = |n: u8| format!("mac = \"52:54:00:00:00:0{n}\"");
    reload(&bench, &file(&mac(1), &mac(2))).unwrap();
    // `a` takes what `b` has until later, then the two change places.
    for (a, b) in [(2, 3), (3, 2)] {
        let reloaded = reload(&bench, &file(&mac(a), &mac(b))).unwrap();
        assert_eq!(
            (reloaded.changed, reloaded.added, reloaded.removed),
            (2, 0, 0)
        );
        assert_eq!(bench.engine.ports(), ports(&[("a", 1500), ("b", 1500)]));
    }
    // Nobody gives this up.
    bench
        .engine
        .macs
        .lock()
        .unwrap()
        .insert("other".to_owned(), "52:54:00:00:00:09".to_owned());
    let before = bench.engine.macs.lock().unwrap().clone();
    let problems = reload(&bench, &file(&mac(9), &mac(3))).unwrap_err();
    assert_eq!(problems[0].refused.kind, RefusedKind::Conflict);
    assert_eq!(*bench.engine.macs.lock().unwrap(), before);
}

#[test]
fn a_port_of_the_command_line_that_was_removed_stays_away_until_the_next_start() {
    let bench = restarted(bench(), &["line"]);
    let removed = bench.control.remove("line", &Condition::Always);
    assert_eq!(removed.unwrap(), Removed::UntilRestart);
    let again = || {
        bench.control.reload(|overlay| {
            let line = [Layer::from_line("line").unwrap()];
            let config = build(&File::default(), overlay, &line, bench.dir.path())?;
            Ok((config, base(File::default(), line.into())))
        })
    };
    again().unwrap();
    assert!(bench.control.port("line").is_err());
    let put = bench.control.put("line", &Map::new(), &Condition::Always);
    assert_eq!(put.unwrap().0, Put::Created);
}

#[test]
fn switches_come_and_go_and_what_was_set_survives() {
    let bench = bench();
    let always = &Condition::Always;
    let set = |name: &str, limit: u32| {
        let settings = settings(json!({"mac_limit": limit}));
        SwitchConfig::put(&bench.control, name, &settings, always)
    };
    set("lab", 100).unwrap();
    set("default", 200).unwrap();
    assert_eq!(
        bench.engine.calls()[1..],
        ["add switch lab", "change switch default"]
    );
    set("lab", 100).unwrap();
    assert_eq!(bench.engine.calls(), Vec::<String>::new());
    let on_lab = settings(json!({"switch": "lab"}));
    bench.control.put("db1", &on_lab, always).unwrap();
    let remove = |name: &str| SwitchConfig::remove(&bench.control, name, always);
    let refused = |result: Result<Removed, Refused>| result.unwrap_err();
    let in_use = refused(remove("lab"));
    assert!(in_use.to_string().contains("has ports: db1"), "{in_use}");
    let default = refused(remove("default"));
    assert_eq!(default.kind, RefusedKind::Conflict);
    let nobody = refused(remove("nobody"));
    assert_eq!(nobody.kind, RefusedKind::NotFound);
    assert_eq!(set("x y", 100).unwrap_err()[0].kind, RefusedKind::Invalid);
    assert_eq!(
        set("x", 1).unwrap_err()[0].field.as_deref(),
        Some("mac_limit")
    );
    // A file that knows nothing of it leaves it alone.
    reload(&bench, "[port.web1]\nmtu = 2000\n").unwrap();
    let bench = restarted(bench, &[]);
    assert_eq!(
        bench.engine.ports(),
        ports(&[("db1", 1500), ("web1", 2000)])
    );
    bench.control.remove("db1", always).unwrap();
    SwitchConfig::remove(&bench.control, "lab", always).unwrap();
    bench.engine.calls();
    // One of the file goes with the file.
    reload(&bench, "[switch.blue]\n[port.web1]\nmtu = 2000\n").unwrap();
    let in_file = SwitchConfig::remove(&bench.control, "blue", always).unwrap_err();
    assert!(in_file.to_string().contains("configuration file"));
    reload(&bench, "[port.web1]\nmtu = 2000\n").unwrap();
    assert_eq!(
        bench.engine.calls(),
        ["add switch blue", "remove switch blue"]
    );
}

#[test]
fn teams_change_whole_or_not_at_all_and_what_was_set_survives() {
    let bench = bench();
    let always = &Condition::Always;
    let put = |bench: &Bench, name: &str, members: &str| {
        let settings = settings(json!({"members": members}));
        TeamConfig::put(&bench.control, name, &settings, always)
    };
    bench.engine.calls();
    put(&bench, "a", "eth0").unwrap();
    put(&bench, "a", "eth0,eth1:tap").unwrap();
    assert_eq!(
        bench.engine.calls(),
        ["add team a", "change team a eth0,eth1:tap"]
    );
    let refused = put(&bench, "a", "eth0,bad").unwrap_err();
    assert_eq!(refused[0].field.as_deref(), Some("members"));
    put(&bench, "b", "bad").unwrap_err();
    let members = |bench: &Bench| -> Vec<String> {
        let all = TeamConfig::list(&bench.control).into_iter();
        all.map(|team| format!("{} {}", team.running.name, team.config.members.len()))
            .collect()
    };
    assert_eq!(members(&bench), ["a 2"]);
    // What cannot be saved is taken back.
    let state = bench.dir.path().join("state");
    let saved = fs::read(state.join("ports.json")).unwrap();
    fs::remove_dir_all(&state).unwrap();
    bench.engine.calls();
    put(&bench, "a", "eth2").unwrap_err();
    put(&bench, "b", "eth3").unwrap_err();
    TeamConfig::remove(&bench.control, "a", always).unwrap_err();
    assert_eq!(
        bench.engine.calls(),
        [
            "change team a eth2",
            "change team a eth0,eth1:tap",
            "add team b",
            "remove team b",
            "remove team a",
            "add team a"
        ]
    );
    assert_eq!(members(&bench), ["a 2"]);
    fs::create_dir(&state).unwrap();
    fs::write(state.join("ports.json"), saved).unwrap();
    let bench = restarted(bench, &[]);
    assert_eq!(members(&bench), ["a 2"]);
}

/// A file with the teams `a` and `b`, and the uplink of the switch.
fn team_file(a: &str, b: &str, uplink: &str) -> String {
    let team = |name: &str, members: &str| match members {
        "" => String::new(),
        members => format!("[team.{name}]\nmembers = \"{members}\"\n"),
    };
    let uplink = match uplink {
        "" => String::new(),
        uplink => format!("[switch.default]\nuplink = \"{uplink}\"\n"),
    };
    team("a", a) + &team("b", b) + &uplink + "[port.web1]\nmtu = 2000\n"
}

#[test]
fn a_reload_lets_go_of_uplinks_before_others_take_them() {
    let bench = bench();
    reload(&bench, &team_file("eth0,eth1", "eth2", "a")).unwrap();
    assert_eq!(
        bench.engine.calls()[1..],
        ["add team a", "add team b", "change switch default"]
    );
    for (file, calls) in [
        // What nobody else wants is not let go for it.
        (
            team_file("eth1,eth3", "eth2", "a"),
            &["change team a eth1,eth3"][..],
        ),
        (
            team_file("eth2", "eth1,eth3", "a"),
            &[
                "change team a ",
                "change team b ",
                "change team a eth2",
                "change team b eth1,eth3",
            ],
        ),
        (
            team_file("", "eth1,eth2", "eth3"),
            &[
                "change switch default",
                "remove team a",
                "change team b eth1",
                "change team b eth1,eth2",
                "change switch default",
            ],
        ),
    ] {
        reload(&bench, &file).unwrap();
        assert_eq!(bench.engine.calls(), calls, "{file}");
    }
}

#[test]
fn a_reload_that_fails_leaves_teams_and_uplinks() {
    let bench = bench();
    reload(&bench, &team_file("eth0", "eth1", "a")).unwrap();
    let before = bench.engine.devices.lock().unwrap().clone();
    let shown = || {
        let teams = TeamConfig::list(&bench.control);
        let switches = SwitchConfig::list(&bench.control);
        serde_json::to_string(&(teams, switches)).unwrap()
    };
    let all = shown();
    for (file, place) in [
        (team_file("eth1", "bad", "b"), "team b"),
        (
            team_file("", "eth0", "b").replace("2000", "666"),
            "port web1",
        ),
        (team_file("", "eth1", "a"), "switch default"),
    ] {
        let problems = reload(&bench, &file).unwrap_err();
        assert_eq!(problems[0].place, place, "{problems:?}");
        assert_eq!(*bench.engine.devices.lock().unwrap(), before, "{file}");
        assert_eq!(shown(), all);
    }
}
