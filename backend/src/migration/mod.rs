//! VMs on their way to another host, or from one: what the API and the other hosts ask for, done by the state
//! machines of [`tandem_migration::handoff`].
//!
//! ```text
//!   API ──► Migrations ──► a departure ───mTLS───► Arrivals of the other host ──► an arrival
//!                              │ motion, state                       motion, state │
//!                              └───────────────────► ports ◄───────────────────────┘
//! ```
//! All of it runs on the runtime of the API, and blocks nobody there. A port is asked how things are when it says
//! that they are different, and once in a while.

mod arrival;
mod departure;
mod plan;
mod status;
mod watch;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use tandem_migration::peer::{self, Peer, PeerError};
use tandem_migration::tls::Identity;
use tokio::runtime::Handle;

pub use self::status::{Cost, Migration, Migrations as List, Moment, Prepare, Role, Stage};

use self::arrival::{Arrivals, Coming};
use self::departure::Leaving;
use crate::control::{Control, Refused, RefusedKind};
use crate::events::{Event, EventKind};
use crate::port::lock;

/// All migrations of this host.
pub struct Migrations {
    control: Arc<Control>,
    identity: Option<Identity>,
    runtime: Handle,
    /// By VM, the last of each.
    departures: Mutex<BTreeMap<String, Arc<Leaving>>>,
    /// Held while one is prepared.
    preparing: tokio::sync::Mutex<()>,
    arrivals: Arc<Arrivals>,
}

/// A migration on either side.
enum One {
    Leaving(Arc<Leaving>),
    Coming(Arc<Coming>),
}

impl Migrations {
    /// None yet. Without an `identity` no VM can leave.
    pub fn new(control: Arc<Control>, identity: Option<Identity>, runtime: Handle) -> Arc<Self> {
        let arrivals = Arrivals::new(Arc::clone(&control), runtime.clone());
        Arc::new(Self {
            control,
            identity,
            runtime,
            departures: Mutex::default(),
            preparing: tokio::sync::Mutex::default(),
            arrivals,
        })
    }

    /// Answers other hosts until `stop` is there.
    pub async fn serve(&self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let Some(identity) = &self.identity else {
            return;
        };
        let listener = (listener.set_nonblocking(true))
            .and_then(|()| tokio::net::TcpListener::from_std(listener));
        match listener {
            Ok(listener) => {
                let arrivals = Arc::clone(&self.arrivals);
                peer::serve(listener, identity, arrivals, stop).await;
            }
            Err(e) => log::error!("other hosts cannot be answered: {e}"),
        }
    }

    /// The one of each VM that is on, or was last; by VM.
    pub fn list(&self) -> Vec<Migration> {
        let mut vms: Vec<String> = lock(&self.departures).keys().cloned().collect();
        vms.extend(self.arrivals.vms());
        vms.sort_unstable();
        vms.dedup();
        vms.iter()
            .filter_map(|vm| Some(self.one(vm).ok()?.status()))
            .collect()
    }

    /// That of one VM.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn show(&self, vm: &str) -> Result<Migration, Refused> {
        self.one(vm).map(|one| one.status())
    }

    /// Prepares a VM's move: the other host is asked, and may refuse. Again for the same host: nothing is done.
    ///
    /// # Errors
    /// `NotFound` if there is no such VM, `Conflict` for all that is in the way there, `System` if it cannot be
    /// asked.
    pub async fn prepare(&self, vm: &str, prepare: &Prepare) -> Result<Migration, Vec<Refused>> {
        let _one = self.preparing.lock().await;
        let identity = self.identity.as_ref().ok_or_else(|| vec![no_keys()])?;
        let known = lock(&self.departures).get(vm).cloned();
        if let Some(one) = known.as_ref().filter(|one| !one.is_over()) {
            if one.is_to(prepare) {
                return Ok(one.status());
            }
            let reason = format!("{vm} is on its way to {}", one.status().peer);
            let remedy = format!("wait for it, or: tandem migration abort {vm}");
            let refused = Refused::new(RefusedKind::Conflict, reason, remedy);
            return Err(vec![refused.about("to")]);
        }
        let ports = plan::ports_of(&self.control, vm).map_err(|refused| vec![refused])?;
        let plan = plan::plan(vm, identity.name(), &ports, prepare.limit());
        let name = prepare.name();
        let connected = Peer::connect(&prepare.to, name, identity, plan::ANSWER).await;
        let peer = connected.map_err(|e| refusals(vm, e))?;
        let id = plan::new_id();
        let prepared = peer.prepare(&id, &plan).await;
        prepared.map_err(|e| refusals(vm, e))?;
        if let Some(last) = known {
            let _ = tokio::time::timeout(plan::ANSWER, last.release()).await;
        }
        let one = Arc::new(Leaving::new(vm, id, prepare, ports));
        lock(&self.departures).insert(vm.to_owned(), Arc::clone(&one));
        say(&self.control, EventKind::MigrationPrepared, &one.status());
        let (driven, control) = (Arc::clone(&one), Arc::clone(&self.control));
        self.runtime
            .spawn(async move { driven.drive(peer, &control).await });
        Ok(one.status())
    }

    /// The VM stays there; or here, if it has come.
    ///
    /// # Errors
    /// `NotFound`, or `Conflict` if it is too early, or it was aborted.
    pub fn commit(&self, vm: &str) -> Result<Migration, Refused> {
        match self.one(vm)? {
            One::Leaving(one) => one.commit(),
            One::Coming(one) => one.commit(),
        }
    }

    /// The VM does not move.
    ///
    /// # Errors
    /// `NotFound`, or `Conflict` if it has.
    pub fn abort(&self, vm: &str, reason: &str) -> Result<Migration, Refused> {
        match self.one(vm)? {
            One::Leaving(one) => one.abort(reason),
            One::Coming(one) => one.abort(reason),
        }
    }

    /// The migration of a VM that is on, or began last.
    fn one(&self, vm: &str) -> Result<One, Refused> {
        let leaving = lock(&self.departures).get(vm).cloned().map(One::Leaving);
        let coming = self.arrivals.of(vm).map(One::Coming);
        let both = leaving.into_iter().chain(coming);
        both.min_by_key(One::order).ok_or_else(|| {
            let reason = format!("VM {vm} is not, and was not, on its way");
            let remedy = format!("tandem migration prepare {vm} --to HOST:PORT");
            Refused::new(RefusedKind::NotFound, reason, remedy)
        })
    }
}

impl One {
    fn status(&self) -> Migration {
        match self {
            Self::Leaving(one) => one.status(),
            Self::Coming(one) => one.status(),
        }
    }

    fn order(&self) -> (bool, u64) {
        let status = self.status();
        (status.stage.is_final(), status.age_ms)
    }
}

fn no_keys() -> Refused {
    let reason = "this tandemd has no keys by which other hosts would know it";
    let remedy = "start it with --migration-keys; see `tandem migration keys --help`";
    Refused::new(RefusedKind::Conflict, reason, remedy)
}

/// What the other host says, or why it cannot be asked.
fn refusals(vm: &str, error: PeerError) -> Vec<Refused> {
    let refused = match error {
        PeerError::Refused(objections) => {
            let all = objections.into_iter().map(|one| {
                let of = one.port.map(|port| format!("port {port}: "));
                let reason = of.unwrap_or_default() + &one.reason;
                Refused::new(RefusedKind::Conflict, reason, one.remedy).about("to")
            });
            all.collect()
        }
        other => {
            let words = other.to_string();
            let (reason, remedy) = words
                .rsplit_once([':', ';'])
                .unwrap_or((&words, "see the logs of both hosts"));
            vec![Refused::new(RefusedKind::System, reason, remedy.trim()).about("to")]
        }
    };
    for one in &refused {
        log::warn!("VM {vm} cannot move: {one}");
    }
    refused
}

/// Logs and publishes what has become of a migration.
fn say(control: &Control, kind: EventKind, status: &Migration) {
    let words = status.words();
    match kind {
        EventKind::MigrationAborted => log::warn!("{words}"),
        _ => log::info!("{words}"),
    }
    control.events().publish(Event::new(kind).saying(words));
}

fn say_end(control: &Control, status: &Migration) {
    let kind = match status.stage {
        status::Stage::Committed => EventKind::MigrationCommitted,
        _ => EventKind::MigrationAborted,
    };
    say(control, kind, status);
}
