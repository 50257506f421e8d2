//! The two programs as a user starts them.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

/// A hang becomes a failure after this; nothing waits for it otherwise.
const LIMIT: Duration = Duration::from_secs(30);

/// A command that the kernel kills when the thread that starts it ends, in any way.
pub(crate) fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
        .env_remove("TANDEM_API_SOCKET")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// `command` again, started by setpriv(1) with `options` and as `program`.
pub(crate) fn bound_as(options: &[&str], program: &str, command: &Command) -> Command {
    let mut other = Command::new("setpriv");
    other.args(["--pdeathsig", "KILL"]).args(options);
    other.arg("--").arg(program);
    // Behind setpriv's own arguments and the program.
    other.args(command.get_args().skip(4));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    other.stdin(Stdio::null());
    other
}

/// `tandemd` with these arguments.
pub(crate) fn tandemd(args: &[&str]) -> Command {
    let mut command = bound(env!("CARGO_BIN_EXE_tandemd"));
    command.args(args);
    command
}

/// `tandem` with these arguments.
pub(crate) fn tandem(args: &[&str]) -> Command {
    let mut command = bound(env!("CARGO_BIN_EXE_tandem"));
    command.args(args);
    command
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a command to its end.
pub(crate) fn done(command: &mut Command) -> Done {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done {
        code: status.code(),
        out: text(stdout),
        err: text(stderr),
    }
}

/// A new directory with a configuration file.
pub(crate) fn config(text: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

/// A running daemon in a directory of its own, killed on drop.
pub(crate) struct Daemon {
    child: Child,
    notify: UnixDatagram,
    pub(crate) dir: TempDir,
}

impl Daemon {
    /// Starts one and returns when it says that it is ready.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), args)
    }

    /// The same in a directory that may have been used before.
    pub(crate) fn start_in(dir: TempDir, args: &[&str]) -> Self {
        let daemon = Self::begin(dir, args, |_| {});
        assert_eq!(daemon.notified(), "READY=1", "{}", daemon.log());
        daemon
    }

    /// Starts one and does not wait; `more` adds to its command.
    pub(crate) fn begin(dir: TempDir, args: &[&str], more: impl FnOnce(&mut Command)) -> Self {
        Self::begin_as(dir, tandemd(args), more)
    }

    /// The same by another command, to which the arguments of `tandemd` are added.
    pub(crate) fn begin_as(
        dir: TempDir,
        mut command: Command,
        more: impl FnOnce(&mut Command),
    ) -> Self {
        let at = |name: &str| dir.path().join(name);
        let _ = fs::remove_file(at("notify"));
        let notify = UnixDatagram::bind(at("notify")).unwrap();
        notify.set_read_timeout(Some(LIMIT)).unwrap();
        command
            .arg("--run-dir")
            .arg(at("run"))
            .arg("--state-dir")
            .arg(at("state"));
        command.env("NOTIFY_SOCKET", at("notify"));
        command.stderr(
            File::options()
                .create(true)
                .append(true)
                .open(at("log"))
                .unwrap(),
        );
        more(&mut command);
        Self {
            child: command.spawn().unwrap(),
            notify,
            dir,
        }
    }

    /// What it tells the service manager next; nothing if it ends instead.
    pub(crate) fn try_notified(&self) -> Option<String> {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let mut events = [
            PollFd::new(&self.notify, PollFlags::IN),
            PollFd::new(&process, PollFlags::IN),
        ];
        let limit = Timespec {
            tv_sec: LIMIT.as_secs() as i64,
            tv_nsec: 0,
        };
        while poll(&mut events, Some(&limit)).is_err() {}
        let told = !events[0].revents().is_empty();
        told.then(|| self.notified())
    }

    /// What it tells the service manager next.
    pub(crate) fn notified(&self) -> String {
        let mut buffer = [0; 128];
        loop {
            match self.notify.recv(&mut buffer) {
                Ok(length) => return String::from_utf8_lossy(&buffer[..length]).into_owned(),
                // A socket with a time limit is not restarted when the process was stopped and
                // goes on, with no handler of ours involved: signal(7).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("it says nothing: {error}; {}", self.log()),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn api(&self) -> PathBuf {
        self.path("run/api.sock")
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.await_end(false);
        self.child.wait().unwrap()
    }

    /// Waits for a daemon that cannot start.
    pub(crate) fn end_of_itself(&mut self) -> Option<i32> {
        self.await_end(true);
        self.child.wait().unwrap().code()
    }

    /// Returns when the process has ended, or fails: after a time, or if it said that it is ready.
    fn await_end(&self, not_ready: bool) {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let mut events = vec![PollFd::new(&process, PollFlags::IN)];
        if not_ready {
            events.push(PollFd::new(&self.notify, PollFlags::IN));
        }
        let limit = Timespec {
            tv_sec: LIMIT.as_secs() as i64,
            tv_nsec: 0,
        };
        poll(&mut events, Some(&limit)).unwrap();
        assert!(
            !events[0].revents().is_empty(),
            "it goes on: {}",
            self.log()
        );
    }

    /// Has it read its file again; the service manager is told when it begins and when it is done.
    pub(crate) fn reload(&self) {
        self.signal(Signal::HUP);
        let begun = self.notified();
        let mut lines = begun.lines();
        assert_eq!(lines.next(), Some("RELOADING=1"));
        let since = lines.next().unwrap().strip_prefix("MONOTONIC_USEC=");
        assert!(since.unwrap().parse::<u64>().unwrap() > 0);
        assert_eq!(self.notified(), "READY=1");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills it as a crash would, and gives its directory for another start.
    pub(crate) fn crash(mut self) -> TempDir {
        self.end(Signal::KILL);
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// Ends it in order, and gives its directory for another start.
    pub(crate) fn stop(mut self) -> TempDir {
        assert_eq!(self.end(Signal::TERM).code(), Some(0), "{}", self.log());
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// Runs `tandem` against it.
    pub(crate) fn tandem(&self, args: &[&str]) -> Done {
        done(tandem(args).env("TANDEM_API_SOCKET", self.api()))
    }

    /// One request; the answer's status, head and JSON.
    pub(crate) fn http(&self, method: &str, path: &str, body: &str) -> Answer {
        self.http_with(method, path, "", body)
    }

    /// The same with more header lines, each ending in `\r\n`.
    pub(crate) fn http_with(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = connect(&self.api());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // A refusal may come before the body is read.
        let _ = stream.write_all(body.as_bytes());
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        Answer::of(&text)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection on which nothing waits for ever.
pub(crate) fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) json: Value,
}

impl Answer {
    pub(crate) fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("no HTTP answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let json = serde_json::from_str(body).unwrap_or(Value::Null);
        Self {
            status,
            head: head.to_ascii_lowercase(),
            json,
        }
    }
}
