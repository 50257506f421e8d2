//! The source's view: the VM leaves.

use std::time::Duration;

use super::{Course, Entry, HandoffError, Limits, Moment, Stage};

/// What the source hears. A port is its place in the plan; one that is not there does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DepartureEvent {
    /// The destination is ready.
    Accepted,
    /// It says no; nothing has changed there.
    Vetoed(String),
    /// The VMM logs the VM's memory.
    Started,
    /// A port's rings have stopped here.
    Stopped(usize),
    /// A port's rings run here again.
    Resumed(usize),
    /// A port's state was taken down.
    Saved(usize),
    /// The destination has it.
    Sent(usize),
    /// A port's rings run there.
    Running(usize),
    /// A port's rings have stopped there.
    StoppedThere(usize),
    /// The VM has sent a frame there.
    FirstFrame(usize),
    /// What was held for a port has followed it.
    Flushed(usize),
    /// The destination does not answer any more, or has forgotten.
    Lost(String),
    /// The destination has given up.
    AbortedThere(String),
    /// Somebody says that the VM stays there.
    Commit,
    /// Somebody says that it stays here.
    Abort(String),
}

/// What the source is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DepartureAction {
    /// Send the plan.
    AskPrepare,
    /// Take down a port's state: ahead of time, and again when its rings have stopped.
    SaveState(usize),
    /// Send it.
    SendState(usize),
    /// What is held for a port, and what still comes, goes to the destination.
    Redirect(usize),
    /// A port's frames go to its own rings again; those that are held first.
    EndHold(usize),
    /// Say so, until it was heard.
    TellCommit,
    /// Say so, with the reason, until it was heard.
    TellAbort(String),
}

use DepartureAction as Action;
use DepartureEvent as Event;

#[derive(Clone, Copy, Debug, Default)]
struct Port {
    /// Its rings have stopped here.
    stopped: bool,
    /// They run there.
    there: bool,
    redirected: bool,
}

/// A migration on its source.
#[derive(Clone, Debug)]
pub struct Departure {
    course: Course,
    ports: Vec<Port>,
    /// When the last port that has stopped here did.
    stopped: Duration,
}

impl Departure {
    /// A migration of a VM with that many ports, and what is to be done first.
    pub fn new(ports: usize, limits: Limits) -> (Self, Vec<Action>) {
        let departure = Self {
            course: Course::new(limits),
            ports: vec![Port::default(); ports],
            stopped: Duration::ZERO,
        };
        (departure, vec![Action::AskPrepare])
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
        let deadline = self.course.deadline()?;
        let all_stopped = self.stage() == Stage::Moving && self.ports.iter().all(|p| p.stopped);
        if !all_stopped {
            return Some(deadline);
        }
        Some(deadline.min(self.stopped.saturating_add(self.course.limits.stopped)))
    }

    /// It is `now`.
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        self.course.tell_time(now);
        match self.deadline() {
            Some(deadline) if self.course.now >= deadline => {}
            _ => return Vec::new(),
        }
        // It runs there, and to stop it there is not ours.
        if self.stage() == Stage::There {
            return self.commit();
        }
        let reason = self.course.overdue();
        self.abort(reason, true)
    }

    /// Something happened.
    ///
    /// # Errors
    /// A commit or an abort that contradicts what was decided.
    pub fn on(&mut self, event: Event, now: Duration) -> Result<Vec<Action>, HandoffError> {
        self.course.tell_time(now);
        match event {
            Event::Commit => self.on_commit(),
            Event::Abort(reason) => self.on_abort(reason),
            event => Ok(self.happened(event)),
        }
    }

    fn on_commit(&mut self) -> Result<Vec<Action>, HandoffError> {
        match self.stage() {
            Stage::There => Ok(self.commit()),
            Stage::Committed => Ok(Vec::new()),
            Stage::Aborted => Err(self.course.why_aborted()),
            Stage::Preparing | Stage::Prepared | Stage::Moving => Err(HandoffError::NotThere),
        }
    }

    fn on_abort(&mut self, reason: String) -> Result<Vec<Action>, HandoffError> {
        match self.stage() {
            Stage::Committed => Err(HandoffError::Committed),
            Stage::Aborted => Ok(Vec::new()),
            _ => Ok(self.abort(reason, true)),
        }
    }

    fn happened(&mut self, event: Event) -> Vec<Action> {
        let stage = self.stage();
        match (stage, event) {
            // The hold of a migration that is committed ends by what follows; that is worth knowing still.
            (Stage::Committed, Event::Flushed(port)) => self.note(Moment::Flushed, port),
            (Stage::Committed, Event::FirstFrame(port)) => self.note(Moment::FirstFrameThere, port),
            (Stage::Committed | Stage::Aborted, _) => Vec::new(),
            (Stage::Preparing, Event::Accepted) => {
                self.course.enter(Stage::Prepared);
                self.course.note(Moment::Prepared, None);
                Vec::new()
            }
            (Stage::Preparing, Event::Vetoed(reason)) => self.abort(reason, false),
            (_, Event::AbortedThere(reason)) => self.abort(reason, false),
            (_, Event::Lost(reason)) => self.lost(reason),
            // Before the destination is ready rings may stop and start as they like.
            (Stage::Preparing, _) => Vec::new(),
            (Stage::Prepared, Event::Started) => self.start(),
            (_, event) => self.moved(event),
        }
    }

    /// What happens to a port.
    fn moved(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Stopped(port) => self.port_stopped(port),
            Event::Resumed(port) => self.resumed(port),
            Event::Saved(port) if self.knows(port) && self.is_moving() => {
                self.course.note(Moment::StateSaved, Some(port));
                vec![Action::SendState(port)]
            }
            Event::Sent(port) => self.note(Moment::StateSent, port),
            Event::Running(port) => self.running(port),
            Event::StoppedThere(port) => {
                if let Some(state) = self.ports.get_mut(port) {
                    state.there = false;
                }
                self.look();
                Vec::new()
            }
            Event::FirstFrame(port) => self.note(Moment::FirstFrameThere, port),
            Event::Flushed(port) => self.note(Moment::Flushed, port),
            _ => Vec::new(),
        }
    }

    /// State goes ahead, so that the destination has some if the last does not arrive.
    fn start(&mut self) -> Vec<Action> {
        self.course.enter(Stage::Moving);
        self.course.note(Moment::Started, None);
        (0..self.ports.len()).map(Action::SaveState).collect()
    }

    fn port_stopped(&mut self, port: usize) -> Vec<Action> {
        match self.ports.get_mut(port) {
            Some(state) if !state.stopped => state.stopped = true,
            _ => return Vec::new(),
        }
        // Nobody has said that the VM leaves: it does.
        let mut actions = match self.stage() {
            Stage::Prepared => self.start(),
            _ => Vec::new(),
        };
        // The VM waits for this one.
        actions.retain(|action| *action != Action::SaveState(port));
        actions.insert(0, Action::SaveState(port));
        self.stopped = self.course.now;
        self.course.note(Moment::Stopped, Some(port));
        actions.extend(self.redirect(port));
        self.look();
        actions
    }

    /// Before the VM is there this may be a guest that starts again; after that it was the VMM that came back.
    fn resumed(&mut self, port: usize) -> Vec<Action> {
        let there = self.stage() == Stage::There;
        match self.ports.get_mut(port) {
            Some(state) if state.stopped && there => {
                self.abort("the VM runs on the source again".into(), true)
            }
            Some(state) if state.stopped => {
                (state.stopped, state.redirected) = (false, false);
                vec![Action::EndHold(port)]
            }
            _ => Vec::new(),
        }
    }

    fn running(&mut self, port: usize) -> Vec<Action> {
        match self.ports.get_mut(port) {
            Some(state) if !state.there => state.there = true,
            _ => return Vec::new(),
        }
        self.course.note(Moment::RunningThere, Some(port));
        let actions = self.redirect(port);
        self.look();
        actions.into_iter().collect()
    }

    /// Both hosts have to say so: frames of a VM that runs here do not leave because of what another host claims.
    fn redirect(&mut self, port: usize) -> Option<Action> {
        let state = self.ports.get_mut(port)?;
        if !state.stopped || !state.there || state.redirected {
            return None;
        }
        state.redirected = true;
        Some(Action::Redirect(port))
    }

    /// Looks whether all ports are there.
    fn look(&mut self) {
        let there = self.ports.iter().all(|port| port.stopped && port.there);
        match self.stage() {
            Stage::Moving if there => self.course.enter(Stage::There),
            Stage::There if !there => self.course.enter(Stage::Moving),
            _ => {}
        }
    }

    fn lost(&mut self, reason: String) -> Vec<Action> {
        let none_stopped = self.ports.iter().all(|port| !port.stopped);
        match self.stage() {
            Stage::Preparing | Stage::Prepared => self.abort(reason, true),
            Stage::Moving if none_stopped => self.abort(reason, true),
            // Where the VM goes on is being decided by the VMMs; perhaps it will be said in time.
            _ => Vec::new(),
        }
    }

    fn commit(&mut self) -> Vec<Action> {
        self.course.commit();
        vec![Action::TellCommit]
    }

    fn abort(&mut self, reason: String, tell: bool) -> Vec<Action> {
        let held = (0..self.ports.len()).filter(|port| self.ports[*port].stopped);
        let mut actions: Vec<Action> = held.map(Action::EndHold).collect();
        if tell {
            actions.push(Action::TellAbort(reason.clone()));
        }
        self.course.abort(reason);
        actions
    }

    fn note(&mut self, what: Moment, port: usize) -> Vec<Action> {
        if self.knows(port) {
            self.course.note(what, Some(port));
        }
        Vec::new()
    }

    fn knows(&self, port: usize) -> bool {
        port < self.ports.len()
    }

    fn is_moving(&self) -> bool {
        matches!(self.stage(), Stage::Moving | Stage::There)
    }
}
