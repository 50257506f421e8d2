//! `tcpdump` at a device: what a [`super::Socket`] cannot tell, which is how frames are tagged.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, ensure};

use crate::lab::process::{Lifetime, Process};
use crate::lab::{Namespace, PATIENCE, find_program, tail, wait_until};

/// Bytes in front of a file of frames, and in front of each (pcap-savefile(5)).
const FILE_HEADER: usize = 24;
const FRAME_HEADER: usize = 16;
const MAGIC: u32 = 0xa1b2_c3d4;

/// A running `tcpdump`, for frames that come in at a device.
pub struct Tcpdump {
    _process: Process,
    frames: Receiver<Vec<u8>>,
}

impl Tcpdump {
    /// Starts it at a device of a namespace, and waits until it listens.
    pub fn start(dir: &Path, namespace: &Namespace, device: &str) -> Result<Self> {
        let program = find_program("tcpdump").context("no tcpdump (package tcpdump)")?;
        let line = namespace.prefix();
        let name = format!("tcpdump-{device}");
        let first = Path::new(&line[0]);
        let mut process = Process::start(dir, &name, first, Lifetime::Owner, |command| {
            command
                .args(&line[1..])
                .arg(program)
                .args(["-i", device, "-Q", "in", "-U", "--immediate-mode"])
                .args(["-n", "-Z", "root", "-w", "-"])
                .stdout(Stdio::piped());
        })?;
        let log = process.log().to_owned();
        wait_until("tcpdump", PATIENCE, || {
            process.check_running()?;
            Ok(tail(&log, 20).contains("listening on"))
        })?;
        let output = process.child().stdout.take().context("no output")?;
        let (sender, frames) = channel();
        std::thread::spawn(move || {
            let outcome = read(output, |frame| sender.send(frame).is_ok());
            if let Err(e) = outcome {
                // Beside what tcpdump itself says.
                let _ = writeln!(std::io::stderr(), "      tcpdump: {e:#}");
            }
        });
        Ok(Self {
            _process: process,
            frames,
        })
    }

    /// The next frame with its tags.
    pub fn recv(&self) -> Result<Vec<u8>> {
        let frame = self.frames.recv_timeout(PATIENCE);
        frame.context("tcpdump saw no frame")
    }
}

/// Hands each frame to `take` until that does not want more, or there are none.
fn read(mut from: impl Read, mut take: impl FnMut(Vec<u8>) -> bool) -> Result<()> {
    let mut header = [0; FILE_HEADER];
    from.read_exact(&mut header)?;
    ensure!(header[..4] == MAGIC.to_ne_bytes(), "not a file of frames");
    let mut header = [0; FRAME_HEADER];
    while from.read_exact(&mut header).is_ok() {
        let length = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let mut frame = vec![0; length as usize];
        from.read_exact(&mut frame)?;
        if !take(frame) {
            break;
        }
    }
    Ok(())
}
