//! The destination's view: the VM comes.

use std::time::Duration;

use super::{Course, Entry, HandoffError, Limits, Moment, Stage};
use crate::peer::What;

/// What the destination hears. A port is its place in the plan; one that is not there does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArrivalEvent {
    /// The VM can come.
    Accepted,
    /// It cannot.
    Vetoed(String),
    /// A port's state has come.
    State(usize),
    /// A port's rings run here.
    Running(usize),
    /// They have stopped.
    Stopped(usize),
    /// The VM has sent a frame.
    FirstFrame(usize),
    /// The source, or somebody here, says that the VM stays here.
    Commit,
    /// The source, or somebody here, says that it does not come.
    Abort(String),
}

/// What the destination is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArrivalAction {
    /// Have a port's state ready for when its rings run.
    Load(usize),
    /// Tell the source.
    Report {
        /// Of which port; none: all.
        port: Option<usize>,
        /// What.
        what: What,
        /// Why.
        reason: Option<String>,
    },
    /// Undo what was made ready, if there is anything. A port whose rings run goes on as one that was never part
    /// of a migration.
    Forget,
    /// The VM belongs here.
    Keep,
}

use ArrivalAction as Action;
use ArrivalEvent as Event;

/// A migration on its destination.
#[derive(Clone, Debug)]
pub struct Arrival {
    course: Course,
    /// Whose rings run.
    running: Vec<bool>,
    /// All of them ran at some time: the source may have heard only of that.
    arrived: bool,
}

impl Arrival {
    /// A VM with that many ports wants to come.
    pub fn new(ports: usize, limits: Limits) -> Self {
        Self {
            course: Course::new(limits),
            running: vec![false; ports],
            arrived: false,
        }
    }

    /// How far it is.
    pub fn stage(&self) -> Stage {
        self.course.stage
    }

    /// Why it was aborted.
    pub fn reason(&self) -> Option<&str> {
        self.course.reason.as_deref()
    }

    /// What happened so far, in order.
    pub fn timeline(&self) -> &[Entry] {
        &self.course.timeline
    }

    /// When [`Self::tick`] has something to do, if nothing else happens.
    pub fn deadline(&self) -> Option<Duration> {
        self.course.deadline()
    }

    /// It is `now`.
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        self.course.tell_time(now);
        match self.deadline() {
            Some(deadline) if self.course.now >= deadline => {}
            _ => return Vec::new(),
        }
        // It runs here, and the source is silent.
        if self.stage() == Stage::There {
            return self.commit();
        }
        let reason = self.course.overdue();
        self.abort(reason)
    }

    /// Something happened.
    ///
    /// # Errors
    /// A commit or an abort that contradicts what was decided.
    pub fn on(&mut self, event: Event, now: Duration) -> Result<Vec<Action>, HandoffError> {
        self.course.tell_time(now);
        match (self.stage(), event) {
            (Stage::There, Event::Commit) => Ok(self.commit()),
            (Stage::Moving, Event::Commit) if self.arrived => Ok(self.commit()),
            (Stage::Committed, Event::Commit) => Ok(Vec::new()),
            (Stage::Aborted, Event::Commit) => Err(self.course.why_aborted()),
            (_, Event::Commit) => Err(HandoffError::NotThere),
            (Stage::Committed, Event::Abort(_)) => Err(HandoffError::Committed),
            (Stage::Aborted, Event::Abort(_)) => Ok(Vec::new()),
            (_, Event::Abort(reason)) => Ok(self.abort(reason)),
            (_, event) => Ok(self.happened(event)),
        }
    }

    fn happened(&mut self, event: Event) -> Vec<Action> {
        match (self.stage(), event) {
            (Stage::Preparing, Event::Accepted) => {
                self.course.enter(Stage::Prepared);
                self.course.note(Moment::Prepared, None);
                Vec::new()
            }
            (Stage::Preparing, Event::Vetoed(reason)) => {
                self.course.abort(reason);
                Vec::new()
            }
            (Stage::Preparing | Stage::Aborted, _) => Vec::new(),
            (_, Event::FirstFrame(port)) => self.first_frame(port),
            (Stage::Committed, _) => Vec::new(),
            (_, Event::State(port)) => self.state(port),
            (_, Event::Running(port)) => self.ran(port),
            (_, Event::Stopped(port)) => self.stopped(port),
            _ => Vec::new(),
        }
    }

    fn start(&mut self) {
        if self.stage() == Stage::Prepared {
            self.course.enter(Stage::Moving);
            self.course.note(Moment::Started, None);
        }
    }

    /// State that comes when the rings run already would set back what has been counted since.
    fn state(&mut self, port: usize) -> Vec<Action> {
        if self.running.get(port) != Some(&false) {
            return Vec::new();
        }
        self.start();
        self.course.note(Moment::StateSent, Some(port));
        vec![Action::Load(port)]
    }

    fn ran(&mut self, port: usize) -> Vec<Action> {
        match self.running.get_mut(port) {
            Some(running) if !*running => *running = true,
            _ => return Vec::new(),
        }
        self.start();
        self.course.note(Moment::RunningThere, Some(port));
        if self.running.iter().all(|running| *running) {
            self.course.enter(Stage::There);
            self.arrived = true;
        }
        vec![report(Some(port), What::Running, None)]
    }

    fn stopped(&mut self, port: usize) -> Vec<Action> {
        match self.running.get_mut(port) {
            Some(running) if *running => *running = false,
            _ => return Vec::new(),
        }
        if self.stage() == Stage::There {
            self.course.enter(Stage::Moving);
        }
        vec![report(Some(port), What::Stopped, None)]
    }

    /// The first one only, of each port.
    fn first_frame(&mut self, port: usize) -> Vec<Action> {
        let (what, of) = (Moment::FirstFrameThere, Some(port));
        let noted = self
            .timeline()
            .iter()
            .any(|e| (e.what, e.port) == (what, of));
        if noted || port >= self.running.len() {
            return Vec::new();
        }
        self.course.note(what, of);
        vec![report(of, What::FirstFrame, None)]
    }

    fn commit(&mut self) -> Vec<Action> {
        self.course.commit();
        vec![Action::Keep]
    }

    fn abort(&mut self, reason: String) -> Vec<Action> {
        self.course.abort(reason.clone());
        vec![Action::Forget, report(None, What::Aborted, Some(reason))]
    }
}

fn report(port: Option<usize>, what: What, reason: Option<String>) -> Action {
    Action::Report { port, what, reason }
}
