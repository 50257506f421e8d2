//! Hosts of a site, each with its keys, and a destination that says what it was asked.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part of it")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_migration::handoff::{Arrival, ArrivalAction, ArrivalEvent, Limits, Stage};
use tandem_migration::keys::Authority;
use tandem_migration::peer::{
    Destination, EventLog, Objection, Peer, PeerError, Plan, PlannedPort, Refusal, serve,
};
use tandem_migration::tls::Identity;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

/// Longer than anything here takes.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Hosts of one authority.
pub struct Site {
    pub dir: TempDir,
    pub authority: Authority,
}

impl Site {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("authority")).unwrap();
        Self { dir, authority }
    }

    /// Keys of a host, in a directory of its own.
    pub fn issue(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        self.authority.issue(&[name, "127.0.0.1"], &dir).unwrap();
        dir
    }

    pub fn host(&self, name: &str) -> Identity {
        Identity::load(&self.issue(name)).unwrap()
    }
}

/// A destination that is served on a loopback address.
pub struct Served {
    pub address: SocketAddr,
    listener: std::net::TcpListener,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Served {
    pub fn start(identity: &Identity, host: &Arc<Host>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::start_on(listener, identity, host)
    }

    fn start_on(listener: std::net::TcpListener, identity: &Identity, host: &Arc<Host>) -> Self {
        let address = listener.local_addr().unwrap();
        let listening = TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (identity, host) = (identity.clone(), Arc::clone(host));
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(listening, &identity, host, stopped).await;
        });
        Self {
            address,
            listener,
            stop,
            task,
        }
    }

    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }

    /// Stops it, and starts one at the same address that knows of nothing.
    pub async fn restart(self, identity: &Identity, host: &Arc<Host>) -> Self {
        let listener = self.listener.try_clone().unwrap();
        self.stop().await;
        Self::start_on(listener, identity, host)
    }

    pub async fn connect(&self, name: &str, identity: &Identity) -> Result<Peer, PeerError> {
        Peer::connect(&self.address.to_string(), name, identity, LIMIT).await
    }
}

/// A destination: it takes what it has no objections to.
#[derive(Default)]
pub struct Host {
    objections: Vec<Objection>,
    inner: Mutex<Inner>,
    /// Somebody has asked for events.
    pub asked: Notify,
}

#[derive(Default)]
struct Inner {
    calls: Vec<String>,
    migrations: HashMap<String, Migration>,
}

struct Migration {
    peer: String,
    plan: Plan,
    arrival: Arrival,
    log: EventLog,
    states: HashMap<String, Vec<u8>>,
}

impl Host {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn objecting(objections: Vec<Objection>) -> Arc<Self> {
        Arc::new(Self {
            objections,
            ..Self::default()
        })
    }

    /// What was asked so far, by whom.
    pub fn calls(&self) -> Vec<String> {
        self.inner.lock().unwrap().calls.clone()
    }

    pub fn stage(&self, id: &str) -> Stage {
        self.inner.lock().unwrap().migrations[id].arrival.stage()
    }

    pub fn state_of(&self, id: &str, port: &str) -> Vec<u8> {
        self.inner.lock().unwrap().migrations[id].states[port].clone()
    }

    /// Something happens here.
    pub fn happens(&self, id: &str, event: ArrivalEvent) {
        let mut inner = self.inner.lock().unwrap();
        let migration = inner.migrations.get_mut(id).unwrap();
        migration.on(event).unwrap();
    }

    fn called(
        &self,
        what: &str,
        peer: &str,
        id: &str,
        event: Option<ArrivalEvent>,
    ) -> Result<(), Refusal> {
        let mut inner = self.inner.lock().unwrap();
        inner.calls.push(format!("{peer}: {what}"));
        let migration = inner.migrations.get_mut(id);
        let migration = migration.filter(|migration| migration.peer == peer);
        let migration = migration.ok_or(Refusal::Unknown)?;
        event.map_or(Ok(()), |event| migration.on(event))
    }
}

impl Migration {
    fn on(&mut self, event: ArrivalEvent) -> Result<(), Refusal> {
        let actions = self.arrival.on(event, Duration::ZERO).map_err(|error| {
            let remedy = "see tandem migration status";
            Refusal::Objections(vec![Objection::new(error.to_string(), remedy)])
        })?;
        for action in actions {
            if let ArrivalAction::Report { port, what, reason } = action {
                let port = port.map(|port| self.plan.ports[port].name.as_str());
                self.log.push(port, what, reason);
            }
        }
        Ok(())
    }
}

impl Destination for Host {
    fn prepare(&self, peer: &str, id: &str, plan: &Plan) -> Result<(), Vec<Objection>> {
        let mut inner = self.inner.lock().unwrap();
        inner.calls.push(format!("{peer}: prepare {id}"));
        if !self.objections.is_empty() {
            return Err(self.objections.clone());
        }
        let migration = inner.migrations.entry(id.to_owned());
        let migration = migration.or_insert_with(|| Migration {
            peer: peer.to_owned(),
            plan: plan.clone(),
            arrival: Arrival::new(plan.ports.len(), Limits::default()),
            log: EventLog::default(),
            states: HashMap::new(),
        });
        migration.on(ArrivalEvent::Accepted).unwrap();
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
        let what = format!("frames {id} {port} {number} of {} bytes", bytes.len());
        self.called(&what, peer, id, None)
    }

    fn state(&self, peer: &str, id: &str, port: &str, bytes: &[u8]) -> Result<(), Refusal> {
        self.called(&format!("state {id} {port}"), peer, id, None)?;
        let mut inner = self.inner.lock().unwrap();
        let migration = inner.migrations.get_mut(id).unwrap();
        let at = migration.plan.ports.iter().position(|p| p.name == port);
        let Some(at) = at else {
            let objection = Objection::new("it was not in the plan", "start again");
            return Err(Refusal::Objections(vec![objection.of_port(port)]));
        };
        migration.states.insert(port.to_owned(), bytes.to_vec());
        migration.on(ArrivalEvent::State(at))
    }

    fn events(&self, peer: &str, id: &str) -> Result<EventLog, Refusal> {
        self.called(&format!("events {id}"), peer, id, None)?;
        self.asked.notify_one();
        Ok(self.inner.lock().unwrap().migrations[id].log.clone())
    }

    fn commit(&self, peer: &str, id: &str) -> Result<(), Refusal> {
        let what = format!("commit {id}");
        self.called(&what, peer, id, Some(ArrivalEvent::Commit))
    }

    fn abort(&self, peer: &str, id: &str, reason: &str) -> Result<(), Refusal> {
        let what = format!("abort {id}: {reason}");
        let event = ArrivalEvent::Abort(reason.to_owned());
        self.called(&what, peer, id, Some(event))
    }
}

/// A VM with one port for each of the names.
pub fn plan(ports: &[&str]) -> Plan {
    let port = |name: &&str| PlannedPort {
        name: (*name).to_owned(),
        mac: Some("52:54:00:00:00:01".into()),
        feature_level: 1,
        queue_pairs: 2,
        mtu: 1500,
        vlan: "access 10".into(),
    };
    Plan {
        vm: "web1".into(),
        source: "alpha".into(),
        ports: ports.iter().map(port).collect(),
        limit_s: 60,
        requires: Vec::new(),
    }
}
