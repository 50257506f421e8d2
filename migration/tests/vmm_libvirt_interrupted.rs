//! A process that is to end while it has libvirt move a VM. The only test of its program, which gets the signal.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use tandem_migration::vmm::{Libvirt, LibvirtOptions, Outcome, Vmm, Wishes};

/// `migrate` goes on until the job is aborted.
const VIRSH: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
case "$*" in
*domstate*) echo running ;;
*domjobabort*) touch aborted ;;
*migrate*) until [ -e aborted ]; do sleep 0.01; done; echo 'error: job canceled by client' >&2; exit 1 ;;
esac
"#;

#[test]
fn the_migration_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("virsh");
    fs::write(&path, VIRSH).unwrap();
    assert!(
        Command::new("chmod")
            .arg("+x")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    let program = path.to_str().unwrap();
    let mut vmm = Libvirt::by(program, "web1", LibvirtOptions::default()).unwrap();
    vmm.migrate("qemu+ssh://beta/system", &Wishes::default())
        .unwrap();
    let kill = format!("kill -INT {}", std::process::id());
    assert!(
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
    let until = Instant::now() + Duration::from_secs(30);
    let outcome = vmm.follow(until, &mut |_| {}).unwrap();
    assert_eq!(outcome, Some(Outcome::Cancelled));
}
