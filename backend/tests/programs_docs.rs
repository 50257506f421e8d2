//! Every example of README, docs and `--help` is run: here, or by the test that the table names.

mod programs;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use programs::{Daemon, bound, done, tandem, tandemd};
use serde_json::Value;

/// Commands that others run, by how they begin; who: a test or a script; and what that one has of it.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "qemu-system-x86_64 ",
        "tests/tests/guests_readme.rs",
        "find(\"qemu-system-x86_64\")",
    ),
    (
        "cloud-hypervisor ",
        "tests/tests/guests_cloud_hypervisor.rs",
        "find(\"cloud-hypervisor\")",
    ),
    (
        "ip address add",
        "tests/tests/guests_host.rs",
        "addr add {host}/24 dev {TAP}",
    ),
    (
        "sysctl net.ipv4.conf.eth0.arp_ignore=1",
        "tests/tests/guests_uplink.rs",
        "sysctl net.ipv4.conf.u{i}.arp_ignore=1",
    ),
    (
        "tandem capture ",
        "tests/tests/frontend_capture.rs",
        "docs/capture.md",
    ),
    (
        "curl -N --unix-socket /run/tandem/api.sock 'http://tandem/api/v1/ports/web1/capture",
        "tests/tests/frontend_capture.rs",
        "docs/capture.md",
    ),
    (
        "tandem migration prepare ",
        "tests/tests/frontend_migration.rs",
        "\"migration\", \"prepare\"",
    ),
    (
        "tandem migration start web1 --to beta:4792 --virsh ",
        "tests/tests/guests_libvirt.rs",
        "\"migration\", \"start\", PORT, \"--virsh\"",
    ),
    (
        "install -D -m 755 /usr/share/doc/tandem/examples/libvirt-hook",
        "tests/tests/guests_package.rs",
        "docs/migration.md",
    ),
    (
        "tandem migration start ",
        "tests/src/migration/scene.rs",
        "\"migration\", \"start\"",
    ),
    (
        "tandem migration status ",
        "tests/tests/frontend_migration.rs",
        "\"migration\", \"status\"",
    ),
    ("cargo test", "ci/test", "cargo test"),
    ("cargo build", "ci/test", "cargo build"),
    ("ci/test", ".ci/run", "ci/test"),
    ("ci/demo", "ci/test", "ci/demo"),
    ("ci/package", "tests/tests/guests_package.rs", "ci/package"),
];

/// A document that another test runs from its beginning to its end.
const ELSEWHERE_WHOLE: (&str, &str) = ("service.md", "tests/tests/guests_package.rs");

/// Commands that go on until they are interrupted.
const ENDLESS: &[&str] = &["tandem events", "tandem top", "curl -N"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The documents by name.
fn documents() -> Vec<(String, String)> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let mut paths: Vec<PathBuf> = docs.map(|entry| entry.unwrap().path()).collect();
    paths.push(root().join("README.md"));
    paths.retain(|path| path.extension().is_some_and(|end| end == "md"));
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

/// A piece of a document that is set apart: its language, if it says one, and its text.
struct Block {
    language: String,
    text: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut fenced, mut indented) = (false, false);
    for line in document.lines() {
        if let Some(language) = line.strip_prefix("```") {
            if !fenced {
                let (language, text) = (language.to_owned(), String::new());
                blocks.push(Block { language, text });
            }
            (fenced, indented) = (!fenced, false);
            continue;
        }
        let inside = line.strip_prefix("    ");
        if !fenced && inside.is_some() && !indented {
            let (language, text) = ("indented".to_owned(), String::new());
            blocks.push(Block { language, text });
        }
        indented = !fenced && (inside.is_some() || indented && line.is_empty());
        let text = if fenced { Some(line) } else { inside };
        if let (Some(text), Some(block)) = (text, blocks.last_mut())
            && (fenced || indented)
        {
            block.text += text;
            block.text += "\n";
        }
    }
    blocks
}

/// The commands of a shell's text, each in one line, without comments.
fn commands(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    let lines = text.lines().map(|line| {
        let line = line.split(" # ").next().unwrap_or_default().trim();
        let line = line.strip_prefix("sudo ").unwrap_or(line);
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// Whether a word is one that a shell would find.
fn is_program(word: &str) -> bool {
    let word = word.trim_start_matches("./");
    if word.contains('/') {
        return root().join(word).is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    [
        "tandem",
        "tandemd",
        "cloud-hypervisor",
        "qemu-system-x86_64",
    ]
    .contains(&word)
        || std::env::split_paths(&path).any(|dir| !word.is_empty() && dir.join(word).is_file())
}

/// All commands of a document, whoever runs them.
fn commands_of(document: &str) -> Vec<String> {
    let all = blocks(document).into_iter().flat_map(|block| {
        let commands = commands(&block.text);
        let first = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
        match block.language.as_str() {
            "sh" | "console" => commands,
            // What is indented is a picture or a formula as well.
            "indented" => (commands.into_iter())
                .filter(|line| is_program(&first(line)))
                .collect(),
            _ => Vec::new(),
        }
    });
    all.collect()
}

/// Whether another runs it, which is looked at.
fn run_elsewhere(line: &str) -> bool {
    let elsewhere = ELSEWHERE.iter().find(|(start, ..)| line.starts_with(start));
    if let Some((_, who, what)) = elsewhere {
        let text = fs::read_to_string(root().join(who)).unwrap_or_default();
        assert!(text.contains(what), "{who} does not run: {line}");
    }
    elsewhere.is_some()
}

/// A place to run the commands of a document in.
struct Place {
    daemon: Daemon,
    file: PathBuf,
}

impl Place {
    fn new() -> Self {
        let daemon = Daemon::start(&["--port", "web1", "--port", "db1"]);
        let file = daemon.path("tandem.toml");
        fs::write(&file, "").unwrap();
        Self { daemon, file }
    }

    /// The command with this place's paths, for a shell.
    fn shell(&self, line: &str) -> Command {
        let line = line
            .replace("/run/tandem", self.daemon.path("run").to_str().unwrap())
            .replace("/etc/tandem/tandem.toml", self.file.to_str().unwrap())
            // The devices of this machine are not for tests.
            .replace("eth", "no-eth");
        let programs = Path::new(env!("CARGO_BIN_EXE_tandem")).parent().unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = bound("sh");
        command.args(["-c", &format!("exec {line}")]);
        command
            .env("PATH", format!("{}:{path}", programs.display()))
            .env("TANDEM_API_SOCKET", self.daemon.api())
            .current_dir(self.daemon.dir.path());
        command
    }

    /// Runs it to its end, which must be a good one.
    fn run(&self, line: &str) {
        if line.starts_with("tandemd ") && !line.contains("--check") {
            return self.start(line);
        }
        if ENDLESS.iter().any(|start| line.starts_with(start)) || line.contains("--watch") {
            return self.look(line);
        }
        let done = done(&mut self.shell(line));
        assert_eq!(done.code, Some(0), "{line}: {done:?}");
        // The tag in an example is nobody's.
        let refused = done.out.contains("\"errors\":[");
        assert!(!refused || line.contains("If-Match"), "{line}: {done:?}");
    }

    /// Starts a daemon as the line says, but in a place of its own, until it is ready.
    fn start(&self, line: &str) {
        if line.contains("tap=") && !rustix::process::geteuid().is_root() {
            println!("SKIPPED-PART programs_docs: {line}: a TAP needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = self.file.to_str().unwrap();
        // The port may be another's.
        let words = (line.replace("/etc/tandem/tandem.toml", file))
            .replace(":9464", ":0")
            .replace(":4792", ":0");
        let keys = self.daemon.path("keys");
        let keys = keys.to_str().unwrap();
        if words.contains("--migration-keys") {
            let authority = self.daemon.path("authority");
            let mut make = tandem(&["migration", "keys", "alpha", "--to", keys, "--authority"]);
            assert_eq!(done(make.arg(authority)).code, Some(0), "{line}");
        }
        let words = words.replace("/etc/tandem/migration", keys);
        let mut words: Vec<&str> = words.split(' ').skip(1).collect();
        let mut own = |option: &str| {
            if let Some(at) = words.iter().position(|word| *word == option) {
                words.drain(at..at + 2);
            }
        };
        own("--run-dir");
        own("--state-dir");
        // The machine may have fewer.
        own("--cpus");
        drop(Daemon::start_in(dir, &words));
    }

    /// Starts it and waits until it shows something.
    fn look(&self, line: &str) {
        let mut command = self.shell(line);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let shown = std::thread::scope(|scope| {
            let shown = scope.spawn(|| {
                let mut line = String::new();
                out.read_line(&mut line).unwrap();
                line
            });
            while !shown.is_finished() {
                let _ = self.daemon.http("PUT", "/api/v1/ports/example", "{}");
                let _ = self.daemon.http("DELETE", "/api/v1/ports/example", "");
            }
            shown.join().unwrap()
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!shown.is_empty(), "{line} shows nothing");
        let _ = out.read_to_string(&mut String::new());
    }
}

#[test]
fn every_command_of_the_documentation_is_run() {
    let mut run = 0;
    let (theirs, who) = ELSEWHERE_WHOLE;
    let text = fs::read_to_string(root().join(who)).unwrap();
    assert!(text.contains(theirs), "{who} does not run {theirs}");
    for (name, document) in documents() {
        if name == theirs {
            continue;
        }
        let place = Place::new();
        let mut seen = BTreeSet::new();
        for line in commands_of(&document) {
            if !seen.insert(line.clone()) {
                continue;
            }
            let first = line.split(' ').next().unwrap_or_default();
            if run_elsewhere(&line) {
                continue;
            }
            if first == "curl" && !is_program("curl") {
                println!(
                    "SKIPPED-PART programs_docs: {line}: curl is not installed (package curl)"
                );
            } else if ["tandem", "tandemd", "curl"].contains(&first) {
                place.run(&line);
                run += 1;
            } else {
                panic!("{name}: nobody runs: {line}");
            }
        }
    }
    assert!(run >= 10, "only {run} commands were found");
}

#[test]
fn every_command_in_running_text_exists() {
    for (name, document) in documents() {
        let spans = document.split('`').skip(1).step_by(2);
        for span in spans.filter(|span| !span.contains('\n')) {
            let words: Vec<&str> = span.split(' ').collect();
            let command = match words[0] {
                "tandem" => tandem(&[]),
                "tandemd" => tandemd(&[]),
                _ => continue,
            };
            // Up to what stands for something else.
            let words = words[1..].iter().take_while(|word| **word != "…");
            let mut command = command;
            let done = done(command.args(words).arg("--help"));
            assert_eq!(done.code, Some(0), "{name}: {span}: {done:?}");
        }
    }
}

#[test]
fn configurations_and_objects_in_the_documentation_are_right() {
    for (name, document) in documents() {
        for block in blocks(&document) {
            match block.language.as_str() {
                "toml" => {
                    let (dir, path) = programs::config(&block.text);
                    let state = dir.path().join("state");
                    let mut check = tandemd(&["--check", "--config", &path, "--state-dir"]);
                    let done = done(check.arg(state));
                    assert_eq!(done.code, Some(0), "{name}: {}: {done:?}", block.text);
                }
                "json" => {
                    let object: Result<Value, _> = serde_json::from_str(&block.text);
                    assert!(object.is_ok(), "{name}: {}: {object:?}", block.text);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn every_example_of_the_help_is_run() {
    let place = Place::new();
    let mut run = 0;
    for help in [tandem(&["--help"]), tandemd(&["--help"])] {
        let mut help = help;
        let text = done(&mut help).out;
        let (_, examples) = text.split_once("Examples:\n").expect("no examples");
        let examples: Vec<&str> = (examples.lines())
            .take_while(|line| line.starts_with("  "))
            .collect();
        for line in commands(&examples.join("\n")) {
            if run_elsewhere(&line) {
                continue;
            }
            place.run(&line);
            run += 1;
        }
    }
    assert!(run >= 6, "{run}");
}
