//! Telling what ports and switches do, as soon as they do it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use super::{Core, Port, report};
use crate::events::{Event, EventKind, Events};
use crate::port::lock;

/// Asks for a look at all ports. Many requests that come before it make one look.
#[derive(Clone)]
pub(super) struct Look {
    asked: Arc<Asked>,
    wake: SyncSender<()>,
}

/// Where the requests arrive.
pub(super) struct Looks {
    asked: Arc<Asked>,
    wake: Receiver<()>,
}

#[derive(Default)]
struct Asked {
    look: AtomicBool,
    stop: AtomicBool,
}

impl Look {
    pub(super) fn new() -> (Self, Looks) {
        let asked = Arc::<Asked>::default();
        let (wake, woken) = mpsc::sync_channel(1);
        let looks = Looks {
            asked: Arc::clone(&asked),
            wake: woken,
        };
        (Self { asked, wake }, looks)
    }

    /// Asks for a look soon. Never blocks.
    pub(super) fn soon(&self) {
        if !self.asked.look.swap(true, Ordering::AcqRel) {
            let _ = self.wake.try_send(());
        }
    }

    /// Asks for the end.
    pub(super) fn stop(&self) {
        self.asked.stop.store(true, Ordering::Release);
        let _ = self.wake.try_send(());
    }
}

impl Looks {
    /// Waits for a request, but not longer than until `end`. False: it is time to stop.
    pub(super) fn wait(&self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let _ = self.wake.recv_timeout(left);
        self.asked.look.store(false, Ordering::Release);
        !self.asked.stop.load(Ordering::Acquire)
    }
}

/// What listeners have been told of a port.
#[derive(Default)]
pub(super) struct Told {
    up: bool,
    connected: bool,
    connects: u64,
}

impl Told {
    /// Tells that a port which is about to be ended is not what it was told to be.
    pub(super) fn ended(&self, name: &str, events: &Events) {
        let words = || Some("the port is ended".to_owned());
        if self.up {
            events.tell(Event::of_port(EventKind::PortDown, name).saying(words()));
        }
        if self.connected {
            events.tell(Event::of_port(EventKind::VmmDisconnected, name).saying(words()));
        }
    }
}

impl Port {
    /// Tells what is not as it was told last.
    pub(super) fn tell(&mut self, events: &Events) {
        let (reason, session) = report::state(self);
        let name = &self.config.name;
        let told = &mut self.told;
        let tell = |kind, words| events.tell(Event::of_port(kind, name).saying(words));
        let up = reason.is_none();
        let session = session.unwrap_or_default();
        let other = session.connects != told.connects;
        if told.up && (!up || other && told.connected) {
            let words = reason.or_else(|| Some("another VMM has connected".to_owned()));
            tell(EventKind::PortDown, words);
            told.up = false;
        }
        if told.connected && (!session.connected || other) {
            tell(EventKind::VmmDisconnected, session.last_error);
            told.connected = false;
        }
        if session.connected && !told.connected {
            tell(EventKind::VmmConnected, None);
        }
        if up && !told.up {
            tell(EventKind::PortUp, None);
        }
        *told = Told {
            up,
            connected: session.connected,
            connects: session.connects,
        };
    }
}

impl Core {
    /// Tells of addresses that are seen on two ports, once as long as they are.
    pub(super) fn tell_duplicates(&self) {
        let mut told: MutexGuard<'_, _> = lock(&self.duplicates);
        let mut now = std::collections::BTreeSet::new();
        for (name, switch) in &self.switches {
            for duplicate in switch.duplicates() {
                now.insert((name.clone(), duplicate.mac.to_string()));
            }
        }
        for (switch, mac) in now.difference(&told) {
            let words = format!("{mac} is seen on two ports; one of the two VMs is cut off");
            self.options.events.tell(Event {
                switch: Some(switch.clone()),
                ..Event::new(EventKind::DuplicateMac).saying(words)
            });
        }
        *told = now;
    }
}
