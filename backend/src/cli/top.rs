//! `tandem top`: which ports are busy.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use super::text::{Table, count};
use super::{Failure, Session, parse, repeat, seconds};

pub(super) fn command() -> Command {
    Command::new("top")
        .about("Show which ports are busy, the busiest first, until interrupted")
        .arg(
            Arg::new("interval")
                .long("interval")
                .value_name("SECONDS")
                .value_parser(seconds)
                .default_value("1")
                .help("Time that the rates are of"),
        )
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("End after so many times"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let session = Session::new(matches)?;
    let pause = matches.get_one::<Duration>("interval").copied();
    let pause = pause.unwrap_or(Duration::from_secs(1));
    let times = matches.get_one::<u64>("count").copied();
    let mut before = Sample::take(&session)?;
    thread::sleep(pause);
    repeat(session.json, pause, times, || {
        let now = Sample::take(&session)?;
        let rates = now.since(&before);
        before = now;
        Ok(match session.json {
            true => format!("{}\n", json!({"ports": rates})),
            false => table(&rates),
        })
    })?;
    Ok(String::new())
}

/// Counters of all ports at one moment.
struct Sample {
    at: Instant,
    ports: BTreeMap<String, Value>,
    cpu: BTreeMap<String, f64>,
}

impl Sample {
    fn take(session: &Session) -> Result<Self, Failure> {
        let named = |list: &str, text: &str| -> Result<BTreeMap<String, Value>, Failure> {
            let mut answer = parse(text)?;
            let objects = answer[list].as_array_mut().map(std::mem::take);
            let objects = objects.unwrap_or_default().into_iter();
            let name = |object: &Value| object["name"].as_str().unwrap_or_default().to_owned();
            Ok(objects.map(|object| (name(&object), object)).collect())
        };
        let vms = named("vms", &session.get("/api/v1/vms")?)?;
        let ports = named("ports", &session.get("/api/v1/ports")?)?;
        let cpu = |(name, vm): (String, Value)| (name, vm["cpu_seconds"].as_f64().unwrap_or(0.0));
        Ok(Self {
            at: Instant::now(),
            ports,
            cpu: vms.into_iter().map(cpu).collect(),
        })
    }

    /// Rates by port, the busiest first. A port that is new, or was made anew, has none yet.
    fn since(&self, before: &Self) -> Vec<Value> {
        let time = (self.at - before.at).as_secs_f64();
        let rate = |port: &Value, old: &Value, counter: fn(&Value) -> u64| {
            counter(port).saturating_sub(counter(old)) as f64 / time
        };
        let rates = self.ports.iter().map(|(name, port)| {
            let vm = port["vm"].as_str().unwrap_or_default();
            let cpu = |sample: &Self| sample.cpu.get(vm).copied().unwrap_or(0.0);
            let old = before.ports.get(name).unwrap_or(port);
            let from_vm = |counter: &str| port["counters"]["from_vm"][counter].as_u64();
            // A port that was made anew counts anew.
            let old = if from_vm("frames") < old["counters"]["from_vm"]["frames"].as_u64() {
                port
            } else {
                old
            };
            json!({
                "port": name,
                "vm": vm,
                "from_vm_frames": rate(port, old, |port| of(port, "from_vm", "frames")),
                "to_vm_frames": rate(port, old, |port| of(port, "to_vm", "frames")),
                "from_vm_bits": 8.0 * rate(port, old, |port| of(port, "from_vm", "bytes")),
                "to_vm_bits": 8.0 * rate(port, old, |port| of(port, "to_vm", "bytes")),
                "drops": rate(port, old, drops),
                "vm_cpu": (cpu(self) - cpu(before)).max(0.0) / time,
            })
        });
        let mut rates: Vec<Value> = rates.collect();
        let busy = |port: &Value| {
            port["from_vm_frames"].as_f64().unwrap_or(0.0)
                + port["to_vm_frames"].as_f64().unwrap_or(0.0)
        };
        rates.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
        rates
    }
}

fn of(port: &Value, direction: &str, counter: &str) -> u64 {
    port["counters"][direction][counter].as_u64().unwrap_or(0)
}

fn drops(port: &Value) -> u64 {
    let of = |direction: &str| -> u64 {
        let reasons = port["counters"][direction]["drops"].as_object();
        let counts = reasons.into_iter().flatten();
        counts.filter_map(|(_, n)| n.as_u64()).sum()
    };
    of("from_vm") + of("to_vm")
}

fn table(rates: &[Value]) -> String {
    let mut table = Table::new(&[
        "PORT",
        "VM",
        "FROM_VM/S",
        "TO_VM/S",
        "FROM_MBIT",
        "TO_MBIT",
        "DROPS/S",
        "VM_CPU",
    ])
    .right(&[2, 3, 4, 5, 6, 7])
    .shrinking(&[0, 1]);
    for port in rates {
        let word = |key: &str| port[key].as_str().unwrap_or("-").to_owned();
        let number = |key: &str| port[key].as_f64().unwrap_or(0.0);
        let frames = |key: &str| count(Some(number(key).round() as u64));
        let megabits = |key: &str| format!("{:.1}", number(key) / 1e6);
        table.row(vec![
            word("port"),
            word("vm"),
            frames("from_vm_frames"),
            frames("to_vm_frames"),
            megabits("from_vm_bits"),
            megabits("to_vm_bits"),
            frames("drops"),
            format!("{:.0} %", 100.0 * number("vm_cpu")),
        ]);
    }
    table.to_string()
}
