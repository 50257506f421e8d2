//! The program virsh: a command and what it says, within a time; or one that goes on.

use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

use super::{ANSWER_TIME, VmmError, words};
use crate::vmm::{MESSAGE_LEN, runtime};

/// Time in which the last words follow the end: what virsh has started, such as ssh, may keep the pipe open. And in
/// which the end follows a kill.
const WORDS_TIME: Duration = Duration::from_secs(1);

/// Runs virsh.
#[derive(Debug)]
pub(super) struct Virsh {
    program: String,
    runtime: Runtime,
}

/// A command that goes on. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    what: String,
    /// What it writes to standard error.
    said: JoinHandle<String>,
    /// SIGINT and SIGTERM of this process.
    signals: [Signal; 2],
}

/// What has become of a command after a while.
#[derive(Debug)]
pub(super) enum Turn {
    /// It goes on.
    Pending,
    /// It goes on, but somebody wants it to end.
    Interrupted,
    /// It has ended; with the reason in its words, if it has failed.
    Ended(Option<String>),
}

impl Virsh {
    pub(super) fn new(program: &str) -> Result<Self, VmmError> {
        Ok(Self {
            program: program.to_owned(),
            runtime: runtime()?,
        })
    }

    /// What a command prints.
    pub(super) fn ask(&self, connection: Option<&str>, args: &[&str]) -> Result<String, VmmError> {
        let what = format!("virsh {}", args.first().unwrap_or(&""));
        self.runtime.block_on(async {
            let mut child = self.spawn(connection, args, Stdio::piped())?;
            let (out, err) = (child.stdout.take(), child.stderr.take());
            let ended = async { tokio::join!(child.wait(), read(out), read(err)) };
            let Ok((status, said, error)) = timeout(ANSWER_TIME, ended).await else {
                return Err(VmmError::Slow(what));
            };
            let status = status.map_err(system)?;
            match failure(status, &error) {
                Some(why) => Err(VmmError::Refused { what, why }),
                None => Ok(said.trim().to_owned()),
            }
        })
    }

    /// Starts a command that takes its time.
    pub(super) fn start(
        &self,
        connection: Option<&str>,
        args: &[String],
    ) -> Result<Running, VmmError> {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.runtime.block_on(async {
            let mut child = self.spawn(connection, &args, Stdio::null())?;
            let said = tokio::spawn(read(child.stderr.take()));
            let on = |kind| signal(kind).map_err(system);
            Ok(Running {
                child,
                what: format!("virsh {}", args.first().unwrap_or(&"")),
                said,
                signals: [on(SignalKind::interrupt())?, on(SignalKind::terminate())?],
            })
        })
    }

    /// Waits for its end no longer than `until`.
    pub(super) fn wait(&self, running: &mut Running, until: Instant) -> Result<Turn, VmmError> {
        let [interrupt, terminate] = &mut running.signals;
        self.runtime.block_on(async {
            let status = tokio::select! {
                status = running.child.wait() => status,
                _ = interrupt.recv() => return Ok(Turn::Interrupted),
                _ = terminate.recv() => return Ok(Turn::Interrupted),
                () = sleep_until(until.into()) => return Ok(Turn::Pending),
            };
            let status =
                status.map_err(|error| VmmError::Gone(format!("{}: {error}", running.what)))?;
            let said = timeout(WORDS_TIME, &mut running.said).await;
            let said = said.ok().and_then(Result::ok).unwrap_or_default();
            Ok(Turn::Ended(failure(status, &said)))
        })
    }

    /// Ends it, whatever it does.
    pub(super) fn kill(&self, mut running: Running) {
        // It has ended by itself, or is stuck in the kernel: nothing is left to be done.
        let _ = (self.runtime).block_on(async { timeout(WORDS_TIME, running.child.kill()).await });
    }

    fn spawn(
        &self,
        connection: Option<&str>,
        args: &[&str],
        stdout: Stdio,
    ) -> Result<Child, VmmError> {
        let mut command = Command::new(&self.program);
        command.arg("--quiet");
        if let Some(uri) = connection {
            command.args(["--connect", uri]);
        }
        command
            .args(args)
            // Its words are read.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().map_err(|error| VmmError::Program {
            program: self.program.clone(),
            why: error.to_string(),
        })
    }
}

fn system(error: std::io::Error) -> VmmError {
    VmmError::System(error.to_string())
}

/// What comes out of a pipe, as far as it is kept; the rest is passed over.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut text = Vec::new();
    if let Some(mut pipe) = pipe {
        let mut kept = (&mut pipe).take(MESSAGE_LEN as u64);
        // An error is an end, too.
        let _ = kept.read_to_end(&mut text).await;
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Why a command has failed, if it has.
fn failure(status: ExitStatus, said: &str) -> Option<String> {
    if status.success() {
        return None;
    }
    let lines = said.lines().map(|line| {
        let line = line.trim();
        line.strip_prefix("error: ").unwrap_or(line)
    });
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    match words(&lines.join("; ")) {
        said if said.is_empty() => Some(format!("it ended with {status}")),
        said => Some(said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_failure_is_told_in_its_words() {
        let said = "error: failed to get domain 'nope'\n\nerror: no\x1b domain\n";
        let failed = ExitStatus::from_raw(1 << 8);
        let why = failure(failed, said).unwrap();
        assert_eq!(why, "failed to get domain 'nope'; no  domain");
        assert_eq!(
            failure(ExitStatus::from_raw(9), "").unwrap(),
            "it ended with signal: 9 (SIGKILL)"
        );
        assert_eq!(failure(ExitStatus::from_raw(0), said), None);
    }
}
