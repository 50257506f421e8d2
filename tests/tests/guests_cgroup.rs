//! The control groups of VMs, on a machine where version 2 has the CPU controller: in a guest.

use anyhow::{Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tandem_tests::lab::{
    Guest, GuestConfig, Lab, Need, PATIENCE, build_daemon, built_program, image, scenario,
};

/// Where the daemon is put, as a service manager would.
const GROUP: &str = "/sys/fs/cgroup/tandemd";

/// The guests' file system, with the programs under test in it.
fn file_system(lab: &Lab) -> Result<PathBuf> {
    build_daemon()?;
    let (tree, out) = (lab.path().join("tree"), lab.path().join("with-daemon.cpio"));
    fs::create_dir_all(tree.join("real"))?;
    for program in ["tandemd", "tandem"] {
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(tree.join("real").join(program));
        let status = strip.arg(built_program(program)?).status()?;
        ensure!(status.success(), "strip: {status}");
    }
    // The kernel unpacks one archive after the other.
    let script = "cd \"$0\" && { cat \"$1\"; find real | cpio --quiet -o -H newc -R 0:0; } >\"$2\"";
    let status = Command::new("sh")
        .args(["-ec", script])
        .args([&tree, &image::initramfs()?, &out])
        .status()?;
    ensure!(status.success(), "cpio: {status}");
    Ok(out)
}

/// Starts the daemon as an ordinary user in a group that was given to it.
const START: &str = "
    cd /sys/fs/cgroup/tandemd && chown u . cgroup.procs cgroup.threads cgroup.subtree_control &&
    sh -c 'echo $$ >/sys/fs/cgroup/tandemd/cgroup.procs
        exec su u -c \"exec /real/tandemd --run-dir /tmp/run --state-dir /tmp/state\"' \
        </dev/null >/tmp/log 2>&1 &
    for i in $(seq 400); do grep -q 'is ready' /tmp/log && exit 0; sleep 0.05; done
    cat /tmp/log; exit 1";

fn tandem(guest: &mut Guest, arguments: &str) -> Result<String> {
    guest.exec(&format!(
        "/real/tandem --api-socket /tmp/run/api.sock {arguments}"
    ))
}

/// The group of a VM that has a port is as it should be.
fn check_group(guest: &mut Guest, vm: &str, threads: usize) -> Result<()> {
    let dir = format!("{GROUP}/main/vm-{vm}");
    let mut read = |file: &str| guest.exec(&format!("cat {dir}/{file}"));
    ensure!(read("cgroup.type")?.trim() == "threaded");
    ensure!(read("cpu.weight")?.trim() == "100", "its weight");
    ensure!(read("cpu.max")?.starts_with("max"), "it has a limit");
    ensure!(read("cpu.stat")?.contains("usage_usec"), "no account");
    let ids = read("cgroup.threads")?;
    ensure!(ids.lines().count() == threads, "its threads: {ids}");
    for id in ids.lines() {
        let name = guest.exec(&format!("cat /proc/*/task/{id}/comm"))?;
        ensure!(name.starts_with(&format!("{vm}/")), "{name}");
    }
    Ok(())
}

#[test]
fn with_the_cpu_controller() -> Result<()> {
    let name = "guests_cgroup::with_the_cpu_controller";
    let needs = [Need::Guests, Need::Program("strip", "binutils")];
    scenario(name, &needs, |lab| {
        let config = GuestConfig::new("host").cpus(2);
        let mut guest = config.initramfs(file_system(lab)?).boot(lab.path())?;
        guest.exec(&format!(
            "echo u:x:1000:1000::/:/bin/sh >>/etc/passwd && chmod 755 / && chmod 1777 /tmp &&
            mount -t cgroup2 none /sys/fs/cgroup && mkdir {GROUP} &&
            echo +cpu >/sys/fs/cgroup/cgroup.subtree_control"
        ))?;
        guest.exec(START)?;
        tandem(&mut guest, "port add web1 --queue-pairs 2")?;
        tandem(&mut guest, "port add web2 --vm web1")?;
        tandem(&mut guest, "port add db1")?;
        check_group(&mut guest, "web1", 2)?;
        check_group(&mut guest, "db1", 1)?;
        // With its last port a VM's group goes.
        tandem(&mut guest, "port remove web1")?;
        check_group(&mut guest, "web1", 2)?;
        tandem(&mut guest, "port remove web2")?;
        let list = guest.exec(&format!("ls -d {GROUP}/main/vm-*"))?;
        ensure!(
            list.trim().ends_with("/vm-db1") && list.lines().count() == 1,
            "{list}"
        );
        // What a crash leaves is in nobody's way.
        guest.exec("kill -9 $(pidof tandemd) && mv /tmp/log /tmp/first.log")?;
        guest.exec(&format!(
            "until grep -q 'populated 0' {GROUP}/cgroup.events; do sleep 0.05; done"
        ))?;
        guest.exec(START)?;
        check_group(&mut guest, "db1", 1)?;
        tandem(&mut guest, "port add web1")?;
        check_group(&mut guest, "web1", 1)?;
        let log = guest.exec("cat /tmp/log")?;
        ensure!(!log.contains("WARN"), "{log}");
        guest.process().terminate(PATIENCE).map(drop)
    })
}
