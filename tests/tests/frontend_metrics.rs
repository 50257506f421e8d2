//! `/metrics` as Prometheus' own parser reads it, and the dashboard that is made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tandem_tests::frontend::driver::Config;
use tandem_tests::frontend::frames::{BROADCAST, mac, number_of, numbered};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::lab::{find_program, image::source_root, skip};

/// What a switch says that has carried frames and dropped some, in both directions.
fn metrics() -> Result<String> {
    let rig = Rig::new(&["a", "b,mac=52:54:00:00:00:02,queue_pairs=2", "quiet"])?;
    let mut a = rig.nic("a", &Config::default())?;
    let mut b = rig.nic("b", &Config::default())?;
    a.send_plain(&numbered(mac(1), BROADCAST, 1));
    assert_eq!(number_of(&b.recv().1), 1);
    // To itself: dropped.
    a.send_plain(&numbered(mac(1), mac(1), 2));
    // To one that is gone: dropped, too.
    drop(b);
    rig.wait_disconnected("b")?;
    a.send_plain(&numbered(mac(1), mac(2), 3));
    a.flush();
    rig.settled()?;
    // A device that no host has, so that there is a member.
    (rig.daemon).cli(&["switch", "set", "default", "--uplink", "no-such-wire"])?;
    let mut stream = UnixStream::connect(rig.daemon.run_dir().join("api.sock"))?;
    let request = "GET /metrics HTTP/1.1\r\nHost: tandem\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, text) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    for direction in ["from_vm", "to_vm"] {
        let drop = format!("direction=\"{direction}\",reason=");
        ensure!(text.contains(&drop), "no {drop} in: {text}");
    }
    Ok(text.to_string())
}

/// The labels of each metric that has samples.
fn labels_by_metric(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let mut all = BTreeMap::<_, BTreeSet<&str>>::new();
    for sample in samples {
        let end = sample.find(['{', ' ']).unwrap_or(sample.len());
        let (name, rest) = sample.split_at(end);
        all.entry(name).or_default().extend(label_names(rest));
    }
    all
}

/// The metrics of the table in docs/metrics.md, and their labels.
fn documented_labels(text: &str) -> impl Iterator<Item = (&str, BTreeSet<&str>)> {
    text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let metric = cells.next()?.trim_end_matches('`');
        let labels = cells.next()?.split(',').map(str::trim);
        Some((metric, labels.filter(|label| !label.is_empty()).collect()))
    })
}

/// The names before `=`, `!=`, `=~` and `!~` in the braces that `text` starts with, if it does.
fn label_names(text: &str) -> Vec<&str> {
    let Some(inside) = text.strip_prefix('{') else {
        return vec![];
    };
    let inside = inside.split('}').next().unwrap_or_default();
    // No label value here has a comma.
    let names = inside
        .split(',')
        .filter_map(|one| one.split(['=', '!']).next());
    names
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect()
}

/// What a query asks for: metrics with the labels that select, and the labels it groups by.
#[derive(Debug, Default)]
struct Query<'a> {
    metrics: Vec<(&'a str, Vec<&'a str>)>,
    groups: Vec<&'a str>,
}

impl<'a> Query<'a> {
    fn of(text: &'a str) -> Self {
        let mut query = Self::default();
        let mut rest = text;
        while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
            rest = &rest[start..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            rest = after;
            if word.starts_with("tandem_") {
                query.metrics.push((word, label_names(rest)));
                rest = rest.split_once('}').map_or(rest, |(_, behind)| behind);
            } else if word == "by" {
                let list = rest.split_once(')').unwrap_or_default().0;
                let names = list.trim_start_matches([' ', '(']).split(',');
                query.groups.extend(names.map(str::trim));
            } else if word == "label_values" {
                let named = text.trim_end_matches(')').rsplit(", ").next();
                query.groups.extend(named);
            }
        }
        query
    }

    /// Fails for a metric, or a label of one, that does not exist.
    fn check(&self, known: &BTreeMap<&str, BTreeSet<&str>>, text: &str) -> Result<()> {
        ensure!(!self.metrics.is_empty(), "nothing of ours in {text}");
        for (metric, labels) in &self.metrics {
            let has = known.get(metric);
            let has = has.with_context(|| format!("there is no metric {metric}: {text}"))?;
            for label in labels.iter().chain(&self.groups) {
                // Which host it is, Prometheus adds.
                let exists = has.contains(label) || *label == "instance";
                ensure!(exists, "{metric} has no label {label}: {text}");
            }
        }
        Ok(())
    }
}

/// The strings of all members `name` in a document.
fn strings<'a>(document: &'a Value, name: &str, found: &mut Vec<&'a str>) {
    match document {
        Value::Object(members) => members.iter().for_each(|(key, value)| match value {
            Value::String(text) if key == name => found.push(text),
            other => strings(other, name, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| strings(item, name, found)),
        _ => {}
    }
}

/// The legend's labels must be what the query groups by: nothing else is left of the series.
fn check_legends(panel: &Value) -> Result<()> {
    for target in panel["targets"].as_array().into_iter().flatten() {
        let text = target["expr"].as_str().context("no expr")?;
        let query = Query::of(text);
        let legend = target["legendFormat"].as_str().unwrap_or_default();
        let labels = legend.split("{{").skip(1);
        for label in labels.filter_map(|rest| rest.split("}}").next()) {
            ensure!(query.groups.contains(&label), "no {label} in {text}");
        }
    }
    Ok(())
}

fn dashboard() -> Result<Value> {
    let text = std::fs::read_to_string(source_root().join("docs/grafana.json"))?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn the_dashboard_asks_for_what_there_is() -> Result<()> {
    let (text, dashboard) = (metrics()?, dashboard()?);
    let mut known = labels_by_metric(&text);
    let documented = std::fs::read_to_string(source_root().join("docs/metrics.md"))?;
    for (metric, labels) in documented_labels(&documented) {
        // Of an uplink that has a wire, which it takes root to make.
        if metric.starts_with("tandem_uplink_") || metric.starts_with("tandem_member_") {
            let has = known.entry(metric).or_default();
            ensure!(
                has.is_subset(&labels),
                "{metric} has other labels than {labels:?}: {has:?}"
            );
            has.extend(labels);
        }
    }
    let mut queries = vec![];
    for name in ["expr", "query", "definition"] {
        strings(&dashboard, name, &mut queries);
    }
    queries.retain(|text| *text != "prometheus");
    ensure!(queries.len() > 30, "few queries: {queries:?}");
    for query in queries {
        Query::of(query).check(&known, query)?;
    }
    let panels = dashboard["panels"].as_array().context("no panels")?;
    panels.iter().try_for_each(check_legends)
}

#[test]
fn a_query_that_asks_for_more_is_found() {
    let text = "tandem_port_up{port=\"a\",vm=\"a\"} 1\n";
    let known = labels_by_metric(text);
    let check = |text: &str| Query::of(text).check(&known, text);
    check("sum by (vm) (tandem_port_up{port=~\"$port\",instance=\"x\"} > 0)").unwrap();
    check("label_values(tandem_port_up{vm=~\"$vm\"}, port)").unwrap();
    for wrong in [
        "tandem_port_upp",
        "tandem_port_up{prot=\"a\"}",
        "sum by (switch) (tandem_port_up)",
        "label_values(tandem_port_up, switch)",
        "up",
    ] {
        check(wrong).unwrap_err();
    }
}

/// Runs `promtool check` on a text.
fn promtool(what: &[&str], text: &str) -> Result<()> {
    let program = find_program("promtool").context("no promtool")?;
    let mut child = Command::new(program)
        .arg("check")
        .args(what)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    input.write_all(text.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "{said}");
    Ok(())
}

/// Queries as a file of rules, which promtool can check; the dashboard's variables filled in.
fn rules(dashboard: &Value) -> String {
    let mut queries = vec![];
    strings(dashboard, "expr", &mut queries);
    let rules = queries.iter().enumerate().map(|(number, query)| {
        let query = query.replace("$__rate_interval", "5m").replace('$', "");
        let query = serde_json::to_string(&query).unwrap_or_default();
        format!("  - record: query_{number}\n    expr: {query}\n")
    });
    "groups:\n- name: dashboard\n  rules:\n".to_string() + &rules.collect::<String>()
}

#[test]
fn prometheus_itself_takes_metrics_and_queries() -> Result<()> {
    if find_program("promtool").is_none() {
        skip(
            "prometheus_itself_takes_metrics_and_queries",
            "promtool is not installed (package prometheus); run ci/setup",
        );
        return Ok(());
    }
    let text = self::metrics()?;
    let (metrics, queries) = (&["metrics"], &["rules", "/dev/stdin"]);
    promtool(metrics, &text)?;
    promtool(metrics, &(text + "tandem_port_up{ 1\n")).unwrap_err();
    let rules = rules(&dashboard()?);
    promtool(queries, &rules)?;
    promtool(queries, &rules.replacen("sum by", "sum bye", 1)).unwrap_err();
    Ok(())
}
