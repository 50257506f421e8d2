//! virsh as a script, and what the driver makes of it. The real one moves a guest in tests/tests/guests_libvirt.rs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use tandem_migration::vmm::{Libvirt, LibvirtOptions, Outcome, Progress, Vmm, VmmError, Wishes};
use tempfile::TempDir;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);
const URI: &str = "qemu+ssh://beta/system";

/// What virsh does but for `migrate`: each command is written down.
const COMMON: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
[ "$LC_ALL" = C ] || exit 9
echo "$*" >>heard
touch begun
# One that is killed leaves no child behind: it sleeps by itself.
wait_for() { until [ -e "$1" ]; do sleep 0.01; done; }
case "$*" in
*domstate*) echo running ;;
*domjobinfo*--completed) printf 'Time elapsed:  2779 ms\nTotal downtime:  49 ms\n' ;;
*domjobinfo*) printf 'Operation: Outgoing migration\nIteration: 2\nMemory total: 1.000 GiB\n'; touch looked ;;
*domjobabort*) touch aborted ;;
*migrate-setmaxdowntime*) ;;
"#;

/// A virsh in a directory of its own.
struct Script {
    dir: TempDir,
}

impl Script {
    /// `cases` are more of the shell's, `*migrate*` among them; they come first.
    fn new(cases: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("virsh");
        let text = COMMON.replacen("in\n", &format!("in\n{cases}\n"), 1) + "esac\n";
        // Written and run by different processes: no other thread's child may have it open for writing.
        let written = std::process::Command::new("/bin/sh")
            .args(["-c", "printf %s \"$1\" >\"$0\""])
            .arg(&path)
            .arg(&text)
            .status();
        assert!(written.unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn connect(&self, options: LibvirtOptions) -> Result<Libvirt, VmmError> {
        let program = self.dir.path().join("virsh");
        Libvirt::by(program.to_str().unwrap(), "web1", options)
    }

    fn run(
        &self,
        wishes: &Wishes,
        options: LibvirtOptions,
    ) -> (Result<Option<Outcome>, VmmError>, Vec<Progress>) {
        let mut vmm = self.connect(options).unwrap();
        let mut seen = Vec::new();
        let mut each = |progress: &Progress| seen.push(progress.clone());
        let outcome = vmm.migrate(URI, wishes);
        let outcome = outcome.and_then(|()| vmm.follow(Instant::now() + LIMIT, &mut each));
        (outcome, seen)
    }

    fn heard(&self) -> String {
        fs::read_to_string(self.dir.path().join("heard")).unwrap()
    }

    fn has(&self, file: &str) -> bool {
        self.dir.path().join(file).exists()
    }
}

#[test]
fn a_domain_is_moved_and_followed() {
    let script = Script::new("*migrate\\ --live*) wait_for looked ;;");
    let wishes = Wishes {
        max_bandwidth: Some(100 << 20),
        downtime: Some(Duration::from_millis(250)),
        ..Wishes::default()
    };
    let options = LibvirtOptions {
        connection: Some("qemu:///system".into()),
        migrate_uri: Some("tcp://192.0.2.7".into()),
        further: vec!["--persistent".into()],
    };
    let (outcome, seen) = script.run(&wishes, options);
    let completed = Outcome::Completed {
        downtime_ms: Some(49),
        total_ms: Some(2779),
    };
    assert_eq!(outcome.unwrap(), Some(completed));
    assert!(seen.iter().any(|p| p.total == Some(1 << 30)), "{seen:?}");
    let heard = script.heard();
    let here = "--quiet --connect qemu:///system";
    for line in [
        format!("{here} domstate --domain web1\n"),
        format!("{here} migrate-setmaxdowntime --domain web1 --downtime 250\n"),
        format!(
            "{here} migrate --live --domain web1 --desturi {URI} --migrateuri tcp://192.0.2.7 \
             --bandwidth 100 --persistent\n"
        ),
        format!("{here} domjobinfo --domain web1\n"),
        format!("--quiet --connect {URI} domjobinfo --domain web1 --completed\n"),
    ] {
        assert!(heard.contains(&line), "no {line} in {heard}");
    }
}

#[test]
fn a_refusal_is_told_in_virshs_words() {
    let script = Script::new(
        "*migrate\\ --live*) printf 'error: Hook script execution failed: no\\033[2J\\n' >&2; exit 1 ;;",
    );
    let (outcome, _) = script.run(&Wishes::default(), LibvirtOptions::default());
    let why = "Hook script execution failed: no [2J".to_owned();
    assert_eq!(outcome.unwrap(), Some(Outcome::Failed(why)));
}

/// What virsh says of a domain that it cannot undefine after the move, say.
#[test]
fn a_domain_that_has_left_has_not_failed() {
    let script = Script::new(
        "*migrate\\ --live*) touch left; echo 'error: late' >&2; exit 1 ;;
         *domstate*) if [ -e left ]; then echo 'shut off'; else echo running; fi ;;",
    );
    let (outcome, seen) = script.run(&Wishes::default(), LibvirtOptions::default());
    assert_eq!(outcome.unwrap(), Some(Outcome::Ended));
    assert_eq!(seen.last().unwrap().state, "late");
}

#[test]
fn it_is_cancelled_when_its_time_is_up() {
    let script = Script::new(
        "*migrate\\ --live*) wait_for aborted; echo 'error: operation aborted: job canceled by client' >&2; exit 1 ;;
         # As when it has not begun yet.
         *domjobabort*) [ -e refused ] && touch aborted || { touch refused; echo 'error: no job' >&2; exit 1; } ;;",
    );
    let wishes = Wishes {
        time: Some(Duration::from_millis(50)),
        ..Wishes::default()
    };
    let (outcome, _) = script.run(&wishes, LibvirtOptions::default());
    assert_eq!(outcome.unwrap(), Some(Outcome::Cancelled));
}

#[test]
fn what_cannot_be_is_refused() {
    let script = Script::new("*migrate\\ --live*) ;;");
    for word in [
        "--postcopy",
        "--postcopy-after-precopy",
        "--timeout-postcopy",
    ] {
        let options = LibvirtOptions {
            further: vec![word.into()],
            ..LibvirtOptions::default()
        };
        let (outcome, _) = script.run(&Wishes::default(), options);
        assert_eq!(outcome.unwrap_err(), VmmError::Postcopy);
    }
    let slow = Wishes {
        max_bandwidth: Some(1000),
        ..Wishes::default()
    };
    let (outcome, _) = script.run(&slow, LibvirtOptions::default());
    assert!(matches!(outcome, Err(VmmError::Unsupported { .. })));
    assert!(!script.heard().contains("migrate"), "{}", script.heard());
    let mut idle = script.connect(LibvirtOptions::default()).unwrap();
    let followed = idle.follow(Instant::now() + LIMIT, &mut |_| {});
    assert_eq!(followed.unwrap_err(), VmmError::NotBegun);
}

#[test]
fn no_domain_and_no_virsh_are_told() {
    let script =
        Script::new("*domstate*) echo \"error: failed to get domain 'web1'\" >&2; exit 1 ;;");
    let refused = VmmError::Refused {
        what: "virsh domstate".into(),
        why: "failed to get domain 'web1'".into(),
    };
    assert_eq!(
        script.connect(LibvirtOptions::default()).unwrap_err(),
        refused
    );
    let nowhere = Libvirt::by("/nowhere/virsh", "web1", LibvirtOptions::default()).unwrap_err();
    assert!(matches!(nowhere, VmmError::Program { .. }), "{nowhere}");
}

#[test]
fn a_virsh_that_hangs_is_given_up() {
    let script = Script::new("*domstate*) exec sleep 1000 ;;");
    let slow = script.connect(LibvirtOptions::default()).unwrap_err();
    assert_eq!(slow, VmmError::Slow("virsh domstate".into()));
}

/// The job is cancelled, and virsh has ended, when the value is gone.
#[test]
fn nothing_goes_on_alone() {
    let script =
        Script::new("*migrate\\ --live*) echo $$ >pid; wait_for aborted; touch ended; exit 1 ;;");
    let mut vmm = script.connect(LibvirtOptions::default()).unwrap();
    vmm.migrate(URI, &Wishes::default()).unwrap();
    let nothing = vmm.follow(Instant::now(), &mut |_| {}).unwrap();
    assert_eq!(nothing, None);
    drop(vmm);
    assert!(script.has("ended"), "{}", script.heard());

    let stubborn = Script::new("*migrate\\ --live*) echo $$ >pid; exec sleep 1000 ;;");
    let mut vmm = stubborn.connect(LibvirtOptions::default()).unwrap();
    vmm.migrate(URI, &Wishes::default()).unwrap();
    while !stubborn.has("pid") {
        vmm.follow(Instant::now(), &mut |_| {}).unwrap();
    }
    drop(vmm);
    let pid = fs::read_to_string(stubborn.dir.path().join("pid")).unwrap();
    let state = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    assert!(
        state.as_deref().is_ok_and(|s| s.contains(") Z")) || state.is_err(),
        "{state:?}"
    );
}
