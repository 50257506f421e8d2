//! cloud-hypervisor's events, as it writes them to a file.
//!
//! Source: cloud-hypervisor, `--event-monitor path=PATH` and event_monitor/src/lib.rs: JSON objects one after another,
//! each over several lines, with an empty line after it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Deserializer, Value};

use super::{MESSAGE_LEN, VmmError};

/// Something that happened in cloud-hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Event {
    /// Since the VMM was started.
    pub(super) timestamp: Time,
    /// What it is about, such as `vm`.
    pub(super) source: String,
    /// What has happened.
    pub(super) event: String,
    /// What more there is to say.
    #[serde(default)]
    pub(super) properties: Value,
}

/// A span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Time {
    secs: u64,
    nanos: u32,
}

impl Time {
    /// In milliseconds.
    pub(super) fn as_millis(self) -> u64 {
        let millis = self.secs.saturating_mul(1000);
        millis.saturating_add(u64::from(self.nanos / 1_000_000))
    }
}

/// The file, read on as it grows.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: File,
    /// Read, and no whole event yet.
    buffer: Vec<u8>,
}

impl Events {
    /// Opens the file. A pipe is none: what one reader gets, another does not.
    pub(super) fn open(path: &Path) -> Result<Self, VmmError> {
        let open = || {
            if !std::fs::metadata(path)?.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            File::open(path)
        };
        Ok(Self {
            file: open().map_err(|error| failed(path, &error))?,
            path: path.to_owned(),
            buffer: Vec::new(),
        })
    }

    /// Passes over what has happened so far.
    pub(super) fn forget(&mut self) -> Result<(), VmmError> {
        self.buffer.clear();
        let end = self.file.seek(SeekFrom::End(0));
        end.map(drop).map_err(|error| failed(&self.path, &error))
    }

    /// What has happened since the last look.
    pub(super) fn fresh(&mut self) -> Result<Vec<Event>, VmmError> {
        let mut next = (&self.file).take(MESSAGE_LEN as u64);
        next.read_to_end(&mut self.buffer)
            .map_err(|error| failed(&self.path, &error))?;
        let mut stream = Deserializer::from_slice(&self.buffer).into_iter();
        let (mut events, mut done) = (Vec::new(), 0);
        while let Some(event) = stream.next() {
            match event {
                Ok(event) => events.push(event),
                // The rest of it is being written.
                Err(error) if error.is_eof() => break,
                Err(error) => return Err(failed(&self.path, &error)),
            }
            done = stream.byte_offset();
        }
        self.buffer.drain(..done);
        if self.buffer.len() > MESSAGE_LEN {
            return Err(VmmError::TooLong);
        }
        Ok(events)
    }
}

fn failed(path: &Path, error: &impl ToString) -> VmmError {
    VmmError::Events {
        path: path.to_owned(),
        why: super::words(&error.to_string()),
    }
}
