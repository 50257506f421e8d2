//! schemathesis, which makes requests from the OpenAPI document, finds no answer that it does not
//! describe and no server error.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tandem_tests::lab::{Daemon, Need, say, scenario};

/// Carries connections to the API's socket: schemathesis speaks TCP.
fn carry(socket: PathBuf) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = UnixStream::connect(&socket) else {
                continue;
            };
            let (Ok(near2), Ok(far2)) = (near.try_clone(), far.try_clone()) else {
                continue;
            };
            std::thread::spawn(move || there(near, far));
            std::thread::spawn(move || back(far2, near2));
        }
    });
    Ok(port)
}

fn there(mut from: TcpStream, mut to: UnixStream) {
    let _ = pump(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn back(mut from: UnixStream, mut to: TcpStream) {
    let _ = pump(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
    io::copy(from, to)
}

fn schemathesis(dir: &Path, port: u16, more: &[&str]) -> Result<()> {
    let document = format!("http://127.0.0.1:{port}/api/v1/openapi.json");
    let out = Command::new("schemathesis")
        .args(["run", &document, "--seed", "1", "--checks", "all"])
        // A document cannot say which keys go together, nor what condition holds.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .args(["--no-color", "--warnings", "off"])
        .args(more)
        .current_dir(dir)
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{text}{errors}");
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    say(&format!(
        "schemathesis: {}",
        last.unwrap_or_default().trim()
    ));
    ensure!(text.contains("generated"), "it did nothing: {text}");
    Ok(())
}

#[test]
fn every_answer_is_one_that_the_document_describes() -> Result<()> {
    let needs = [Need::Program("schemathesis", "python3-venv, then ci/setup")];
    scenario("peers_schemathesis::every_answer", &needs, |lab| {
        let mut daemon = Daemon::with_ports(lab.path(), &["web1", "db1"])?;
        let port = carry(daemon.run_dir().join("api.sock"))?;
        let endless = ["/api/v1/events", "/api/v1/ports/{name}/capture"];
        let others = endless.map(|path| ["--exclude-path", path]).concat();
        let some = ["--max-examples", "25"];
        schemathesis(lab.path(), port, &[&some[..], &others].concat())?;
        daemon.process().check_running()?;
        daemon.stop()?;
        // Those never end by themselves, where there is a port of the name: by now it has made some.
        let dir = lab.path().join("endless");
        std::fs::create_dir(&dir)?;
        let mut daemon = Daemon::with_ports(&dir, &["web1", "db1"])?;
        let port = carry(daemon.run_dir().join("api.sock"))?;
        for path in endless {
            let one = ["--max-examples", "3", "--include-path", path];
            let brief = ["--phases", "fuzzing", "--request-timeout", "1"];
            schemathesis(lab.path(), port, &[&one[..], &brief].concat())?;
        }
        daemon.process().check_running()?;
        daemon.stop()
    })
}
