//! What the daemons of two hosts say to each other about a migration.
//!
//! HTTP/1.1 with JSON over [`tls`](crate::tls). The host that the VM leaves (the source) connects to the one
//! that it goes to (the destination), which [serves](serve) what its [`Destination`] says; [`Peer`] is the
//! source's end. A migration has an id of the source's choice, of the form of a port's name.
//!
//! | request | answer |
//! |---|---|
//! | `GET /migration/v1` | 200 `{"versions": [1]}` |
//! | `POST /migration/v1/migrations/ID`, a [`Plan`] | 200 `{}`, or 409 with all [`Objection`]s; nothing has changed then |
//! | `PUT …/ID/ports/PORT/state`, the bytes of a [`PortState`](crate::state::PortState) | 204, or 409 with the reason |
//! | `GET …/ID/events?after=N` | 200 `{"events": […]}`, each an [`Event`], those after number N; waits up to [`EVENTS_WAIT`] for one |
//! | `POST …/ID/commit` | 204, or 409 with the reason |
//! | `POST …/ID/abort`, `{"reason": "…"}` | 204, or 409 with the reason |
//!
//! All of them may be sent again: a connection that breaks leaves open whether the last was done. An id that the
//! destination does not know, or that another host has prepared, is answered by 404 with `code`
//! `unknown_migration`. Errors are problem details (RFC 9457) with `code`, `remedy` and `objections`.
//!
//! Every request says `Tandem-Migration: 1`. To a version that it does not know the destination answers 501 with
//! `code` `unknown_version` and the `versions` it knows. Within a version, keys are added and never change their
//! meaning: a receiver passes over keys that it does not know, unless [`Plan::requires`] names them.
//!
//! Limits: [`CONNECTIONS`] at once of hosts that are known; [`HANDSHAKES`] not known yet, of these
//! [`HANDSHAKES_OF_ONE`] from one address; [`TIME`] for a handshake, for the head of a request or the pause
//! before it, and for its body; [`CONNECTION_LIFE`] for a connection; [`JSON_LEN`] bytes of JSON,
//! [`MAX_LEN`](crate::state::MAX_LEN) of a state. Beyond these the server closes.

mod client;
mod events;
mod limits;
mod problem;
mod routes;
mod server;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::tls::TlsError;

pub use client::Peer;
pub use events::EventLog;
pub use server::serve;

/// The version of the protocol that this is.
pub const VERSION: u16 = 1;
/// Connections of hosts that are known, at once.
pub const CONNECTIONS: usize = 128;
/// Connections of which it is not known yet whose they are, at once.
pub const HANDSHAKES: usize = 64;
/// Those of them from one address; a host that is emptied begins several migrations at a time.
pub const HANDSHAKES_OF_ONE: usize = 16;
/// Time for each thing that the source has to send.
pub const TIME: Duration = Duration::from_secs(5);
/// Time after which the source has to connect again.
pub const CONNECTION_LIFE: Duration = Duration::from_secs(600);
/// Time that the destination waits for an event before it says that there is none.
pub const EVENTS_WAIT: Duration = Duration::from_secs(10);
/// Bytes of JSON, in requests and answers.
pub const JSON_LEN: usize = 64 << 10;
/// Ports of a VM.
pub const MAX_PORTS: usize = 64;
/// Bytes of the id of a migration, or of a port's name.
const MAX_ID: usize = 64;
/// Says the version.
const VERSION_HEADER: &str = "tandem-migration";

/// What the source is about to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The VM that moves.
    pub vm: String,
    /// The source, as it calls itself; what its certificate calls it is what counts.
    pub source: String,
    /// All ports of the VM.
    pub ports: Vec<PlannedPort>,
    /// Seconds that the preparation is good for, if nothing follows.
    pub limit_s: u32,
    /// Keys, of this or of its ports, that the destination must know, or object: those that came after version 1
    /// and that the VM would miss.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
}

/// A port as it is on the source. The one of that name on the destination must be the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedPort {
    /// Its name.
    pub name: String,
    /// Its configured address; none: it is learned.
    #[serde(default)]
    pub mac: Option<String>,
    /// The set of features offered.
    pub feature_level: u32,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Longest packet in bytes, without Ethernet header.
    pub mtu: u16,
    /// Its VLAN settings in words, to be compared.
    #[serde(default)]
    pub vlan: String,
}

/// Something that is in the way of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objection {
    /// The port it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// What is in the way.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

impl Objection {
    /// An objection to the whole of it.
    pub fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            port: None,
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// The same, about one port.
    pub fn of_port(self, port: impl Into<String>) -> Self {
        let port = Some(port.into());
        Self { port, ..self }
    }
}

/// What happened on the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number in this migration, from 1.
    pub seq: u64,
    /// The port it happened to; none: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// What.
    pub what: What,
    /// Why, if there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// The port's rings run there.
    Running,
    /// They ran, and have stopped.
    Stopped,
    /// The destination has given the migration up.
    Aborted,
    /// The VM has sent its first frame there.
    FirstFrame,
    /// Something that came after this version.
    #[serde(other)]
    Unknown,
}

/// Why the destination does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has prepared no migration of that id for that host.
    Unknown,
    /// Something is in the way.
    Objections(Vec<Objection>),
}

/// The end of a host that VMs come to.
///
/// `peer` is the source's name by its certificate. Any host of the authority may ask for anything: who may send
/// which VM is for the implementation to judge, and a migration is [unknown](Refusal::Unknown) to all
/// but the host that has prepared it. Requests come again when a connection breaks, and must then be answered as before.
/// Methods run on threads for calls that block, and should not take longer than the source waits.
pub trait Destination: Send + Sync + 'static {
    /// Looks whether the VM can come, and makes ready. On objections, all there are, nothing has changed.
    ///
    /// # Errors
    /// What is in the way.
    fn prepare(&self, peer: &str, id: &str, plan: &Plan) -> Result<(), Vec<Objection>>;

    /// Takes the state of a port, unchecked bytes of at most [`MAX_LEN`](crate::state::MAX_LEN). A later one
    /// takes the place of an earlier one.
    ///
    /// # Errors
    /// Why it is refused.
    fn state(&self, peer: &str, id: &str, port: &str, bytes: &[u8]) -> Result<(), Refusal>;

    /// Delivers frames to a port whose rings run, [unchecked bytes](crate::frames) of at most
    /// [`MAX_LEN`](crate::frames::MAX_LEN). `number` counts the messages of a port from 1: one that came before comes
    /// again if its answer was lost.
    ///
    /// # Errors
    /// Why they are refused.
    fn frames(
        &self,
        peer: &str,
        id: &str,
        port: &str,
        number: u64,
        bytes: &[u8],
    ) -> Result<(), Refusal>;

    /// Where this migration's events are.
    ///
    /// # Errors
    /// It is unknown.
    fn events(&self, peer: &str, id: &str) -> Result<EventLog, Refusal>;

    /// The VM stays here.
    ///
    /// # Errors
    /// Why not: it does not run here, or the migration was aborted.
    fn commit(&self, peer: &str, id: &str) -> Result<(), Refusal>;

    /// The VM does not come.
    ///
    /// # Errors
    /// Why not: the migration was committed.
    fn abort(&self, peer: &str, id: &str, reason: &str) -> Result<(), Refusal>;
}

/// Why the other host has not done what it was asked, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    /// It says no.
    #[error("{}", in_words(.0))]
    Refused(Vec<Objection>),
    /// It does not answer at all, or no longer.
    #[error(
        "{address} cannot be reached ({why}): check that tandemd runs there and accepts migrations, and the network \
         between the hosts"
    )]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What the system said.
        why: String,
    },
    /// One of the two does not believe the other.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It takes too long.
    #[error(
        "{address} did not answer to {what} within {} ms: check its load, and the network between the hosts",
        .limit.as_millis()
    )]
    TimedOut {
        /// Who.
        address: String,
        /// What it was asked.
        what: &'static str,
        /// The time it had.
        limit: Duration,
    },
    /// It speaks other versions.
    #[error(
        "the other host migrates by version {theirs:?} of the protocol, and this one by {VERSION}: update the older of the two"
    )]
    Version {
        /// Those that it knows.
        theirs: Vec<u16>,
    },
    /// What it answers makes no sense.
    #[error(
        "the other host's answer to {what} makes no sense ({why}): check that it is tandemd that answers, and its log"
    )]
    Protocol {
        /// What it was asked.
        what: &'static str,
        /// What is wrong with the answer.
        why: String,
    },
    /// It was not asked at all.
    #[error(
        "{0:?} cannot be the id of a migration or the name of a port: use at most 64 letters, digits, '.', '_' and '-'"
    )]
    BadName(String),
    /// It knows nothing of this migration.
    #[error(
        "the other host does not know migration {0}: it was started again, or never prepared it; prepare it again"
    )]
    UnknownMigration(String),
}

/// All objections in one line.
fn in_words(objections: &[Objection]) -> String {
    let one = |objection: &Objection| {
        let port = objection.port.as_ref();
        let port = port.map(|port| format!("{port}: ")).unwrap_or_default();
        format!("{port}{}; {}", objection.reason, objection.remedy)
    };
    let all: Vec<String> = objections.iter().map(one).collect();
    all.join(". ")
}

/// Whether it can be in a path as it is, and in a log: the form of a port's name.
fn is_id(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    first
        && text.len() <= MAX_ID
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
