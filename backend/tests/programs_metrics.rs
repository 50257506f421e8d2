//! `/metrics`, as Prometheus reads it.

mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use programs::{Daemon, connect};

/// What the daemon answers on a stream: status line and head, and body.
fn get(mut stream: impl Read + Write, path: &str) -> (String, String) {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

/// A sample: its name with labels, and its value.
fn sample(line: &str) -> (&str, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    (series, value.parse().unwrap())
}

/// The format's rules as far as they concern us: every sample belongs to the family above it, whose
/// type and help come first and once, and no series comes twice.
fn families(text: &str) -> BTreeMap<&str, &str> {
    let (mut families, mut series) = (BTreeMap::new(), BTreeSet::new());
    let (mut helped, mut family) = ("", "");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').unwrap().0;
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped);
            assert_eq!(families.insert(name, kind), None, "{name} comes twice");
            family = name;
        } else {
            let (name, _) = sample(line);
            assert_eq!(name.split('{').next(), Some(family), "{line}");
            assert!(series.insert(name), "{name} comes twice");
        }
    }
    families
}

#[test]
fn every_metric_is_documented_and_the_other_way_round() {
    let daemon = Daemon::start(&["--port", "web1,queue_pairs=2", "--port", "odd.name-1_x"]);
    let (head, text) = get(connect(&daemon.api()), "/metrics");
    assert!(
        head.contains("200 ok") && head.contains("text/plain; version=0.0.4"),
        "{head}"
    );
    let families = families(&text);
    for (name, kind) in &families {
        assert_eq!(
            name.ends_with("_total"),
            *kind == "counter",
            "{name} is a {kind}"
        );
    }
    let docs = include_str!("../../docs/metrics.md");
    let documented: BTreeSet<&str> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(documented, families.keys().copied().collect());
    let samples: BTreeMap<&str, f64> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(sample)
        .collect();
    let labels = r#"port="web1",vm="web1",switch="default""#;
    assert_eq!(samples[format!("tandem_port_up{{{labels}}}").as_str()], 0.0);
    assert_eq!(samples[r#"tandem_switch_ports{switch="default"}"#], 2.0);
    let kicks = format!(r#"tandem_queue_kicks_total{{{labels},pair="1"}}"#);
    assert_eq!(samples[kicks.as_str()], 0.0);
}

#[test]
fn an_address_that_others_reach_serves_the_metrics_only() {
    let daemon = Daemon::start(&["--metrics-listen", "127.0.0.1:0", "--port", "web1"]);
    let log = daemon.log();
    let (_, said) = log.split_once("metrics on http://").unwrap();
    let (address, _) = said.split_once("/metrics").unwrap();
    let tcp = || TcpStream::connect(address).unwrap();
    let (head, text) = get(tcp(), "/metrics");
    assert!(head.contains("200 ok"), "{head}");
    assert!(families(&text).contains_key("tandem_port_up"));
    for path in ["/", "/api/v1/status", "/api/v1/ports/web1"] {
        assert!(get(tcp(), path).0.contains("404"), "{path}");
    }
    // An idle scraper does not hold up the end.
    let idle = tcp();
    daemon.stop();
    drop(idle);
}

#[test]
fn an_address_that_is_taken_is_refused_with_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = ["--metrics-listen", address.as_str(), "--port", "web1"];
    let mut daemon = Daemon::begin(tempfile::tempdir().unwrap(), &args, |_| {});
    assert_eq!(daemon.end_of_itself(), Some(1));
    let log = daemon.log();
    for word in ["--metrics-listen", address.as_str(), "port that is free"] {
        assert!(log.contains(word), "no {word:?} in: {log}");
    }
}
