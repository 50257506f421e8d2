//! Publishing what ports and switches do, as soon as they do it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use super::{Core, Port, report};
use crate::events::{Event, EventKind, Events};

/// The least time between two looks: a VMM that sends messages without end asks for one each time.
const PAUSE: Duration = Duration::from_millis(10);
/// Events of one port at once, and each second after that. One that goes up and down without end
/// leaves room for the others' events.
const BURST: f64 = 16.0;
const EACH_SECOND: f64 = 4.0;

/// Asks for a look at all ports. Many requests that come before it make one look.
#[derive(Clone)]
pub(super) struct Notifier {
    asked: Arc<Asked>,
    wake: SyncSender<()>,
}

/// Where the requests arrive.
pub(super) struct Notified {
    asked: Arc<Asked>,
    wake: Receiver<()>,
}

#[derive(Default)]
struct Asked {
    look: AtomicBool,
    stop: AtomicBool,
}

impl Notifier {
    pub(super) fn new() -> (Self, Notified) {
        let asked = Arc::<Asked>::default();
        let (wake, woken) = mpsc::sync_channel(1);
        let notified = Notified {
            asked: Arc::clone(&asked),
            wake: woken,
        };
        (Self { asked, wake }, notified)
    }

    /// Asks for a look soon. Never blocks.
    pub(super) fn notify(&self) {
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

impl Notified {
    /// Waits for a request, but not longer than until `end`. False: it is time to stop.
    pub(super) fn wait(&self, end: Instant) -> bool {
        let go_on = || !self.asked.stop.load(Ordering::Acquire);
        let left = end.saturating_duration_since(Instant::now());
        if self.wake.recv_timeout(left).is_ok() && go_on() {
            std::thread::sleep(PAUSE.min(left));
        }
        // With all that was done before the requests.
        self.asked.look.swap(false, Ordering::AcqRel);
        go_on()
    }
}

/// What has been published of a port.
pub(super) struct Published {
    up: bool,
    connected: bool,
    connects: u64,
    /// Events that may be published now, at the time `at`.
    left: f64,
    at: Instant,
}

impl Default for Published {
    fn default() -> Self {
        Self {
            up: false,
            connected: false,
            connects: 0,
            left: BURST,
            at: Instant::now(),
        }
    }
}

impl Published {
    /// Publishes that a port which is about to be ended is not what it was.
    pub(super) fn ended(&self, name: &str, events: &Events) {
        let words = || Some("the port is ended".to_owned());
        if self.up {
            events.publish(Event::of_port(EventKind::PortDown, name).saying(words()));
        }
        if self.connected {
            events.publish(Event::of_port(EventKind::VmmDisconnected, name).saying(words()));
        }
    }

    fn may_publish(&mut self) -> bool {
        let now = Instant::now();
        let more = EACH_SECOND * (now - self.at).as_secs_f64();
        (self.left, self.at) = ((self.left + more).min(BURST), now);
        self.left >= 1.0
    }
}

impl Port {
    /// Publishes what is not as it was when last published.
    pub(super) fn publish(&mut self, events: &Events) {
        if !self.published.may_publish() {
            return;
        }
        let (reason, session) = report::state(self);
        let (up, session) = (reason.is_none(), session.unwrap_or_default());
        let ended = |nth| {
            let last = session.last_end.as_ref().filter(|(of, _)| *of == nth);
            last.and_then(|(_, error)| error.clone())
        };
        let old = &self.published;
        let another = session.connects != old.connects;
        let mut now = Vec::new();
        if old.up && (!up || another) {
            let words = reason.or_else(|| Some("another VMM has connected".to_owned()));
            now.push((EventKind::PortDown, words));
        }
        if old.connected && (another || !session.connected) {
            now.push((EventKind::VmmDisconnected, ended(old.connects)));
        }
        if another {
            now.push((EventKind::VmmConnected, None));
            if !session.connected {
                now.push((EventKind::VmmDisconnected, ended(session.connects)));
            }
        }
        if up && (!old.up || another) {
            now.push((EventKind::PortUp, None));
        }
        self.published.left -= now.len() as f64;
        for (kind, words) in now {
            events.publish(Event::of_port(kind, &self.config.name).saying(words));
        }
        let published = &mut self.published;
        (published.up, published.connected) = (up, session.connected);
        published.connects = session.connects;
    }
}

impl Core {
    /// Publishes addresses that are seen on two ports; `known` are those that were before.
    pub(super) fn publish_duplicates(&self, known: &mut BTreeSet<(String, u16, String)>) {
        let mut now = BTreeSet::new();
        for (name, switch) in self.switches() {
            for duplicate in switch.duplicates() {
                let key = (name.clone(), duplicate.vlan, duplicate.mac.to_string());
                if !known.contains(&key) {
                    let port = |id| {
                        switch
                            .port(id)
                            .map_or_else(|| "-".to_owned(), |port| port.name)
                    };
                    let [one, other] = duplicate.ports.map(port);
                    let vlan = match duplicate.vlan {
                        0 => String::new(),
                        vlan => format!(" in VLAN {vlan}"),
                    };
                    let words = format!(
                        "{}{vlan} is seen on ports {one} and {other}; give each VM its own",
                        duplicate.mac
                    );
                    let mut event = Event::new(EventKind::DuplicateMac).saying(words);
                    event.switch = Some(name.clone());
                    self.options.events.publish(event);
                }
                now.insert(key);
            }
        }
        *known = now;
    }
}
