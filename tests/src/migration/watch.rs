//! Who said and heard what on the hosts' uplinks: which host a frame to the VM went to, and which one
//! frames of the VM came from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use super::prober::Echo;
use crate::uplink::Socket;
use crate::uplink::socket::Heard;

/// How long a thread that is to stop may go on listening.
const TURN: Duration = Duration::from_millis(50);
/// EtherTypes of what says where a station is: ARP (RFC 826), RARP (RFC 903).
const ARP: [u8; 2] = [0x08, 0x06];
const RARP: [u8; 2] = [0x80, 0x35];

/// A frame on the way to the VM or from it.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// When, since 1970.
    pub at: Duration,
    /// The host's number.
    pub host: usize,
    /// It came from the host; else it went there.
    pub from_vm: bool,
    /// What it was.
    pub kind: Kind,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of a prober.
    Echo(Echo),
    /// ARP to all, or RARP: says where the VM is.
    Announcement,
    /// To one station.
    Unicast,
    /// To several.
    Multicast,
}

fn kind(frame: &[u8]) -> Kind {
    let multicast = frame[0] & 1 == 1;
    let says_where = frame[12..14] == ARP || frame[12..14] == RARP;
    match Echo::parse(frame) {
        Some(echo) => Kind::Echo(echo),
        None if says_where && multicast => Kind::Announcement,
        None if multicast => Kind::Multicast,
        None => Kind::Unicast,
    }
}

/// Threads that listen at the switch's end of each host's cable.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Sighting>>>>,
}

impl Watch {
    /// Listens for frames to and from this address, at one socket for each host: what is sent there
    /// goes to the host, what comes in is from it.
    pub fn start(vm: [u8; 6], hosts: impl IntoIterator<Item = Socket>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (host, socket) in hosts.into_iter().enumerate() {
            let stop = Arc::clone(&stop);
            let thread = std::thread::spawn(move || listen(socket, &stop, host, vm));
            threads.push(thread);
        }
        Self { stop, threads }
    }

    /// All that was seen, in order.
    pub fn stop(mut self) -> Result<Vec<Sighting>> {
        self.stop.store(true, Ordering::Release);
        let mut all = Vec::new();
        for thread in self.threads.drain(..) {
            let seen = thread.join().ok().context("a watcher panicked")?;
            all.extend(seen?);
        }
        all.sort_by_key(|sighting| sighting.at);
        Ok(all)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn listen(
    mut socket: Socket,
    stop: &AtomicBool,
    host: usize,
    vm: [u8; 6],
) -> Result<Vec<Sighting>> {
    let mut seen = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let heard = socket.recv(TURN)?.filter(|heard| heard.frame.len() >= 14);
        let Some(Heard {
            at,
            outgoing,
            frame,
        }) = heard
        else {
            continue;
        };
        let address = if outgoing { &frame[..6] } else { &frame[6..12] };
        if address == vm {
            seen.push(Sighting {
                at,
                host,
                from_vm: !outgoing,
                kind: kind(&frame),
            });
        }
    }
    Ok(seen)
}
