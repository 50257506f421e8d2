//! The API of a running daemon, spoken by hand.

mod programs;

use std::fs;
use std::io::{Read, Write};
use std::thread;

use programs::{Answer, Daemon, config, connect};
use serde_json::{Value, json};

fn names(daemon: &Daemon) -> Vec<String> {
    let list = daemon.http("GET", "/api/v1/ports", "").json;
    list["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap().into())
        .collect()
}

#[test]
fn a_port_is_made_shown_changed_and_removed() {
    let daemon = Daemon::start(&[]);
    let body = r#"{"mtu": 9000, "mac": "52:54:00:00:00:01", "trunk_vlans": "20-29,10"}"#;
    let made = daemon.http("PUT", "/api/v1/ports/web1", body);
    assert_eq!(made.status, 201, "{made:?}");
    assert!(daemon.path("run/web1.sock").exists());

    let shown = daemon.http("GET", "/api/v1/ports/web1", "");
    assert_eq!(shown.status, 200);
    assert!(
        shown.head.contains("content-type: application/json"),
        "{}",
        shown.head
    );
    let port = &shown.json;
    assert_eq!(port["name"], "web1");
    assert_eq!(port["mtu"], 9000);
    assert_eq!(port["trunk_vlans"], "10,20-29");
    assert_eq!(
        port["socket"],
        daemon.path("run/web1.sock").to_str().unwrap()
    );
    assert_eq!(port["state"], "down");
    assert!(
        port["reason"]
            .as_str()
            .unwrap()
            .contains("no VMM is connected"),
        "{port}"
    );
    assert_eq!(port["origin"]["mtu"], "api");
    assert_eq!(port["session"]["connects"], 0);

    let changed = daemon.http("PUT", "/api/v1/ports/web1", r#"{"mtu": 1400}"#);
    assert_eq!((changed.status, &changed.json["mtu"]), (200, &json!(1400)));
    assert_eq!(changed.json["mac"], Value::Null);

    let removed = daemon.http("DELETE", "/api/v1/ports/web1", "");
    assert_eq!(removed.status, 204);
    assert!(!daemon.path("run/web1.sock").exists());
    assert_eq!(daemon.http("GET", "/api/v1/ports/web1", "").status, 404);
    assert_eq!(names(&daemon), Vec::<String>::new());
}

/// The whole shape of the objects, so that a change of it is a decision.
#[test]
fn the_objects_have_the_members_that_were_agreed_on() {
    fn keys(value: &Value) -> Vec<&str> {
        value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect()
    }
    let daemon = Daemon::start(&["--port", "web1,queue_pairs=2"]);
    let port = daemon.http("GET", "/api/v1/ports/web1", "").json;
    let mut expected = vec![
        "name",
        "vm",
        "switch",
        "socket",
        "socket_role",
        "tap",
        "mac",
        "learned_macs",
        "addresses",
        "captures",
        "queue_pairs",
        "mtu",
        "feature_level",
        "failover",
        "vlan",
        "trunk_vlans",
        "uplink_member",
        "native_vlan",
        "state",
        "reason",
        "origin",
        "profile",
        "session",
        "counters",
        "queues",
        "socket_group",
        "socket_permissions",
        "storm_limit",
    ];
    expected.sort_unstable();
    assert_eq!(keys(&port), expected);
    let direction = json!({"frames": 0, "bytes": 0, "drops": {}});
    assert_eq!(
        port["counters"],
        json!({"from_vm": direction, "to_vm": direction})
    );
    let traffic = json!({"frames": 0, "bytes": 0});
    let queue = json!({"pair": 1, "enabled": false, "running": false, "size": 0,
        "from_vm": traffic, "to_vm": traffic, "kicks": 0, "calls": 0});
    assert_eq!(port["queues"][1], queue);
    let session = [
        "connected",
        "connects",
        "features",
        "last_error",
        "memory_regions",
        "refused_connections",
        "ring",
    ];
    assert_eq!(keys(&port["session"]), session);
    let status = daemon.http("GET", "/api/v1/status", "").json;
    let members = [
        "cpus",
        "ports",
        "run_dir",
        "switches",
        "uptime_seconds",
        "version",
        "vms",
    ];
    assert_eq!(keys(&status), members);
    assert_eq!(status["ports"], json!({"total": 1, "up": 0}));
    assert_eq!(status["vms"], 1);
    let switch = [
        "counters",
        "duplicate_macs",
        "mac_table_entries",
        "name",
        "ports",
        "uplink_status",
    ];
    assert_eq!(keys(&status["switches"][0]), switch);
    let counters = [
        "announced",
        "copies",
        "flooded",
        "frames",
        "segmented_frames",
        "segments",
        "unicast",
    ];
    assert_eq!(keys(&status["switches"][0]["counters"]), counters);
}

/// A request, the status, the field, and words of the answer.
type Wrong = (
    &'static str,
    &'static str,
    &'static str,
    u16,
    Option<&'static str>,
    &'static [&'static str],
);

const WRONG: &[Wrong] = &[
    (
        "GET",
        "/",
        "",
        404,
        None,
        &["no such path", "/api/v1/ports"],
    ),
    ("GET", "/api/v1/port", "", 404, None, &["no such path"]),
    ("GET", "/api/v2/ports", "", 404, None, &["no such path"]),
    (
        "POST",
        "/api/v1/ports",
        "{}",
        405,
        None,
        &["cannot be done", "openapi.json"],
    ),
    (
        "DELETE",
        "/api/v1/ports",
        "",
        405,
        None,
        &["cannot be done"],
    ),
    (
        "POST",
        "/api/v1/ports/web1",
        "{}",
        405,
        None,
        &["cannot be done"],
    ),
    (
        "PUT",
        "/api/v1/status",
        "{}",
        405,
        None,
        &["cannot be done", "openapi.json"],
    ),
    (
        "GET",
        "/api/v1/ports/nope",
        "",
        404,
        Some("name"),
        &["no port nope", "port list"],
    ),
    (
        "DELETE",
        "/api/v1/ports/nope",
        "",
        404,
        Some("name"),
        &["no port nope"],
    ),
    (
        "GET",
        "/api/v1/ports/a%20b",
        "",
        404,
        Some("name"),
        &["no port a b"],
    ),
    (
        "PUT",
        "/api/v1/ports/a%20b",
        "{}",
        400,
        Some("name"),
        &["' '", "letters, digits"],
    ),
    (
        "PUT",
        "/api/v1/ports/%2e%2e%2fx",
        "{}",
        400,
        Some("name"),
        &["'/'"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        "{",
        400,
        None,
        &["not a JSON object", "such as"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        "[]",
        400,
        None,
        &["not a JSON object"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        "7",
        400,
        None,
        &["not a JSON object"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"mut": 1}"#,
        400,
        Some("mut"),
        &["no such key", "mtu?"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"mtu": 1}"#,
        400,
        Some("mtu"),
        &["too small", "68 to 65535"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"mtu": "big"}"#,
        400,
        Some("mtu"),
        &["not a number"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"mtu": {}}"#,
        400,
        Some("mtu"),
        &["a table is not a number"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"mtu": 1e400}"#,
        400,
        None,
        &["not a JSON object"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"vlan": 0}"#,
        400,
        Some("vlan"),
        &["0 is no VLAN"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"switch": "b"}"#,
        400,
        Some("switch"),
        &["no switch b"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"socket": "web1.sock"}"#,
        409,
        Some("socket"),
        &["web1's already"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"socket": "api.sock"}"#,
        400,
        Some("socket"),
        &["the API's"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"mac": "52:54:00:00:00:01"}"#,
        409,
        Some("mac"),
        &["web1's"],
    ),
    (
        "PUT",
        "/api/v1/ports/x",
        r#"{"native_vlan": 3}"#,
        400,
        Some("native_vlan"),
        &["trunk"],
    ),
];

#[test]
fn wrong_requests_are_answered_with_field_reason_and_remedy() {
    let daemon = Daemon::start(&["--port", "web1,mac=52:54:00:00:00:01"]);
    for (method, path, body, status, field, words) in WRONG {
        let answer = daemon.http(method, path, body);
        let what = format!("{method} {path} {body}: {answer:?}");
        assert_eq!(answer.status, *status, "{what}");
        assert!(
            answer
                .head
                .contains("content-type: application/problem+json"),
            "{what}"
        );
        assert_eq!(answer.json["status"], *status, "{what}");
        assert_eq!(answer.json["type"], "about:blank", "{what}");
        assert_eq!(answer.json["field"].as_str(), *field, "{what}");
        assert!(
            !answer.json["remedy"].as_str().unwrap().is_empty(),
            "{what}"
        );
        for word in *words {
            assert!(
                answer.json.to_string().contains(word),
                "no {word:?} in {what}"
            );
        }
    }
    assert_eq!(names(&daemon), ["web1"]);
}

#[test]
fn all_wrong_fields_are_named_at_once() {
    let daemon = Daemon::start(&[]);
    let body = r#"{"mtu": 1, "vlan": 9999, "queue_pairs": 0}"#;
    let answer = daemon.http("PUT", "/api/v1/ports/x", body);
    let mut fields: Vec<&str> = answer.json["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["field"].as_str().unwrap())
        .collect();
    fields.sort_unstable();
    assert_eq!(fields, ["mtu", "queue_pairs", "vlan"]);
}

#[test]
fn a_port_is_not_replaced_by_one_who_wants_a_new_one() {
    let daemon = Daemon::start(&["--port", "web1"]);
    let put = |name| {
        let path = format!("/api/v1/ports/{name}");
        daemon.http_with("PUT", &path, "If-None-Match: *\r\n", r#"{"mtu": 1400}"#)
    };
    let answer = put("web1");
    assert_eq!(
        (answer.status, answer.json["field"].as_str()),
        (412, Some("name"))
    );
    assert_eq!(
        daemon.http("GET", "/api/v1/ports/web1", "").json["mtu"],
        1500
    );
    assert_eq!(put("db1").status, 201);
}

#[test]
fn a_change_that_fails_leaves_the_port_as_it_was() {
    let daemon = Daemon::start(&["--port", "web1"]);
    let answer = daemon.http(
        "PUT",
        "/api/v1/ports/web1",
        r#"{"socket": "missing/x.sock"}"#,
    );
    assert!(answer.status >= 400, "{answer:?}");
    assert!(daemon.path("run/web1.sock").exists());
    assert!(!daemon.path("run/missing").exists());
    let port = daemon.http("GET", "/api/v1/ports/web1", "").json;
    assert_eq!(
        port["socket"],
        daemon.path("run/web1.sock").to_str().unwrap()
    );
    assert!(!daemon.path("state/ports.json").exists(), "it was saved");
}

#[test]
fn what_was_set_survives_a_crash_at_once() {
    let (_keep, file) = config("[port.web1]\nmtu = 2000\n[port.db1]\n");
    let args = ["--config", file.as_str(), "--port", "line"];
    let daemon = Daemon::start(&args);
    daemon.http("PUT", "/api/v1/ports/new", r#"{"mtu": 1400}"#);
    daemon.http("PUT", "/api/v1/ports/web1", r#"{"vlan": 7}"#);
    daemon.http("DELETE", "/api/v1/ports/db1", "");
    daemon.http("DELETE", "/api/v1/ports/line", "");
    let daemon = Daemon::start_in(daemon.crash(), &args);
    assert_eq!(names(&daemon), ["line", "new", "web1"]);
    let get = |name: &str| {
        daemon
            .http("GET", &format!("/api/v1/ports/{name}"), "")
            .json
    };
    assert_eq!(get("new")["mtu"], 1400);
    assert_eq!(get("new")["origin"]["mtu"], "api");
    assert_eq!(
        (&get("web1")["vlan"], &get("web1")["mtu"]),
        (&json!(7), &json!(1500))
    );
}

#[test]
fn changes_at_the_same_time_come_one_after_the_other() {
    let daemon = Daemon::start(&[]);
    let mac = r#"{"mac": "52:54:00:00:00:01"}"#;
    let answers: Vec<u16> = thread::scope(|scope| {
        let put = |i: usize| {
            let daemon = &daemon;
            scope.spawn(move || {
                let own = daemon.http("PUT", &format!("/api/v1/ports/own{i}"), "{}");
                assert_eq!(own.status, 201, "{own:?}");
                daemon
                    .http("PUT", &format!("/api/v1/ports/same{i}"), mac)
                    .status
            })
        };
        let threads: Vec<_> = (0..8).map(put).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(
        answers.iter().filter(|status| **status == 201).count(),
        1,
        "{answers:?}"
    );
    assert_eq!(
        answers.iter().filter(|status| **status == 409).count(),
        7,
        "{answers:?}"
    );
    assert_eq!(names(&daemon).len(), 9);
    let saved = fs::read(daemon.path("state/ports.json")).unwrap();
    let saved: Value = serde_json::from_slice(&saved).unwrap();
    assert_eq!(saved["ports"].as_object().unwrap().len(), 9);
}

#[test]
fn requests_are_bounded() {
    let daemon = Daemon::start(&[]);
    let huge = format!(r#"{{"vm": "{}"}}"#, "x".repeat(70_000));
    let answer = daemon.http("PUT", "/api/v1/ports/x", &huge);
    assert_eq!(answer.status, 413, "{answer:?}");

    // A head without an end.
    let mut stream = connect(&daemon.api());
    let mut answer = String::new();
    let line = format!("GET / HTTP/1.1\r\nX: {}\r\n", "x".repeat(4096));
    while stream.write_all(line.as_bytes()).is_ok() {}
    let _ = stream.read_to_string(&mut answer);
    assert_eq!(names(&daemon), Vec::<String>::new());
}

#[test]
fn a_connection_carries_many_requests_and_rubbish_ends_it() {
    let daemon = Daemon::start(&[]);
    let mut stream = connect(&daemon.api());
    for _ in 0..3 {
        stream
            .write_all(b"GET /api/v1/ports HTTP/1.1\r\nHost: t\r\n\r\n")
            .unwrap();
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        assert_eq!(
            Answer::of(std::str::from_utf8(&buffer[..length]).unwrap()).status,
            200
        );
    }
    stream.write_all(b"\0\xff\r\n\r\n").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.is_empty() || rest.contains(" 400 "), "{rest}");
    assert_eq!(daemon.http("GET", "/api/v1/status", "").status, 200);
}

#[test]
fn more_connections_than_are_served_wait_for_their_turn() {
    let daemon = Daemon::start(&[]);
    let idle: Vec<_> = (0..100).map(|_| connect(&daemon.api())).collect();
    drop(idle);
    assert_eq!(daemon.http("GET", "/api/v1/status", "").status, 200);
}

#[test]
fn a_group_that_is_not_there_is_the_askers_mistake() {
    let daemon = Daemon::start(&[]);
    let body = r#"{"socket_group": "no-such-group"}"#;
    let answer = daemon.http("PUT", "/api/v1/ports/web1", body);
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(answer.json["field"], "socket_group");
    let body = r#"{"socket": "no/such/dir.sock"}"#;
    let answer = daemon.http("PUT", "/api/v1/ports/web1", body);
    assert_eq!(
        (answer.status, &answer.json["field"]),
        (400, &json!("socket"))
    );
}

#[test]
fn words_of_libraries_are_not_for_users() {
    let daemon = Daemon::start(&[]);
    for body in ["[]", "7", "\"x\"", "null"] {
        let answer = daemon.http("PUT", "/api/v1/ports/x", body);
        let detail = answer.json["detail"].as_str().unwrap();
        assert_eq!(
            (answer.status, detail),
            (400, "the body is JSON, but not a JSON object")
        );
    }
}

/// The entity tag in an answer's head.
fn tag(answer: &programs::Answer) -> String {
    let line = answer.head.lines().find_map(|l| l.strip_prefix("etag: "));
    line.expect("no tag").to_owned()
}

#[test]
fn a_change_of_what_was_changed_meanwhile_is_refused() {
    let daemon = Daemon::start(&["--port", "line"]);
    let path = "/api/v1/ports/web1";
    let put = |condition: &str, body: &str| {
        daemon.http_with("PUT", path, &format!("{condition}\r\n"), body)
    };
    assert_eq!(put("If-Match: *", "{}").status, 412);
    let first = put("If-None-Match: *", r#"{"mtu": 1400}"#);
    assert_eq!(first.status, 201);
    assert!(!first.head.contains("etag:"), "{}", first.head);
    let now = || tag(&daemon.http("GET", path, ""));
    let seen = now();
    let mine = format!("If-Match: \"0\", {seen}");
    let second = put(&mine, r#"{"mtu": 1300}"#);
    assert_eq!(second.status, 200);
    assert_ne!(now(), seen);
    for (method, body) in [("PUT", r#"{"mtu": 1200}"#), ("DELETE", "")] {
        let stale = daemon.http_with(method, path, &format!("{mine}\r\n"), body);
        assert_eq!(stale.status, 412, "{stale:?}");
        assert_eq!(stale.json["field"], "name");
        assert!(
            stale.json["remedy"]
                .as_str()
                .unwrap()
                .contains("read it again")
        );
    }
    assert_eq!(daemon.http("GET", path, "").json["mtu"], 1300);
    for wrong in ["If-None-Match: \"1\"", "If-None-Match: *\r\nIf-Match: *"] {
        assert_eq!(put(wrong, "{}").status, 400, "{wrong}");
    }
    // The same settings again have the same tag.
    assert_eq!(
        (put("If-Match: *", r#"{"mtu": 1400}"#).status, now()),
        (200, seen.clone())
    );
    let mine = format!("If-Match: {seen}\r\n");
    assert_eq!(daemon.http_with("DELETE", path, &mine, "").status, 204);
    assert_eq!(put("If-Match: *", "{}").status, 412);
}

#[test]
fn writers_that_say_what_they_saw_lose_no_update() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 50;
    let daemon = Daemon::start(&[]);
    let path = "/api/v1/ports/web1";
    daemon.http("PUT", path, r#"{"storm_limit": 1}"#);
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                let mut done = 0;
                while done < EACH {
                    let seen = daemon.http("GET", path, "");
                    let limit = seen.json["storm_limit"].as_u64().unwrap() + 1;
                    let condition = format!("If-Match: {}\r\n", tag(&seen));
                    let body = format!(r#"{{"storm_limit": {limit}}}"#);
                    match daemon.http_with("PUT", path, &condition, &body).status {
                        200 => done += 1,
                        412 => {}
                        other => panic!("{other}"),
                    }
                }
            });
        }
    });
    let limit = &daemon.http("GET", path, "").json["storm_limit"];
    assert_eq!(*limit, 1 + WRITERS * EACH);
}

/// Each key as JSON, as `keys.rs` has them; those that contradict each other are in different ports.
const EVERY_KEY: [&str; 3] = [
    r#"{"vm": "v", "switch": "s2", "socket": "x.sock", "socket_permissions": "0600", "queue_pairs": 3,
        "mtu": 9000, "feature_level": 1, "failover": true, "mac": "52:54:00:00:00:01", "vlan": 7,
        "storm_limit": 5}"#,
    r#"{"trunk_vlans": "1,5-9", "native_vlan": 5}"#,
    r#"{"socket_role": "connect", "socket": "/nonexistent/x.sock"}"#,
];

#[test]
fn a_patch_changes_what_it_names_and_nothing_else() {
    let (_keep, file) = config("[switch.s2]\n");
    let daemon = Daemon::start(&["--config", &file]);
    let path = "/api/v1/ports/web1";
    let shown = |answer: &programs::Answer| {
        let mut port = answer.json.clone();
        for volatile in ["state", "reason", "session", "counters", "queues"] {
            port.as_object_mut().unwrap().remove(volatile);
        }
        port
    };
    for settings in EVERY_KEY {
        let put = daemon.http("PUT", path, settings);
        assert!(put.status < 300, "{put:?}");
        let before = daemon.http("GET", path, "");
        let (limit, origin) = (&before.json["storm_limit"], &before.json["origin"]);
        let mut expected = shown(&before);
        let patched = daemon.http("PATCH", path, r#"{"storm_limit": 77}"#);
        assert_eq!(patched.status, 200, "{patched:?}");
        (expected["storm_limit"], expected["origin"]["storm_limit"]) = (json!(77), json!("api"));
        assert_eq!(shown(&patched), expected);
        let back = match origin["storm_limit"].as_str() {
            Some("default") => json!({"storm_limit": null}),
            _ => json!({"storm_limit": limit}),
        };
        let back = daemon.http("PATCH", path, &back.to_string());
        assert_eq!(shown(&back), shown(&before));
        assert_eq!(tag(&back), tag(&before));
    }
    // As with PUT: whole or not at all.
    let before = daemon.http("GET", path, "");
    for (body, field) in [
        (r#"{"mtu": 9000, "vlan": 0}"#, "vlan"),
        (r#"{"mtu": 9000, "mut": null}"#, "mut"),
        (r#"{"switch": "s3"}"#, "switch"),
    ] {
        let wrong = daemon.http("PATCH", path, body);
        assert!(
            wrong.status >= 400 && wrong.json["field"] == field,
            "{wrong:?}"
        );
        assert_eq!(tag(&daemon.http("GET", path, "")), tag(&before));
    }
    assert_eq!(daemon.http("PATCH", "/api/v1/ports/none", "{}").status, 404);
    let stale = daemon.http_with("PATCH", path, "If-Match: \"1\"\r\n", r#"{"mtu": 9000}"#);
    assert_eq!(stale.status, 412);
}

/// What file and command line say of a port becomes the API's word, too.
#[test]
fn a_patch_keeps_what_the_file_says() {
    let (_keep, file) = config("[port.web1]\nmtu = 2000\nvlan = 7\n");
    let args = ["--config", file.as_str()];
    let daemon = Daemon::start(&args);
    let path = "/api/v1/ports/web1";
    assert_eq!(daemon.http("PATCH", path, r#"{"vlan": 8}"#).status, 200);
    let daemon = Daemon::start_in(daemon.crash(), &args);
    let port = daemon.http("GET", path, "").json;
    assert_eq!((&port["mtu"], &port["vlan"]), (&json!(2000), &json!(8)));
}
