//! `tandem capture` on a rig's daemon, and a reader of what it writes.
//!
//! The reader takes what the specification (draft-ietf-opsawg-pcapng) allows for one interface and
//! little-endian numbers, and panics on anything else.

use std::io::Read;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use anyhow::{Context, Result, bail, ensure};

use super::rig::Rig;
use super::wire::PATIENCE;
use crate::lab::built_program;
use crate::lab::process::{Lifetime, Process, signal};

/// A frame of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// `from_vm` or `to_vm`.
    pub direction: &'static str,
    /// What was captured of it.
    pub bytes: Vec<u8>,
    /// Its length.
    pub len: u32,
    /// Its comment, empty if it has none.
    pub comment: String,
    /// Frames that the capture lost before it.
    pub lost: u64,
    /// Nanoseconds since 1970.
    pub at: u64,
}

/// What a capture counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames seen.
    pub received: u64,
    /// Frames the filter let through.
    pub accepted: u64,
    /// Frames lost.
    pub lost: u64,
}

/// What is read of a capture by and by.
#[derive(Debug, Default)]
pub struct Reading {
    buffer: Vec<u8>,
    /// The frames, until somebody takes them.
    pub frames: Vec<Frame>,
    /// What was counted, as said last.
    pub statistics: Option<Statistics>,
    /// Name and filter of the interface.
    pub interface: Option<(String, Option<String>)>,
}

impl Reading {
    /// Reads a whole capture.
    pub fn of(bytes: &[u8]) -> Self {
        let mut reading = Self::default();
        reading.add(bytes);
        assert!(reading.buffer.is_empty(), "it ends within a block");
        reading
    }

    /// Reads on.
    pub fn add(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        let mut done = 0;
        while self.buffer.len() >= done + 12 {
            let rest = &self.buffer[done..];
            let len = word(rest, 4) as usize;
            assert!(len >= 12 && len.is_multiple_of(4), "a block of {len} bytes");
            if rest.len() < len {
                break;
            }
            assert_eq!(word(rest, len - 4) as usize, len, "both lengths");
            let block = rest[..len - 4].to_vec();
            self.take(word(&block, 0), &block[8..]);
            done += len;
        }
        self.buffer.drain(..done);
    }

    fn take(&mut self, kind: u32, body: &[u8]) {
        match kind {
            0x0a0d_0d0a => assert_eq!(word(body, 0), 0x1a2b_3c4d, "the byte order"),
            1 => {
                assert_eq!(word(body, 0) & 0xffff, 1, "Ethernet");
                let options = options(&body[8..]);
                assert_eq!(option(&options, 9), Some(&[9][..]), "nanoseconds");
                let name = String::from_utf8(option(&options, 2).expect("a name").to_vec());
                let filter = option(&options, 11).map(|f| String::from_utf8_lossy(&f[1..]).into());
                self.interface = Some((name.expect("UTF-8"), filter));
            }
            5 => {
                let options = options(&body[12..]);
                self.statistics = Some(Statistics {
                    received: number(&options, 4).expect("isb_ifrecv"),
                    lost: number(&options, 5).expect("isb_ifdrop"),
                    accepted: number(&options, 6).expect("isb_filteraccept"),
                });
            }
            6 => self.frames.push(frame(body)),
            other => panic!("a block of type {other}"),
        }
    }
}

fn frame(body: &[u8]) -> Frame {
    let captured = word(body, 12) as usize;
    let options = options(&body[20 + captured.next_multiple_of(4)..]);
    let flags = word(option(&options, 2).expect("epb_flags"), 0);
    let comment = option(&options, 1).unwrap_or_default();
    Frame {
        direction: match flags {
            1 => "from_vm",
            2 => "to_vm",
            _ => panic!("flags {flags:#x}"),
        },
        bytes: body[20..20 + captured].to_vec(),
        len: word(body, 16),
        comment: String::from_utf8(comment.to_vec()).expect("UTF-8"),
        lost: number(&options, 4).unwrap_or_default(),
        at: u64::from(word(body, 4)) << 32 | u64::from(word(body, 8)),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn options(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    loop {
        let head = word(bytes, 0);
        let (code, len) = (head as u16, (head >> 16) as usize);
        if code == 0 {
            assert_eq!((len, bytes.len()), (0, 4), "the end of the options");
            return all;
        }
        all.push((code, &bytes[4..4 + len]));
        bytes = &bytes[4 + len.next_multiple_of(4)..];
    }
}

fn option<'a>(options: &[(u16, &'a [u8])], code: u16) -> Option<&'a [u8]> {
    let mut found = options.iter().filter(|(c, _)| *c == code);
    let first = found.next().map(|(_, value)| *value);
    assert!(found.next().is_none(), "option {code} twice");
    first
}

fn number(options: &[(u16, &[u8])], code: u16) -> Option<u64> {
    let bytes = option(options, code)?;
    Some(u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
}

/// A running `tandem capture -w -`.
pub struct Capture {
    /// The program.
    pub process: Process,
    pieces: Receiver<Vec<u8>>,
    reading: Reading,
}

impl Capture {
    /// Starts it; when this returns it captures.
    pub fn start(rig: &Rig, port: &str, arguments: &[&str]) -> Result<Self> {
        let socket = rig.daemon.run_dir().join("api.sock");
        let mut process = Process::start(
            rig.dir(),
            &format!("capture-{port}"),
            &built_program("tandem")?,
            Lifetime::Owner,
            |command| {
                command.arg("--api-socket").arg(socket);
                command.args(["capture", port, "-w", "-"]).args(arguments);
                command.stdout(Stdio::piped());
            },
        )?;
        let mut out = process.child().stdout.take().context("no pipe")?;
        let (sender, pieces) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut this = Self {
            process,
            pieces,
            reading: Reading::default(),
        };
        while this.reading.interface.is_none() {
            ensure!(this.read()?, "it ended: {}", this.said()?);
        }
        Ok(this)
    }

    /// Reads a piece; false: there are no more.
    fn read(&mut self) -> Result<bool> {
        match self.pieces.recv_timeout(PATIENCE) {
            Ok(piece) => self.reading.add(&piece),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) => bail!("nothing comes: {:?}", self.reading),
        }
        Ok(true)
    }

    /// Waits for the next `count` frames.
    pub fn frames(&mut self, count: usize) -> Result<Vec<Frame>> {
        while self.reading.frames.len() < count {
            let have = self.reading.frames.len();
            ensure!(self.read()?, "it ended after {have}: {}", self.said()?);
        }
        Ok(self.reading.frames.drain(..count).collect())
    }

    /// Waits for the next frame.
    pub fn frame(&mut self) -> Result<Frame> {
        Ok(self.frames(1)?.remove(0))
    }

    /// Sends it a signal, `INT` or another.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        signal(self.process.pid(), name)
    }

    /// Waits for its end; what is left of what it wrote, how it ended, and what it said.
    pub fn end(mut self) -> Result<(Reading, ExitStatus, String)> {
        while self.read()? {}
        let status = self.process.wait(PATIENCE)?;
        let said = self.said()?;
        assert!(self.reading.buffer.is_empty(), "it ends within a block");
        Ok((self.reading, status, said))
    }

    fn said(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.process.log())?)
    }
}
