//! The source's end: the calls of a migration, over connections that are made again when they break.

use std::error::Error as StdError;
use std::future::Future;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::problem::{Problem, REFUSED, UNKNOWN_MIGRATION, UNKNOWN_VERSION};
use super::routes::{Abort, Events, Versions};
use super::{EVENTS_WAIT, Event, JSON_LEN, PeerError, Plan, VERSION, VERSION_HEADER, is_id};
use crate::tls::{Identity, TlsError, peer_name};

/// The destination, as the source talks to it.
///
/// Calls are made one after the other on one connection; [`Self::events`] waits on another, so that it holds up
/// none of them. Both are connected again as needed: the destination closes those that are quiet for
/// [`TIME`](super::TIME), and what breaks off without an answer is sent once more.
///
/// Its methods want a tokio runtime with time and I/O that somebody drives. A thread that is none of the runtime's
/// calls them by [`Handle::block_on`](tokio::runtime::Handle::block_on), and has to end before the runtime does:
/// afterwards it would wait for good, or panic.
pub struct Peer {
    address: String,
    server_name: ServerName<'static>,
    connector: TlsConnector,
    limit: Duration,
    name: String,
    calls: Mutex<Option<Line>>,
    events: Mutex<Option<Line>>,
}

/// What to send.
struct Ask {
    what: &'static str,
    method: Method,
    path: String,
    kind: &'static str,
    body: Bytes,
}

impl Peer {
    /// Connects to `address` (`HOST:PORT`), demands that the host there has a certificate for `server_name`, and
    /// looks whether it knows this version. This and each call get `limit`.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn connect(
        address: &str,
        server_name: &str,
        identity: &Identity,
        limit: Duration,
    ) -> Result<Self, PeerError> {
        let name = ServerName::try_from(server_name.to_owned()).map_err(|_| {
            let why = format!("{server_name:?} is neither a DNS name nor an address");
            TlsError::Other(why)
        })?;
        let mut peer = Self {
            address: address.to_owned(),
            server_name: name,
            connector: TlsConnector::from(identity.client()),
            limit,
            name: String::new(),
            calls: Mutex::new(None),
            events: Mutex::new(None),
        };
        let (line, name) = peer.in_time("a connection", limit, peer.dial()).await?;
        peer.name = name;
        *peer.calls.lock().await = Some(line);
        peer.hello().await?;
        Ok(peer)
    }

    /// What the destination's certificate calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks for the versions that the destination knows. Where the next call is in a hurry, this connects for it.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn hello(&self) -> Result<(), PeerError> {
        let ask = Ask::get("a greeting", "/migration/v1".into());
        let Versions { versions } = parse(ask.what, &self.call(&ask, None).await?)?;
        match versions.contains(&VERSION) {
            true => Ok(()),
            false => Err(PeerError::Version { theirs: versions }),
        }
    }

    /// Asks whether the VM can come.
    ///
    /// # Errors
    /// [`PeerError::Refused`] with all that is in the way: nothing has changed there then. After any other
    /// error it is open whether the destination is prepared: abort.
    pub async fn prepare(&self, id: &str, plan: &Plan) -> Result<(), PeerError> {
        let ask = Ask::post("the plan", path(id, "")?, plan)?;
        self.call(&ask, Some(id)).await.map(drop)
    }

    /// Sends the state of a port, as bytes of a [`PortState`](crate::state::PortState).
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn send_state(&self, id: &str, port: &str, bytes: Vec<u8>) -> Result<(), PeerError> {
        check_name(port)?;
        let ask = Ask {
            what: "a port's state",
            method: Method::PUT,
            path: path(id, &format!("/ports/{port}/state"))?,
            kind: "application/octet-stream",
            body: bytes.into(),
        };
        self.call(&ask, Some(id)).await.map(drop)
    }

    /// Sends [frames](crate::frames) for a port, the message of this number, from 1.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn send_frames(
        &self,
        id: &str,
        port: &str,
        number: u64,
        bytes: Vec<u8>,
    ) -> Result<(), PeerError> {
        check_name(port)?;
        let ask = Ask {
            what: "frames of a port",
            method: Method::PUT,
            path: path(id, &format!("/ports/{port}/frames?number={number}"))?,
            kind: "application/octet-stream",
            body: bytes.into(),
        };
        self.call(&ask, Some(id)).await.map(drop)
    }

    /// Waits for events after number `after` (0: all), at most [`EVENTS_WAIT`] and the limit.
    ///
    /// # Errors
    /// See [`PeerError`]; that there are none is no error.
    pub async fn events(&self, id: &str, after: u64) -> Result<Vec<Event>, PeerError> {
        let ask = Ask::get(
            "a wait for events",
            path(id, &format!("/events?after={after}"))?,
        );
        let limit = self.limit + EVENTS_WAIT;
        let answer = self.exchange(&self.events, &ask);
        let (status, body) = self.in_time(ask.what, limit, answer).await?;
        let body = accepted(&ask, Some(id), status, body)?;
        let Events { events } = parse(ask.what, &body)?;
        Ok(events)
    }

    /// Says that the VM stays there.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn commit(&self, id: &str) -> Result<(), PeerError> {
        let ask = Ask {
            method: Method::POST,
            ..Ask::get("the commit", path(id, "/commit")?)
        };
        self.call(&ask, Some(id)).await.map(drop)
    }

    /// Says that the VM does not come.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn abort(&self, id: &str, reason: &str) -> Result<(), PeerError> {
        // A reason may quote what somebody else said at length.
        let reason = reason.chars().take(1024).collect();
        let ask = Ask::post("the abort", path(id, "/abort")?, &Abort { reason })?;
        self.call(&ask, Some(id)).await.map(drop)
    }

    async fn call(&self, ask: &Ask, id: Option<&str>) -> Result<Bytes, PeerError> {
        let answer = self.exchange(&self.calls, ask);
        let (status, body) = self.in_time(ask.what, self.limit, answer).await?;
        accepted(ask, id, status, body)
    }

    async fn in_time<T>(
        &self,
        what: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<T, PeerError>>,
    ) -> Result<T, PeerError> {
        timeout(limit, answer).await.unwrap_or_else(|_| {
            Err(PeerError::TimedOut {
                address: self.address.clone(),
                what,
                limit,
            })
        })
    }

    /// One request and its answer. The line is away meanwhile: given up half way, it is not used again.
    async fn exchange(
        &self,
        line: &Mutex<Option<Line>>,
        ask: &Ask,
    ) -> Result<(StatusCode, Bytes), PeerError> {
        let mut place = line.lock().await;
        if let Some(mut line) = place.take() {
            // The other end closes a connection that is quiet, perhaps at this moment.
            match line.send(self, ask).await {
                Ok(answer) => {
                    *place = Some(line);
                    return Ok(answer);
                }
                Err(error @ PeerError::Unreachable { .. }) => {
                    log::debug!("migration: connecting again: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        let (mut line, _) = self.dial().await?;
        let answer = line.send(self, ask).await?;
        *place = Some(line);
        Ok(answer)
    }

    /// A new connection, and who answers.
    async fn dial(&self) -> Result<(Line, String), PeerError> {
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|error| self.broken(&error))?;
        // Requests are short, and the VM waits for some.
        stream
            .set_nodelay(true)
            .map_err(|error| self.broken(&error))?;
        let stream = self.connector.connect(self.server_name.clone(), stream);
        let stream = stream.await.map_err(|error| self.broken(&error))?;
        let name = peer_name(stream.get_ref().1.peer_certificates())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        let task = Ended(tokio::spawn(connection));
        let line = Line {
            sender,
            _task: task,
        };
        Ok((line, name))
    }

    fn broken(&self, error: &(dyn StdError + 'static)) -> PeerError {
        if let Some(error) = TlsError::find(error) {
            return error.into();
        }
        let mut innermost = error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        PeerError::Unreachable {
            address: self.address.clone(),
            why: innermost.to_string(),
        }
    }
}

/// A connection.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    _task: Ended,
}

/// Ends a connection's task when it is dropped.
struct Ended(JoinHandle<hyper::Result<()>>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Line {
    async fn send(&mut self, peer: &Peer, ask: &Ask) -> Result<(StatusCode, Bytes), PeerError> {
        let request = Request::builder()
            .method(ask.method.clone())
            .uri(&ask.path)
            .header(header::HOST, &peer.address)
            .header(VERSION_HEADER, VERSION)
            .header(header::CONTENT_TYPE, ask.kind)
            .body(Full::new(ask.body.clone()))
            .map_err(|error| ask.senseless(error))?;
        self.sender.ready().await.map_err(|e| peer.broken(&e))?;
        let response = self.sender.send_request(request).await;
        let response = response.map_err(|error| peer.broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), JSON_LEN).collect().await;
        match body {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                Err(ask.senseless("it is too long"))
            }
            Err(error) => Err(peer.broken(&*error)),
        }
    }
}

impl Ask {
    fn get(what: &'static str, path: String) -> Self {
        Self {
            what,
            method: Method::GET,
            path,
            kind: "application/json",
            body: Bytes::new(),
        }
    }

    fn post(what: &'static str, path: String, body: &impl Serialize) -> Result<Self, PeerError> {
        let json = serde_json::to_vec(body).map_err(|error| PeerError::Protocol {
            what,
            why: error.to_string(),
        })?;
        Ok(Self {
            method: Method::POST,
            body: json.into(),
            ..Self::get(what, path)
        })
    }

    fn senseless(&self, why: impl ToString) -> PeerError {
        PeerError::Protocol {
            what: self.what,
            why: why.to_string(),
        }
    }
}

fn path(id: &str, rest: &str) -> Result<String, PeerError> {
    check_name(id)?;
    Ok(format!("/migration/v1/migrations/{id}{rest}"))
}

fn check_name(name: &str) -> Result<(), PeerError> {
    match is_id(name) {
        true => Ok(()),
        false => Err(PeerError::BadName(name.to_owned())),
    }
}

fn parse<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, PeerError> {
    serde_json::from_slice(body).map_err(|error| PeerError::Protocol {
        what,
        why: error.to_string(),
    })
}

/// The answer, or what its problem means.
fn accepted(
    ask: &Ask,
    id: Option<&str>,
    status: StatusCode,
    body: Bytes,
) -> Result<Bytes, PeerError> {
    if status.is_success() {
        return Ok(body);
    }
    let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    Err(match (problem.code.as_str(), id) {
        (REFUSED, _) if !problem.objections.is_empty() => PeerError::Refused(problem.objections),
        (UNKNOWN_MIGRATION, Some(id)) => PeerError::UnknownMigration(id.to_owned()),
        (UNKNOWN_VERSION, _) => PeerError::Version {
            theirs: problem.versions,
        },
        _ => ask.senseless(format!("{status} {}", problem.detail)),
    })
}
