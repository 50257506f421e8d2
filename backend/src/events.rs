//! What happens, told to whoever listens: the last [`KEPT`] events, each with its number.
//!
//! Whoever tells never waits. A listener reads on from the number it has got to; one that is too
//! slow is told how many events it missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

/// Events that are kept for those who come back or are slow.
const KEPT: usize = 1024;

/// What kind of event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A port was made.
    PortAdded,
    /// A port has other settings.
    PortChanged,
    /// A port was ended.
    PortRemoved,
    /// A port carries frames.
    PortUp,
    /// A port carries no frames any more; the detail says why.
    PortDown,
    /// A VMM has connected.
    VmmConnected,
    /// A VMM is gone; the detail says why, if that is known.
    VmmDisconnected,
    /// File and command line were read again; the detail says how many ports differ.
    Reloaded,
    /// They were, and refused: the first thing that is wrong with them.
    ReloadRefused,
    /// An address is seen on two ports of a switch at once.
    DuplicateMac,
    /// The listener was too slow, or was away for too long: events before this one are lost to it.
    Missed,
}

impl EventKind {
    /// Its name, as JSON has it.
    pub fn name(self) -> String {
        let json = serde_json::to_value(self).unwrap_or_default();
        json.as_str().unwrap_or_default().to_owned()
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number, from 1; each daemon counts anew.
    pub sequence: u64,
    /// When, in UTC (RFC 3339).
    pub time: String,
    /// What.
    pub event: EventKind,
    /// The port, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The switch, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<String>,
    /// More, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Event {
    /// An event of now; it gets its number when it is told.
    pub fn new(event: EventKind) -> Self {
        Self {
            sequence: 0,
            time: Timestamp::now().to_string(),
            event,
            port: None,
            switch: None,
            detail: None,
        }
    }

    /// An event of now about a port.
    pub fn of_port(event: EventKind, port: &str) -> Self {
        Self {
            port: Some(port.to_owned()),
            ..Self::new(event)
        }
    }

    /// The same with more words.
    #[must_use]
    pub fn saying(self, detail: impl Into<Option<String>>) -> Self {
        Self {
            detail: detail.into(),
            ..self
        }
    }
}

/// The events of a daemon.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<Kept>,
    /// The number of the last event; `None` when there will be no more.
    last: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            last: watch::Sender::new(Some(0)),
        }
    }
}

impl Events {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells an event.
    pub fn tell(&self, mut event: Event) {
        let mut kept = self.kept();
        kept.last += 1;
        event.sequence = kept.last;
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(Arc::new(event));
        // Under the lock, so that numbers go up only.
        self.last.send_if_modified(|last| match last {
            Some(last) => {
                *last = kept.last;
                true
            }
            None => false,
        });
    }

    /// Ends all listeners, once they have heard what was told.
    pub fn close(&self) {
        self.last.send_replace(None);
    }

    /// A listener to what comes after the event `last`, or after now.
    pub fn listen(&self, last: Option<u64>) -> Listener {
        let now = self.kept().last;
        Listener {
            told: self.last.subscribe(),
            // A number of another daemon's life says nothing: all that is kept is news.
            next: last.map_or(now, |last| if last > now { 0 } else { last }) + 1,
        }
    }

    /// The kept events from the number `next` on; in front one that says how many are not kept.
    fn since(&self, next: u64) -> VecDeque<Arc<Event>> {
        let kept = self.kept();
        let oldest = kept.last + 1 - kept.events.len() as u64;
        let skip = next.saturating_sub(oldest) as usize;
        let mut events: VecDeque<_> = kept.events.iter().skip(skip).cloned().collect();
        if next < oldest {
            let words = format!("{} events are not kept any more", oldest - next);
            let missed = Event {
                sequence: oldest - 1,
                ..Event::new(EventKind::Missed).saying(words)
            };
            events.push_front(Arc::new(missed));
        }
        events
    }
}

/// Somebody who hears events in their order.
#[derive(Debug)]
pub struct Listener {
    told: watch::Receiver<Option<u64>>,
    next: u64,
}

impl Listener {
    /// The next events, as soon as there are any; none when there will be no more.
    pub async fn next(&mut self, events: &Events) -> Option<VecDeque<Arc<Event>>> {
        loop {
            let open = self.told.borrow_and_update().is_some();
            let new = events.since(self.next);
            if let Some(last) = new.back() {
                self.next = last.sequence + 1;
                return Some(new);
            }
            if !open || self.told.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(listener: &mut Listener, events: &Events) -> Vec<(u64, EventKind)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let heard = runtime.block_on(listener.next(events));
        let all = heard.into_iter().flatten();
        all.map(|event| (event.sequence, event.event)).collect()
    }

    #[test]
    fn listeners_hear_all_in_order_and_what_they_missed() {
        let events = Events::default();
        let tell = || events.tell(Event::of_port(EventKind::PortUp, "web1"));
        tell();
        let mut new = events.listen(None);
        let mut old = events.listen(Some(0));
        let mut of_another_life = events.listen(Some(99));
        tell();
        assert_eq!(heard(&mut new, &events), [(2, EventKind::PortUp)]);
        let both = [(1, EventKind::PortUp), (2, EventKind::PortUp)];
        assert_eq!(heard(&mut old, &events), both);
        assert_eq!(heard(&mut of_another_life, &events), both);
        (0..KEPT + 3).for_each(|_| tell());
        let late = heard(&mut new, &events);
        assert_eq!(late.len(), KEPT + 1);
        assert_eq!(late[0], (5, EventKind::Missed));
        assert_eq!(late[1], (6, EventKind::PortUp));
        tell();
        events.close();
        assert_eq!(heard(&mut new, &events).len(), 1);
        assert!(heard(&mut new, &events).is_empty());
        assert!(heard(&mut events.listen(None), &events).is_empty());
    }
}
