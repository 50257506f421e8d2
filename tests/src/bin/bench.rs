//! The measurements behind `ci/bench`.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tandem_tests::bench::measure::{self, Effort};
use tandem_tests::bench::report::{Report, heading, line};
use tandem_tests::bench::switch::Kind;
use tandem_tests::bench::{idle, latency, logged, ovs, plan, svg, uplink};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", dir, out, ref options @ ..] => run(Path::new(dir), Path::new(out), options),
        ["probe", first, second] => {
            let times = latency::exchange(Path::new(first), Path::new(second))?;
            println!("{}", serde_json::to_string(&times)?);
            Ok(())
        }
        ["wakes"] => {
            let times = latency::wake_each_other()?;
            println!("{}", serde_json::to_string(&times)?);
            Ok(())
        }
        _ => bail!("this is started by ci/bench"),
    }
}

/// What was asked for.
struct Options {
    quick: bool,
    effort: Effort,
    /// Names of cells, `uplink`, `logged`, `latency` and `idle`; all when empty.
    only: Vec<String>,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let quick = words.contains(&"--quick");
        let mut options = Self {
            quick,
            effort: Effort {
                rounds: if quick { 3 } else { 5 },
                turn: Duration::from_millis(if quick { 1000 } else { 1500 }),
                patience: Duration::from_secs(if quick { 5 } else { 20 }),
                kinds: &Kind::ALL,
            },
            only: vec![],
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .with_context(|| format!("{word} needs a value"))
            };
            match *word {
                "--quick" => {}
                "--builds" => options.effort.kinds = &Kind::BUILDS,
                "--rounds" => options.effort.rounds = value()?.parse().context("--rounds")?,
                "--seconds" => options.effort.turn = seconds(value()?)?,
                "--patience" => options.effort.patience = seconds(value()?)?,
                "--only" => options.only = value()?.split(',').map(str::to_string).collect(),
                _ => bail!("unknown argument '{word}'"),
            }
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

fn seconds(word: &str) -> Result<Duration> {
    let seconds = word.parse().with_context(|| word.to_string())?;
    Duration::try_from_secs_f64(seconds).with_context(|| format!("{word} seconds"))
}

fn run(dir: &Path, out: &Path, options: &[&str]) -> Result<()> {
    let options = Options::parse(options)?;
    let kinds = options.effort.kinds;
    if let Some(why) = ovs::missing().filter(|_| kinds.contains(&Kind::Ovs)) {
        bail!("nothing to compare with: {why}");
    }
    let start = Instant::now();
    let before = conditions();
    let mut report = Report::default();
    println!("{}", heading(kinds));
    let quick_cells = options.quick && options.only.is_empty();
    for cell in plan::cells(quick_cells) {
        if options.wants(cell.name) {
            let outcome = measure::cell(dir, &cell, options.effort)?;
            println!("{}", line(&outcome, kinds));
            report.outcomes.push(outcome);
        }
    }
    if !quick_cells {
        report.uplink = uplinks(dir, &options)?;
        let wanted = |name: &str| options.wants("logged") || options.wants(name);
        report.logged = logged::run(dir, options.effort, wanted)?;
    }
    if !quick_cells && options.wants("latency") {
        report.wakes = latency::wakes()?;
        report.latency = latency::run(dir, kinds, options.effort.rounds)?;
    }
    if !quick_cells && kinds.contains(&Kind::Ovs) && options.wants("idle") {
        report.idle = idle::run(dir)?;
    }
    println!("\n{}", report.rest());
    let json = report.to_json(
        options.effort,
        json!({"before": before, "after": conditions(), "seconds": start.elapsed().as_secs()}),
    );
    write(out, "bench.json", &serde_json::to_string_pretty(&json)?)?;
    write(out, "bench.svg", &svg::draw(&report.outcomes, kinds))
}

/// The cells of the uplink, if they are wanted: all by `uplink`, or one by its name.
fn uplinks(dir: &Path, options: &Options) -> Result<Vec<uplink::Outcome>> {
    let mut cells = uplink::Cell::all();
    cells.retain(|cell| options.wants("uplink") || options.wants(&cell.name()));
    if cells.is_empty() {
        return Ok(vec![]);
    }
    uplink::own_namespace()?;
    let kinds = options.effort.kinds;
    println!("{}", uplink::heading(kinds));
    let measure = |cell| {
        let outcome = uplink::cell(dir, cell, options.effort)?;
        println!("{}", uplink::line(&outcome, kinds));
        Ok(outcome)
    };
    cells.into_iter().map(measure).collect()
}

fn write(out: &Path, name: &str, text: &str) -> Result<()> {
    let path: PathBuf = out.join(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    println!("{}", path.display());
    Ok(())
}

/// The machine, and how busy others keep it.
fn conditions() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_string())
    });
    json!({
        "cpu": cpu,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load": read("/proc/loadavg").trim(),
        "testpmd": version("dpdk-testpmd", "--version"),
        "ovs": version(ovs::VSWITCHD, "--version"),
    })
}

fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .find(|line| line.contains(char::is_numeric))
        .map(str::to_string)
}
