//! One migration, as each of its hosts follows it: events and the time in, actions out, no I/O.
//!
//! ```text
//!   Preparing ──► Prepared ──► Moving ──► There ──► Committed
//!       │             │           │ ▲        │ │
//!       │             │           │ └────────┘ │      a port's rings have stopped there again
//!       └─────────────┴───────────┴────────────┴────► Aborted
//! ```
//!
//! | stage | on the source ([`Departure`]) | on the destination ([`Arrival`]) | when its time is over |
//! |---|---|---|---|
//! | Preparing | the destination is asked | it is looked whether the VM can come | aborted |
//! | Prepared | the VM may leave | the VM may come | aborted |
//! | Moving | memory is logged, or rings have stopped | state has come, or some rings run | aborted |
//! | There | all rings run there | all rings run here | committed |
//!
//! Once the VM runs on the destination, silence is no reason to take it back: either host commits by itself.
//! An event may come twice, late, or out of order, and does nothing then; only a commit of what is not There, and
//! what contradicts the end that a migration has taken, are refused. Times are since the migration began
//! on that host, by a clock that does not go back; earlier ones count as the latest that was heard.

mod arrival;
mod departure;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

pub use arrival::{Arrival, ArrivalAction, ArrivalEvent};
pub use departure::{Departure, DepartureAction, DepartureEvent};

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The destination looks whether the VM can come.
    #[default]
    Preparing,
    /// It can.
    Prepared,
    /// It is on its way.
    Moving,
    /// It runs on the destination.
    There,
    /// It stays there; nothing follows.
    Committed,
    /// It stays where it was; nothing follows.
    Aborted,
}

impl Stage {
    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Committed | Self::Aborted)
    }
}

/// How long a migration may stay in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the destination's answer.
    pub preparing: Duration,
    /// Until the VM leaves.
    pub prepared: Duration,
    /// Until it is there. Copying its memory takes as long as it takes.
    pub moving: Duration,
    /// Of these, since its last port has stopped on the source.
    pub stopped: Duration,
    /// Until somebody commits.
    pub there: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            preparing: Duration::from_secs(5),
            prepared: Duration::from_secs(60),
            moving: Duration::from_secs(3600),
            stopped: Duration::from_secs(30),
            there: Duration::from_secs(10),
        }
    }
}

/// What is noted in the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The destination is ready.
    Prepared,
    /// The VM's memory is logged, or its state is there.
    Started,
    /// A port's rings have stopped on the source.
    Stopped,
    /// A port's state was taken down.
    StateSaved,
    /// The destination has a port's state.
    StateSent,
    /// A port's rings run on the destination.
    RunningThere,
    /// The VM has sent a frame there.
    FirstFrameThere,
    /// What was held for a port has followed it.
    Flushed,
    /// The VM stays there.
    Committed,
    /// The VM stays where it was.
    Aborted,
}

/// A moment, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Since the beginning.
    pub at: Duration,
    /// What happened.
    pub what: Moment,
    /// To which port of the plan; none: to all.
    pub port: Option<usize>,
}

/// What contradicts what has been decided, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HandoffError {
    /// An abort is too late.
    #[error("the migration is committed, the VM runs on the destination: migrate it back")]
    Committed,
    /// A commit is too late.
    #[error("the migration was aborted ({0}): start it again")]
    Aborted(String),
    /// A commit is too early.
    #[error("the VM does not run on the destination yet: wait for it, or abort")]
    NotThere,
}

/// What both machines have.
#[derive(Clone, Debug)]
struct Course {
    stage: Stage,
    limits: Limits,
    /// The latest time that was heard.
    now: Duration,
    /// When the stage began.
    since: Duration,
    reason: Option<String>,
    timeline: Vec<Entry>,
}

impl Course {
    fn new(limits: Limits) -> Self {
        Self {
            stage: Stage::Preparing,
            limits,
            now: Duration::ZERO,
            since: Duration::ZERO,
            reason: None,
            timeline: Vec::new(),
        }
    }

    fn tell_time(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.since = self.now;
    }

    /// Notes a moment. What happens again counts when it last did, so that no guest can make the timeline long.
    fn note(&mut self, what: Moment, port: Option<usize>) {
        self.timeline
            .retain(|entry| (entry.what, entry.port) != (what, port));
        let at = self.now;
        self.timeline.push(Entry { at, what, port });
    }

    fn commit(&mut self) {
        self.enter(Stage::Committed);
        self.note(Moment::Committed, None);
    }

    fn abort(&mut self, reason: String) {
        self.enter(Stage::Aborted);
        self.reason = Some(reason);
        self.note(Moment::Aborted, None);
    }

    /// When the stage is over.
    fn deadline(&self) -> Option<Duration> {
        let limit = match self.stage {
            Stage::Preparing => self.limits.preparing,
            Stage::Prepared => self.limits.prepared,
            Stage::Moving => self.limits.moving,
            Stage::There => self.limits.there,
            Stage::Committed | Stage::Aborted => return None,
        };
        Some(self.since.saturating_add(limit))
    }

    fn overdue(&self) -> String {
        let what = match self.stage {
            Stage::Preparing => "the destination did not answer in time",
            Stage::Prepared => "the VM did not leave in the time it was prepared for",
            _ => "the VM did not arrive in time",
        };
        format!("{what}; start the migration again")
    }

    fn why_aborted(&self) -> HandoffError {
        HandoffError::Aborted(self.reason.clone().unwrap_or_default())
    }
}
