//! What has happened in a migration on its destination, for the source to ask for.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Event, What};

/// Events that are kept; the oldest make room.
const KEPT: usize = 256;

/// The events of one migration, in order. Clones are the same log.
#[derive(Clone, Debug)]
pub struct EventLog {
    events: Arc<watch::Sender<Vec<Event>>>,
}

impl Default for EventLog {
    fn default() -> Self {
        let (events, _) = watch::channel(Vec::new());
        let events = Arc::new(events);
        Self { events }
    }
}

impl EventLog {
    /// Adds an event and wakes who waits for it, from any thread. No `port` means all ports.
    pub fn push(&self, port: Option<&str>, what: What, reason: Option<String>) {
        self.events.send_modify(|events| {
            let seq = events.last().map_or(1, |last| last.seq + 1);
            if events.len() == KEPT {
                events.remove(0);
            }
            events.push(Event {
                seq,
                port: port.map(str::to_owned),
                what,
                reason,
            });
        });
    }

    /// The events there are after number `after`, perhaps none.
    pub fn since(&self, after: u64) -> Vec<Event> {
        newer(&self.events.borrow(), after)
    }

    /// Waits until there is an event after number `after`, and returns all of them.
    pub async fn wait(&self, after: u64) -> Vec<Event> {
        let mut changes = self.events.subscribe();
        let there = changes.wait_for(|events| events.last().is_some_and(|last| last.seq > after));
        // It cannot fail as long as `self` has the sender.
        there
            .await
            .map_or_else(|_| Vec::new(), |events| newer(&events, after))
    }
}

fn newer(events: &[Event], after: u64) -> Vec<Event> {
    let start = events.partition_point(|event| event.seq <= after);
    events[start..].to_vec()
}
