//! A child process that cannot outlive its owner.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until its owner ends, however that happens.
    Owner,
    /// Until somebody ends it, once it is [released](Process::release).
    Detached,
}

/// A running program with a log. Killed on drop.
///
/// The kernel kills it, too, when the thread that started it ends in any way, unless it is detached (`PR_SET_PDEATHSIG`,
/// set by setpriv(1) so that no code runs between fork and exec).
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    released: bool,
}

impl Process {
    /// Starts `program` with what `configure` adds to its command line. Its output goes to
    /// `DIR/NAME.log`, unless `configure` takes it elsewhere.
    pub fn start(
        dir: &Path,
        name: &str,
        program: &Path,
        lifetime: Lifetime,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let mut command = match lifetime {
            Lifetime::Owner => Command::new("setpriv"),
            Lifetime::Detached => Command::new("setsid"),
        };
        if lifetime == Lifetime::Owner {
            command.args(["--pdeathsig", "KILL", "--"]);
        }
        command.arg(program);
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        configure(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self {
            name: name.to_string(),
            log,
            child,
            released: false,
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// An error when the program has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!(
                    "{} ended ({status}):\n{}",
                    self.name,
                    super::tail(&self.log, 30)
                )
            }
        }
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        signal(self.pid(), "TERM")?;
        self.wait(limit)
    }

    /// Waits until it has ended.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} did not end within {} s:\n{}",
                    self.name,
                    limit.as_secs(),
                    super::tail(&self.log, 30)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it at once (SIGKILL), as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Clock ticks of CPU time used so far, all threads, user and system (proc(5), 100 a second).
    pub fn cpu_ticks(&self) -> Result<u64> {
        cpu_ticks(self.pid())
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Lets the program go on after this value is dropped.
    pub fn release(&mut self) {
        self.released = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.released {
            // Already gone is as good.
            let _ = self.kill();
        }
    }
}

/// Clock ticks of CPU time that a process has used so far, as [`Process::cpu_ticks`].
pub fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // Fields 14 and 15 of the line; the first after the name is field 3.
    let ticks = |field: usize| -> Result<u64> {
        Ok(fields
            .get(field - 3)
            .context("short /proc/PID/stat")?
            .parse()?)
    };
    Ok(ticks(14)? + ticks(15)?)
}

/// Sends a signal by name. Through the shell, whose `kill` is always there.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()])
        .status()?;
    if !status.success() {
        bail!("no process {pid} to send SIG{name} to");
    }
    Ok(())
}
