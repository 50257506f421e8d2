//! VMs that come.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::warn;
use tandem_migration::handoff::{
    Arrival, ArrivalAction as Action, ArrivalEvent as Event, HandoffError, Limits, Stage,
};
use tandem_migration::peer::{Destination, EventLog, Objection, Plan, Refusal};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::departure::refused;
use super::plan::{PlannedHere, objections, ports_of};
use super::status::{Migration, Role, Subject};
use super::watch::{LOOK, LOOK_SOON, watch};
use super::{say, say_end};
use crate::control::{Control, Motion, Refused};
use crate::events::EventKind;
use crate::port::lock;

/// For how long the first frame of a VM is waited for, once its migration is over.
const LINGER: Duration = Duration::from_secs(5);
/// No migration may have more time.
const DAY: u32 = 86_400;

/// All VMs that come, or have come last.
pub(super) struct Arrivals {
    control: Arc<Control>,
    runtime: Handle,
    by_vm: Mutex<BTreeMap<String, Arc<Coming>>>,
}

/// A migration on its destination.
pub(super) struct Coming {
    subject: Subject,
    machine: Mutex<Arrival>,
    log: EventLog,
    /// The last message of frames, of each port.
    messages: Mutex<Vec<u64>>,
    /// Nothing follows the VM any more.
    closed: AtomicBool,
    /// Something has happened.
    news: Notify,
}

impl Arrivals {
    pub(super) fn new(control: Arc<Control>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            control,
            runtime,
            by_vm: Mutex::default(),
        })
    }

    pub(super) fn vms(&self) -> Vec<String> {
        lock(&self.by_vm).keys().cloned().collect()
    }

    pub(super) fn of(&self, vm: &str) -> Option<Arc<Coming>> {
        lock(&self.by_vm).get(vm).cloned()
    }

    /// The migration that host `peer` has prepared under this number.
    fn find(&self, peer: &str, id: &str) -> Result<Arc<Coming>, Refusal> {
        let all = lock(&self.by_vm);
        let found = all
            .values()
            .find(|one| one.subject.id == id && one.subject.peer == peer);
        found.cloned().ok_or(Refusal::Unknown)
    }
}

impl Destination for Arrivals {
    fn prepare(&self, peer: &str, id: &str, plan: &Plan) -> Result<(), Vec<Objection>> {
        if self.find(peer, id).is_ok_and(|one| !one.is_over()) {
            return Ok(());
        }
        let mut objections = objections(&self.control, plan);
        // From here on one after the other: two may want the same VM.
        let mut all = lock(&self.by_vm);
        let known = all.get(&plan.vm).filter(|one| !one.is_over());
        if let Some(one) = known.filter(|one| one.subject.peer != peer) {
            let reason = format!("{} is coming from {} already", plan.vm, one.subject.peer);
            let remedy = format!("tandem migration abort {}, on the destination", plan.vm);
            objections.push(Objection::new(reason, remedy));
        }
        if let Some(first) = objections.first() {
            let of = first.port.as_deref().unwrap_or("it");
            warn!(
                "VM {} cannot come from {peer}: {of}: {} ({} objections)",
                plan.vm,
                first.reason,
                objections.len()
            );
            return Err(objections);
        }
        if let Some(one) = known {
            // Its daemon was started again, and has forgotten what it began.
            let _ = one.on(Event::Abort(format!("{peer} has prepared it anew")));
        }
        let ports = ports_of(&self.control, &plan.vm)
            .map_err(|refused| vec![Objection::new(refused.reason, refused.remedy)])?;
        let one = Arc::new(Coming::new(peer, id, plan, ports));
        all.insert(plan.vm.clone(), Arc::clone(&one));
        drop(all);
        say(&self.control, EventKind::MigrationPrepared, &one.status());
        let control = Arc::clone(&self.control);
        self.runtime.spawn(async move { one.drive(&control).await });
        Ok(())
    }

    fn state(&self, peer: &str, id: &str, port: &str, bytes: &[u8]) -> Result<(), Refusal> {
        let one = self.find(peer, id)?;
        let objection = |refused: Refused| {
            let words = format!(
                "port {port}: a state from {peer} is refused: {}",
                refused.reason
            );
            warn!("{words}");
            Refusal::Objections(vec![
                Objection::new(refused.reason, refused.remedy).of_port(port),
            ])
        };
        let Some(i) = one.subject.names.iter().position(|name| name == port) else {
            let reason = "it was not in the plan";
            let objection = Objection::new(reason, "report it").of_port(port);
            return Err(Refusal::Objections(vec![objection]));
        };
        one.subject.ports[i].check(bytes).map_err(objection)?;
        let actions = one.hear(Event::State(i)).unwrap_or_default();
        if actions.contains(&Action::Load(i)) {
            one.subject.ports[i].expect(bytes).map_err(objection)?;
            if one.is_over() {
                one.subject.ports[i].forget();
            }
        }
        Ok(())
    }

    fn frames(
        &self,
        peer: &str,
        id: &str,
        port: &str,
        number: u64,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        let one = self.find(peer, id)?;
        let refuse = |reason: &str, remedy: &str| {
            Refusal::Objections(vec![Objection::new(reason, remedy).of_port(port)])
        };
        let i = one.subject.names.iter().position(|name| name == port);
        let Some(i) = i.filter(|_| one.takes_frames()) else {
            return Err(refuse("it is not one whose VM has come", "report it"));
        };
        let mut last = lock(&one.messages);
        if number <= last[i] {
            return Ok(());
        }
        let bad = one.subject.ports[i]
            .deliver(bytes)
            .map_err(|e| refuse(&e.reason, &e.remedy))?;
        last[i] = number;
        if bad > 0 {
            warn!("port {port}: {bad} frames that {peer} has held for it are none");
        }
        Ok(())
    }

    fn events(&self, peer: &str, id: &str) -> Result<EventLog, Refusal> {
        Ok(self.find(peer, id)?.log.clone())
    }

    fn commit(&self, peer: &str, id: &str) -> Result<(), Refusal> {
        decided(self.find(peer, id)?.on(Event::Commit))
    }

    fn abort(&self, peer: &str, id: &str, reason: &str) -> Result<(), Refusal> {
        let reason = format!("{peer} says: {reason}");
        decided(self.find(peer, id)?.on(Event::Abort(reason)))
    }
}

fn decided(result: Result<(), HandoffError>) -> Result<(), Refusal> {
    result.map_err(|e| {
        let Refused { reason, remedy, .. } = refused(&e);
        Refusal::Objections(vec![Objection::new(reason, remedy)])
    })
}

impl Coming {
    fn new(peer: &str, id: &str, plan: &Plan, ports: Vec<PlannedHere>) -> Self {
        // The state machine and the events know a port by its place in the plan.
        let place = |port: &PlannedHere| {
            let mut planned = plan.ports.iter();
            planned.position(|planned| planned.name == port.config.name)
        };
        let mut ports = ports;
        ports.sort_by_key(place);
        let limits = Limits {
            prepared: Duration::from_secs(plan.limit_s.clamp(1, DAY).into()),
            ..Limits::default()
        };
        let mut machine = Arrival::new(ports.len(), limits);
        let _nothing = machine.on(Event::Accepted, Duration::ZERO);
        Self {
            messages: Mutex::new(vec![0; ports.len()]),
            subject: Subject::new(&plan.vm, id, peer, ports),
            machine: Mutex::new(machine),
            log: EventLog::default(),
            closed: AtomicBool::new(false),
            news: Notify::new(),
        }
    }

    fn is_over(&self) -> bool {
        lock(&self.machine).stage().is_final()
    }

    /// Do frames follow the VM here?
    fn takes_frames(&self) -> bool {
        let stage = lock(&self.machine).stage();
        let goes_on = matches!(stage, Stage::Moving | Stage::There | Stage::Committed);
        goes_on && !self.closed.load(Ordering::Acquire)
    }

    pub(super) fn status(&self) -> Migration {
        let machine = lock(&self.machine);
        let (stage, reason) = (machine.stage(), machine.reason());
        (self.subject).status(Role::Destination, stage, reason, machine.timeline())
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

    fn on(&self, event: Event) -> Result<(), HandoffError> {
        self.hear(event).map(drop)
    }

    /// Takes note of something, and does what follows but for what is to be loaded.
    fn hear(&self, event: Event) -> Result<Vec<Action>, HandoffError> {
        let actions = lock(&self.machine).on(event, self.subject.began.elapsed())?;
        self.act(&actions);
        Ok(actions)
    }

    fn act(&self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Report { port, what, reason } => {
                    let port = port.and_then(|port| self.subject.names.get(port));
                    self.log
                        .push(port.map(String::as_str), *what, reason.clone());
                }
                // Nor is a state of use any more that no ring has taken.
                Action::Forget | Action::Keep => {
                    self.subject.ports.iter().for_each(|port| port.forget())
                }
                Action::Load(_) => {}
            }
        }
        self.news.notify_one();
    }

    /// Follows it to its end.
    async fn drive(self: &Arc<Self>, control: &Control) {
        let mut watching = JoinSet::new();
        for (i, port) in self.subject.ports.iter().enumerate() {
            let (this, mut log) = (Arc::clone(self), PortLog::default());
            let each = move |motion: &Motion| {
                for event in log.look(i, motion) {
                    let _ = this.on(event);
                }
                Some(if log.awaits_frame() { LOOK_SOON } else { LOOK })
            };
            watching.spawn(watch(Arc::clone(port), each));
        }
        while !self.is_over() {
            let deadline = lock(&self.machine).deadline().unwrap_or(LINGER);
            tokio::select! {
                () = self.news.notified() => {}
                () = sleep_until((self.subject.began + deadline).into()) => {
                    let actions = lock(&self.machine).tick(self.subject.began.elapsed());
                    self.act(&actions);
                }
            }
        }
        say_end(control, &self.status());
        sleep(LINGER).await;
        self.closed.store(true, Ordering::Release);
        watching.shutdown().await;
    }
}

/// What has been told of one port.
#[derive(Default)]
struct PortLog {
    running: bool,
    /// Frames that had been sent when it began to run.
    frames: Option<u64>,
}

impl PortLog {
    fn look(&mut self, port: usize, motion: &Motion) -> Vec<Event> {
        let mut new = Vec::new();
        if motion.running != self.running {
            self.running = motion.running;
            self.frames = motion.running.then_some(motion.frames);
            new.push(match motion.running {
                true => Event::Running(port),
                false => Event::Stopped(port),
            });
        } else if self.frames.is_some_and(|before| motion.frames > before) {
            self.frames = None;
            new.push(Event::FirstFrame(port));
        }
        new
    }

    fn awaits_frame(&self) -> bool {
        self.frames.is_some()
    }
}
