//! How the host runs commands in a guest: a request and a reply over a serial line.
//!
//! ```text
//! guest → host   #ready\n                         once, when the guest is up
//! host → guest   RUN id length\n  command
//! guest → host   #done id status length\n  output
//! ```
//! The command runs under `sh -c`; `output` is its standard output and error together. Lengths
//! are in bytes. A command may leave programs running in the background: the reply comes when the shell ends.
//! Whatever else the line carries before a `#` line (firmware, a reboot) is skipped.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What a command gave back.
#[derive(Debug)]
pub struct Output {
    /// Exit status; 128 plus the signal number when a signal ended it.
    pub status: i32,
    /// Standard output and error together.
    pub text: String,
}

/// The host's end.
#[derive(Debug)]
pub struct Agent {
    line: BufReader<UnixStream>,
    next_id: u32,
}

impl Agent {
    /// Over a connected socket.
    pub fn new(line: UnixStream) -> Self {
        Self {
            line: BufReader::new(line),
            next_id: std::process::id(),
        }
    }

    /// Connects to the socket of a guest that somebody else starts, once it is there.
    pub fn connect(path: &Path) -> Result<Self> {
        let mut stream = Err(io::ErrorKind::NotFound.into());
        let what = format!("a guest at {}", path.display());
        super::wait_until(&what, super::PATIENCE, || {
            stream = UnixStream::connect(path);
            Ok(stream.is_ok())
        })?;
        Ok(Self::new(stream?))
    }

    /// Waits until the guest has booted.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self
            .read_mark(deadline)
            .context("waiting for the guest to boot")?
            != "#ready"
        {}
        Ok(())
    }

    /// Runs a command in the guest.
    pub fn exec(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id.to_string();
        let request = format!("RUN {id} {}\n{command}", command.len());
        self.line.get_mut().write_all(request.as_bytes())?;
        loop {
            let mark = self
                .read_mark(deadline)
                .with_context(|| format!("running `{command}`"))?;
            let words: Vec<&str> = mark.split(' ').collect();
            match words[..] {
                ["#done", got, status, length] if got == id => {
                    let mut text = vec![0; length.parse()?];
                    self.read_bytes(&mut text, deadline)?;
                    let text = String::from_utf8_lossy(&text).into_owned();
                    return Ok(Output {
                        status: status.parse()?,
                        text,
                    });
                }
                ["#done", _, _, length] => {
                    // The late reply to a command that was given up.
                    self.read_bytes(&mut vec![0; length.parse()?], deadline)?;
                }
                ["#ready"] => bail!("the guest rebooted while running `{command}`"),
                _ => {}
            }
        }
    }

    /// The next line from its `#` on.
    fn read_mark(&mut self, deadline: Instant) -> Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            self.arm(deadline)?;
            let got = match self.line.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                got => got.map_err(explain)?,
            };
            if got.is_empty() {
                bail!("QEMU has closed the guest's serial line");
            }
            let end = got
                .iter()
                .position(|&byte| byte == b'\n')
                .map_or(got.len(), |at| at + 1);
            line.extend_from_slice(&got[..end]);
            self.line.consume(end);
        }
        let line = String::from_utf8_lossy(&line);
        let start = line.find('#').unwrap_or(line.len());
        Ok(line[start..].trim_end().to_string())
    }

    fn read_bytes(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            self.arm(deadline)?;
            match self.line.read(&mut bytes[done..]) {
                Ok(0) => bail!("QEMU has closed the guest's serial line"),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(explain(error)),
            }
        }
        Ok(())
    }

    fn arm(&self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no answer from the guest in time");
        }
        Ok(self.line.get_ref().set_read_timeout(Some(left))?)
    }
}

fn explain(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => anyhow::anyhow!("no answer from the guest in time"),
        _ => error.into(),
    }
}

/// The guest's end: obeys requests from `input` until it closes.
pub fn serve(input: impl Read, mut output: impl Write, scratch: &Path) -> Result<()> {
    let mut input = BufReader::new(input);
    output.write_all(b"\n#ready\n")?;
    output.flush()?;
    loop {
        let mut header = String::new();
        if input.read_line(&mut header)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = header.split_whitespace().collect();
        let ["RUN", id, length] = words[..] else {
            continue;
        };
        let mut command = vec![0; length.parse()?];
        input.read_exact(&mut command)?;
        let (status, text) = run(&String::from_utf8_lossy(&command), scratch);
        output.write_all(format!("\n#done {id} {status} {}\n", text.len()).as_bytes())?;
        output.write_all(&text)?;
        output.flush()?;
    }
}

/// Output goes to a file, not a pipe: a program left in the background would keep a pipe open.
fn run(command: &str, scratch: &Path) -> (i32, Vec<u8>) {
    let attempt = || -> Result<(i32, Vec<u8>)> {
        let path = scratch.join("agent-output");
        let file = File::create(&path)?;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .stdin(std::process::Stdio::null());
        let status = shell.stdout(file.try_clone()?).stderr(file).status()?;
        let code = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
        Ok((code, std::fs::read(path)?))
    };
    attempt().unwrap_or_else(|error| (127, format!("{error:#}\n").into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::PATIENCE;

    fn agent() -> (Agent, std::thread::JoinHandle<()>, tempfile::TempDir) {
        let (host, guest) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().to_path_buf();
        let server = std::thread::spawn(move || {
            let mut noise = guest.try_clone().unwrap();
            noise
                .write_all(b"SeaBIOS (version rel)\r\nBooting")
                .unwrap();
            serve(guest.try_clone().unwrap(), guest, &scratch).unwrap();
        });
        let mut agent = Agent::new(host);
        agent.wait_ready(PATIENCE).unwrap();
        (agent, server, dir)
    }

    #[test]
    fn output_and_status_come_back() {
        let (mut agent, server, _dir) = agent();
        let output = agent
            .exec("echo out; echo '#done 1 1 1' >&2; exit 7", PATIENCE)
            .unwrap();
        assert_eq!(
            (output.status, output.text.as_str()),
            (7, "out\n#done 1 1 1\n")
        );
        let output = agent.exec("printf 'a\\nb'", PATIENCE).unwrap();
        assert_eq!((output.status, output.text.as_str()), (0, "a\nb"));
        let output = agent.exec("kill -9 $$", PATIENCE).unwrap();
        assert_eq!(output.status, 137);
        drop(agent);
        server.join().unwrap();
    }

    #[test]
    fn the_reply_does_not_wait_for_the_background() {
        let (mut agent, server, _dir) = agent();
        let output = agent.exec("sleep 1000 & echo $!", PATIENCE).unwrap();
        let pid = output.text.trim().to_string();
        let output = agent.exec(&format!("kill {pid}"), PATIENCE).unwrap();
        assert_eq!(output.status, 0);
        drop(agent);
        server.join().unwrap();
    }

    #[test]
    fn a_late_reply_is_not_taken_for_the_next() {
        let (mut agent, server, dir) = agent();
        let gate = dir.path().join("gate");
        let wait = format!(
            "until [ -e {} ]; do sleep 0.01; done; echo late",
            gate.display()
        );
        agent.exec(&wait, Duration::from_millis(50)).unwrap_err();
        File::create(gate).unwrap();
        assert_eq!(agent.exec("echo next", PATIENCE).unwrap().text, "next\n");
        drop(agent);
        server.join().unwrap();
    }
}
