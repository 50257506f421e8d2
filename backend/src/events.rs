//! What happens, for whoever subscribes: the last 1024 events, each with its number.
//!
//! Whoever publishes never waits. A subscriber reads on from the number it has got to; one that is
//! too slow is told that it missed some.

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
    /// A team was made.
    TeamAdded,
    /// A team has other settings.
    TeamChanged,
    /// A team was ended.
    TeamRemoved,
    /// A member of a team, or the device of an uplink, can carry frames.
    MemberUp,
    /// It cannot any more; the detail says why.
    MemberDown,
    /// Frames leave by another member; the detail says why and how long it took.
    TeamFailover,
    /// Frames of our own come back from the wire, and many of them.
    LoopDetected,
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
    /// A VM may move to another host, or come from one; the detail says which.
    MigrationPrepared,
    /// It has moved.
    MigrationCommitted,
    /// It stays where it was; the detail says why.
    MigrationAborted,
    /// The subscriber was too slow, or away for too long: events before this one are lost to it.
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
    /// Its number, one more than that of the event before. The first is the time the daemon started
    /// at, in microseconds of Unix time, so that one that starts later goes on higher.
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
    /// The team, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The member's device, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// More, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Event {
    /// An event of now; it gets its number when it is published.
    pub fn new(event: EventKind) -> Self {
        Self {
            sequence: 0,
            time: Timestamp::now().to_string(),
            event,
            port: None,
            switch: None,
            team: None,
            member: None,
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

    /// An event of now about a team.
    pub fn of_team(event: EventKind, team: &str) -> Self {
        Self {
            team: Some(team.to_owned()),
            ..Self::new(event)
        }
    }

    /// An event of now about a member of a team, or the device of a switch's uplink.
    pub fn of_member(event: EventKind, team: &str, member: &str) -> Self {
        Self {
            member: Some(member.to_owned()),
            ..Self::of_team(event, team)
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

#[derive(Debug)]
struct Kept {
    last: u64,
    events: VecDeque<Arc<Event>>,
}

impl Kept {
    /// The number of the first that is kept, or would be.
    fn oldest(&self) -> u64 {
        self.last + 1 - self.events.len() as u64
    }
}

impl Default for Events {
    fn default() -> Self {
        let last = Timestamp::now().as_microsecond().unsigned_abs();
        let events = VecDeque::new();
        Self {
            kept: Mutex::new(Kept { last, events }),
            last: watch::Sender::new(Some(last)),
        }
    }
}

impl Events {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes an event.
    pub fn publish(&self, mut event: Event) {
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

    /// Ends all subscribers, once they have what was published.
    pub fn close(&self) {
        self.last.send_replace(None);
    }

    /// A subscriber to what comes after the event `last`, of which 0 is before all, or after now.
    pub fn subscribe(&self, last: Option<u64>) -> Subscriber {
        let next = match last {
            // All that is kept.
            Some(0) => self.kept().oldest(),
            Some(last) => last.saturating_add(1),
            None => self.kept().last + 1,
        };
        let published = self.last.subscribe();
        Subscriber { published, next }
    }

    /// The kept events from the number `next` on; in front one that says so if some are not kept.
    fn since(&self, next: u64) -> VecDeque<Arc<Event>> {
        let kept = self.kept();
        let oldest = kept.oldest();
        let skip = next.saturating_sub(oldest) as usize;
        let mut events: VecDeque<_> = kept.events.iter().skip(skip).cloned().collect();
        if next < oldest {
            let words = "events before this one are not kept any more".to_owned();
            let missed = Event {
                sequence: oldest - 1,
                ..Event::new(EventKind::Missed).saying(words)
            };
            events.push_front(Arc::new(missed));
        }
        events
    }
}

/// Somebody who gets events in their order.
#[derive(Debug)]
pub struct Subscriber {
    published: watch::Receiver<Option<u64>>,
    next: u64,
}

impl Subscriber {
    /// The next events, as soon as there are any; none when there will be no more.
    pub async fn next(&mut self, events: &Events) -> Option<VecDeque<Arc<Event>>> {
        loop {
            let open = self.published.borrow_and_update().is_some();
            let new = events.since(self.next);
            if let Some(last) = new.back() {
                self.next = last.sequence + 1;
                return Some(new);
            }
            if !open || self.published.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(subscriber: &mut Subscriber, events: &Events) -> Vec<(u64, EventKind)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let heard = runtime.block_on(subscriber.next(events));
        let all = heard.into_iter().flatten();
        all.map(|event| (event.sequence, event.event)).collect()
    }

    #[test]
    fn subscribers_get_all_in_order_and_know_what_they_missed() {
        let events = Events::default();
        let start = events.kept().last;
        let publish = || events.publish(Event::of_port(EventKind::PortUp, "web1"));
        publish();
        let mut new = events.subscribe(None);
        let mut old = events.subscribe(Some(0));
        let mut of_an_earlier_life = events.subscribe(Some(start - 7));
        publish();
        assert_eq!(heard(&mut new, &events), [(start + 2, EventKind::PortUp)]);
        let both = [
            (start + 1, EventKind::PortUp),
            (start + 2, EventKind::PortUp),
        ];
        assert_eq!(heard(&mut old, &events), both);
        let late = heard(&mut of_an_earlier_life, &events);
        assert_eq!(late[0], (start, EventKind::Missed));
        assert_eq!(late[1..], both);
        (0..KEPT + 3).for_each(|_| publish());
        let late = heard(&mut new, &events);
        assert_eq!(late.len(), KEPT + 1);
        assert_eq!(late[0], (start + 5, EventKind::Missed));
        assert_eq!(late[1], (start + 6, EventKind::PortUp));
        publish();
        events.close();
        assert_eq!(heard(&mut new, &events).len(), 1);
        assert!(heard(&mut new, &events).is_empty());
        assert!(heard(&mut events.subscribe(None), &events).is_empty());
    }
}
