//! A VM that leaves.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use log::warn;
use tandem_migration::handoff::{
    Departure, DepartureAction as Action, DepartureEvent as Event, HandoffError, Limits,
};
use tandem_migration::peer::{self, Peer, PeerError, What};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use super::plan::PlannedHere;
use super::say_end;
use super::status::{Migration, Prepare, Role, Subject};
use super::watch::{LOOK, watch};
use crate::control::{Control, Motion, MovingPort, Refused, RefusedKind, Way};
use crate::port::lock;

/// Silence of the other host for longer means that it is gone.
const SILENCE: Duration = Duration::from_secs(5);
/// How soon it is looked whether more frames are to follow.
const FORWARD: Duration = Duration::from_millis(1);
/// For how long frames are sent again to a host that does not answer.
const RESEND: Duration = Duration::from_millis(300);
/// Pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// For how long the other host is told how the migration has ended, if it does not answer.
const TELLING: Duration = Duration::from_secs(30);
/// For how long it is looked what becomes of held frames, once the migration is over.
const LINGER: Duration = Duration::from_secs(6);

/// What is on its way to the other host.
#[derive(Default)]
struct Tasks {
    /// Frames.
    forwarding: JoinSet<()>,
    /// States, and how it has ended.
    telling: JoinSet<()>,
}

/// A migration on its source.
pub(super) struct Leaving {
    subject: Subject,
    to: Prepare,
    machine: Mutex<Departure>,
    todo: UnboundedSender<Action>,
    /// For the one who drives it.
    work: Mutex<Option<UnboundedReceiver<Action>>>,
    /// The last state of each port.
    states: Mutex<Vec<Vec<u8>>>,
    /// The number of the last message of frames of each port; locked while they are sent.
    messages: Vec<tokio::sync::Mutex<u64>>,
    /// Another migration wants the ports.
    hurry: Notify,
    /// It may have them.
    released: tokio::sync::watch::Sender<bool>,
}

impl Leaving {
    /// One that the destination has agreed to.
    pub(super) fn new(vm: &str, id: String, to: &Prepare, ports: Vec<PlannedHere>) -> Self {
        let limits = Limits {
            prepared: to.limit(),
            ..Limits::default()
        };
        let (mut machine, _) = Departure::new(ports.len(), limits);
        let _asked = machine.on(Event::Accepted, Duration::ZERO);
        let (todo, work) = unbounded_channel();
        Self {
            to: to.clone(),
            states: Mutex::new(vec![Vec::new(); ports.len()]),
            messages: ports.iter().map(|_| tokio::sync::Mutex::new(0)).collect(),
            hurry: Notify::new(),
            released: tokio::sync::watch::Sender::new(false),
            subject: Subject::new(vm, &id, to.name(), ports),
            machine: Mutex::new(machine),
            todo,
            work: Mutex::new(Some(work)),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        lock(&self.machine).stage().is_final()
    }

    pub(super) fn is_to(&self, other: &Prepare) -> bool {
        self.to.to == other.to && self.to.name() == other.name()
    }

    pub(super) fn status(&self) -> Migration {
        let machine = lock(&self.machine);
        let (stage, reason) = (machine.stage(), machine.reason());
        (self.subject).status(Role::Source, stage, reason, machine.timeline())
    }

    /// Waits until one that is over leaves the ports alone.
    pub(super) async fn release(&self) {
        self.hurry.notify_one();
        // The sender is ours: it is not gone before.
        let _ = self.released.subscribe().wait_for(|done| *done).await;
    }

    /// Takes note of something, and has done what follows.
    fn on(&self, event: Event) -> Result<(), HandoffError> {
        let actions = lock(&self.machine).on(event, self.subject.began.elapsed())?;
        self.have_done(actions);
        Ok(())
    }

    fn have_done(&self, actions: Vec<Action>) {
        for action in actions {
            // If nobody drives it any more there is nothing left to do.
            let _ = self.todo.send(action);
        }
    }

    /// Of what is no decision nothing is refused.
    fn happens(&self, event: Event) {
        let _ = self.on(event);
    }

    pub(super) fn commit(&self) -> Result<Migration, Refused> {
        self.on(Event::Commit).map_err(|e| refused(&e))?;
        Ok(self.status())
    }

    pub(super) fn abort(&self, reason: &str) -> Result<Migration, Refused> {
        let event = Event::Abort(reason.to_owned());
        self.on(event).map_err(|e| refused(&e))?;
        Ok(self.status())
    }

    /// Follows it to its end.
    pub(super) async fn drive(self: &Arc<Self>, peer: Peer, control: &Control) {
        let Some(mut work) = lock(&self.work).take() else {
            return;
        };
        let peer = Arc::new(peer);
        let mut watching = JoinSet::new();
        let mut tasks = Tasks::default();
        self.subject
            .ports
            .iter()
            .for_each(|port| port.follow(Way::Awaited));
        for (i, port) in self.subject.ports.iter().enumerate() {
            let (this, mut ports) = (Arc::clone(self), PortLog::new(i));
            let each = move |motion: &Motion| {
                ports
                    .look(motion)
                    .into_iter()
                    .for_each(|event| this.happens(event));
                Some(LOOK)
            };
            watching.spawn(watch(Arc::clone(port), each));
        }
        watching.spawn(Arc::clone(self).listen(Arc::clone(&peer)));
        while !self.is_over() {
            let deadline = lock(&self.machine).deadline().unwrap_or(SILENCE);
            tokio::select! {
                action = work.recv() => self.act(action, &peer, &mut tasks),
                () = sleep_until((self.subject.began + deadline).into()) => {
                    let actions = lock(&self.machine).tick(self.subject.began.elapsed());
                    self.have_done(actions);
                }
            }
        }
        say_end(control, &self.status());
        // What there is to tell at the end.
        while let Ok(action) = work.try_recv() {
            self.act(Some(action), &peer, &mut tasks);
        }
        let flushed = async {
            while self.subject.ports.iter().any(holds) {
                sleep(LOOK).await
            }
        };
        tokio::select! {
            _ = timeout(LINGER, flushed) => sleep(LOOK).await,
            () = self.hurry.notified() => {}
        }
        watching.shutdown().await;
        tasks.forwarding.shutdown().await;
        self.subject
            .ports
            .iter()
            .for_each(|port| port.follow(Way::Network));
        self.released.send_replace(true);
        while tasks.telling.join_next().await.is_some() {}
    }

    fn act(self: &Arc<Self>, action: Option<Action>, peer: &Arc<Peer>, tasks: &mut Tasks) {
        match action {
            None | Some(Action::AskPrepare) => {}
            Some(Action::SaveState(i)) => match self.subject.ports[i].save() {
                Ok(bytes) => {
                    lock(&self.states)[i] = bytes;
                    self.happens(Event::Saved(i));
                }
                Err(e) => warn!(
                    "port {}: its state cannot be sent ahead: {e}",
                    self.subject.names[i]
                ),
            },
            Some(Action::SendState(i)) => {
                tasks
                    .telling
                    .spawn(Arc::clone(self).send_state(Arc::clone(peer), i));
            }
            Some(Action::Redirect(i)) => {
                self.subject.ports[i].follow(Way::Daemons);
                tasks
                    .forwarding
                    .spawn(Arc::clone(self).forward(Arc::clone(peer), i));
            }
            // The hold ends by itself: when the rings run again here, or when it has lasted too long.
            Some(Action::EndHold(i)) => self.subject.ports[i].follow(Way::Network),
            Some(Action::TellCommit) => {
                tasks
                    .telling
                    .spawn(Arc::clone(self).tell(Arc::clone(peer), None));
            }
            Some(Action::TellAbort(reason)) => {
                tasks
                    .telling
                    .spawn(Arc::clone(self).tell(Arc::clone(peer), Some(reason)));
            }
        }
    }

    async fn send_state(self: Arc<Self>, peer: Arc<Peer>, i: usize) {
        let bytes = lock(&self.states)[i].clone();
        match peer
            .send_state(&self.subject.id, &self.subject.names[i], bytes)
            .await
        {
            Ok(()) => self.happens(Event::Sent(i)),
            Err(e) => warn!(
                "port {}: its state did not reach {} by the daemons: {e}; unless the VMM carries it, the port begins \
                 to count anew there",
                self.subject.names[i], self.subject.peer
            ),
        }
    }

    /// Sends what is held for a port after it, and what still comes, for as long as the hold lasts.
    async fn forward(self: Arc<Self>, peer: Arc<Peer>, i: usize) {
        let port = &self.subject.ports[i];
        let mut room = port.room();
        let mut number = self.messages[i].lock().await;
        while port.way() == Way::Daemons && holds(port) {
            let Some(bytes) = port.take_held(&mut room) else {
                sleep(FORWARD).await;
                continue;
            };
            *number += 1;
            if let Err(e) = self.send_frames(&peer, i, *number, &bytes).await {
                warn!(
                    "port {}: frames do not follow by the daemons: {e}",
                    self.subject.names[i]
                );
                port.follow(Way::Network);
            }
        }
    }

    /// Sends a message of frames, a second time if need be: it has a number.
    async fn send_frames(
        &self,
        peer: &Peer,
        i: usize,
        number: u64,
        bytes: &[u8],
    ) -> Result<(), PeerError> {
        let end = Instant::now() + RESEND;
        loop {
            let sent = peer.send_frames(
                &self.subject.id,
                &self.subject.names[i],
                number,
                bytes.to_vec(),
            );
            match sent.await {
                Err(e) if may_pass(&e) && Instant::now() < end => sleep(20 * FORWARD).await,
                result => return result,
            }
        }
    }

    /// Says how it has ended until that is heard.
    async fn tell(self: Arc<Self>, peer: Arc<Peer>, aborted: Option<String>) {
        let telling = async {
            loop {
                let told = match &aborted {
                    Some(reason) => peer.abort(&self.subject.id, reason).await,
                    None => peer.commit(&self.subject.id).await,
                };
                match told {
                    Err(e) if may_pass(&e) => sleep(PAUSE).await,
                    Err(PeerError::UnknownMigration(_)) | Ok(()) => return,
                    Err(e) => {
                        return warn!(
                            "migration of {}: {}: {e}",
                            self.subject.vm, self.subject.peer
                        );
                    }
                }
            }
        };
        if timeout(TELLING, telling).await.is_err() {
            warn!(
                "migration of {}: {} was not told how it ended",
                self.subject.vm, self.subject.peer
            );
        }
    }

    /// Hears what happens on the other host.
    async fn listen(self: Arc<Self>, peer: Arc<Peer>) {
        let (mut after, mut heard) = (0, Instant::now());
        loop {
            match peer.events(&self.subject.id, after).await {
                Ok(events) => {
                    heard = Instant::now();
                    for event in events {
                        after = after.max(event.seq);
                        self.hear(event);
                    }
                }
                Err(e) if may_pass(&e) && heard.elapsed() < SILENCE => sleep(PAUSE).await,
                Err(e) => {
                    self.happens(Event::Lost(e.to_string()));
                    if !may_pass(&e) {
                        return;
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn hear(&self, event: peer::Event) {
        let reason = event
            .reason
            .unwrap_or_else(|| "no reason is given".to_owned());
        let port = event
            .port
            .and_then(|port| self.subject.names.iter().position(|name| *name == port));
        match (event.what, port) {
            (What::Aborted, _) => self.happens(Event::AbortedThere(reason)),
            (What::Running, Some(i)) => self.happens(Event::Running(i)),
            (What::Stopped, Some(i)) => self.happens(Event::StoppedThere(i)),
            (What::FirstFrame, Some(i)) => self.happens(Event::FirstFrame(i)),
            _ => {}
        }
    }
}

fn holds(port: &Arc<dyn MovingPort>) -> bool {
    port.motion().is_some_and(|motion| motion.holding)
}

/// It may be different in a moment.
fn may_pass(e: &PeerError) -> bool {
    matches!(
        e,
        PeerError::Unreachable { .. } | PeerError::TimedOut { .. }
    )
}

pub(super) fn refused(e: &HandoffError) -> Refused {
    let words = e.to_string();
    let (reason, remedy) = words
        .rsplit_once(": ")
        .unwrap_or((&words, "see its status"));
    Refused::new(RefusedKind::Conflict, reason, remedy)
}

/// What has been told of one port.
struct PortLog {
    port: usize,
    logging: bool,
    stopped: bool,
    held: bool,
}

impl PortLog {
    fn new(port: usize) -> Self {
        Self {
            port,
            logging: false,
            stopped: false,
            held: false,
        }
    }

    /// What is new.
    fn look(&mut self, motion: &Motion) -> Vec<Event> {
        let mut new = Vec::new();
        if motion.logging && motion.running && !self.logging {
            new.push(Event::Started);
        }
        self.logging = motion.logging;
        let stopped = !motion.running && (motion.holding || self.stopped);
        if stopped != self.stopped {
            new.push(match stopped {
                true => Event::Stopped(self.port),
                false => Event::Resumed(self.port),
            });
        }
        if self.held && !motion.holding && stopped {
            new.push(Event::Flushed(self.port));
        }
        (self.stopped, self.held) = (stopped, motion.holding);
        new
    }
}
