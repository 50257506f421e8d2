//! Paths and methods, each a call of [`Destination`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Extension, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use hyper::body::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use super::problem::Problem;
use super::{
    Destination, EVENTS_WAIT, Event, JSON_LEN, MAX_PORTS, Objection, Plan, TIME, VERSION,
    VERSION_HEADER, is_id,
};
use crate::{frames, state};

/// The versions that are known.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Versions {
    pub(super) versions: Vec<u16>,
}

/// The answer to a long poll.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Events {
    pub(super) events: Vec<Event>,
}

/// The body of an abort.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Abort {
    pub(super) reason: String,
}

/// The host at the other end of the connection, by its certificate.
#[derive(Clone)]
struct Caller(Arc<str>);

pub(super) fn caller(name: &str) -> Extension<impl Clone + Send + Sync + 'static> {
    Extension(Caller(name.into()))
}

#[derive(Clone)]
struct Shared {
    destination: Arc<dyn Destination>,
    stopped: watch::Receiver<()>,
}

type Answer = Result<Response, Problem>;

/// All routes; the connection has to add its [`caller`].
pub(super) fn router(destination: Arc<dyn Destination>, stopped: watch::Receiver<()>) -> Router {
    Router::new()
        .route("/migration/v1", get(versions))
        .route("/migration/v1/migrations/{id}", post(prepare))
        .route(
            "/migration/v1/migrations/{id}/ports/{port}/state",
            put(state),
        )
        .route(
            "/migration/v1/migrations/{id}/ports/{port}/frames",
            put(take_frames),
        )
        .route("/migration/v1/migrations/{id}/events", get(events))
        .route("/migration/v1/migrations/{id}/commit", post(commit))
        .route("/migration/v1/migrations/{id}/abort", post(abort))
        .method_not_allowed_fallback(async || {
            let remedy = "use a method that Allow names";
            Problem::request(
                StatusCode::METHOD_NOT_ALLOWED,
                "this cannot be done here",
                remedy,
            )
        })
        .fallback(async || {
            let remedy = "use /migration/v1/migrations/ID";
            Problem::request(StatusCode::NOT_FOUND, "there is no such path", remedy)
        })
        .layer(middleware::from_fn(version))
        .with_state(Shared {
            destination,
            stopped,
        })
}

/// Refuses other versions before anything else is looked at.
async fn version(request: Request, next: Next) -> Response {
    let said = request.headers().get(VERSION_HEADER);
    let said = said.and_then(|said| said.to_str().ok()?.parse().ok());
    match said {
        Some(VERSION) => next.run(request).await,
        _ => Problem::version().into_response(),
    }
}

/// What a path names, in the form that names have.
struct Named {
    id: String,
    port: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<BTreeMap<String, String>>::from_request_parts(parts, state).await;
        let mut names = path.map(|Path(names)| names).unwrap_or_default();
        if names.is_empty() || !names.values().all(|name| is_id(name)) {
            let remedy = "use at most 64 letters, digits, '.', '_' and '-'";
            let reason = "the path has a name that is none";
            return Err(Problem::request(StatusCode::BAD_REQUEST, reason, remedy));
        }
        let mut take = |key| names.remove(key).unwrap_or_default();
        Ok(Self {
            id: take("id"),
            port: take("port"),
        })
    }
}

impl Shared {
    /// Makes a call that may block away from the thread that serves everybody.
    async fn call<T: Send + 'static>(
        self,
        call: impl FnOnce(&dyn Destination) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let called = tokio::task::spawn_blocking(move || call(&*self.destination)).await;
        called.map_err(|_| {
            let remedy = "see the daemon's log, and report it";
            let reason = "the request failed";
            Problem::request(StatusCode::INTERNAL_SERVER_ERROR, reason, remedy)
        })
    }
}

async fn versions() -> Response {
    let versions = vec![VERSION];
    Json(Versions { versions }).into_response()
}

async fn prepare(
    State(shared): State<Shared>,
    Extension(Caller(peer)): Extension<Caller>,
    Named { id, .. }: Named,
    body: Body,
) -> Answer {
    let plan: Plan = json(body).await?;
    check(&plan).map_err(|reason| {
        let remedy = "report it, it is a fault of the source";
        Problem::request(StatusCode::BAD_REQUEST, reason, remedy)
    })?;
    let unknown = unknown_keys(&plan);
    if !unknown.is_empty() {
        return Err(unknown.into());
    }
    shared
        .call(move |to| to.prepare(&peer, &id, &plan))
        .await??;
    Ok(Json(BTreeMap::<(), ()>::new()).into_response())
}

/// No version of the plan has had a key yet that must be known.
fn unknown_keys(plan: &Plan) -> Vec<Objection> {
    let objection = |key: &String| {
        let reason = format!("the VM needs {key}, which this tandemd does not know");
        Objection::new(reason, "update tandemd on the destination first")
    };
    plan.requires.iter().map(objection).collect()
}

fn check(plan: &Plan) -> Result<(), &'static str> {
    if plan.ports.is_empty() || plan.ports.len() > MAX_PORTS {
        return Err("the plan has no ports, or too many");
    }
    let names: BTreeSet<&str> = plan.ports.iter().map(|port| port.name.as_str()).collect();
    if names.len() != plan.ports.len() || !names.iter().all(|name| is_id(name)) {
        return Err("the plan has a port twice, or one whose name is none");
    }
    if !is_id(&plan.vm) {
        return Err("the plan has a VM whose name is none");
    }
    Ok(())
}

async fn state(
    State(shared): State<Shared>,
    Extension(Caller(peer)): Extension<Caller>,
    Named { id, port }: Named,
    body: Body,
) -> Answer {
    let bytes = read(body, state::MAX_LEN).await?;
    shared
        .call(move |to| to.state(&peer, &id, &port, &bytes))
        .await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn take_frames(
    State(shared): State<Shared>,
    Extension(Caller(peer)): Extension<Caller>,
    Named { id, port }: Named,
    uri: Uri,
    body: Body,
) -> Answer {
    let number = number_of(&uri, "number=", 1).ok_or_else(no_number)?;
    let bytes = read(body, frames::MAX_LEN).await?;
    shared
        .call(move |to| to.frames(&peer, &id, &port, number, &bytes))
        .await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The number that a query consists of.
fn number_of(uri: &Uri, key: &str, otherwise: u64) -> Option<u64> {
    match uri.query() {
        None => Some(otherwise),
        Some(query) => query.strip_prefix(key).and_then(|n| n.parse().ok()),
    }
}

fn no_number() -> Problem {
    let remedy = "send ?after= and the number of the event that was heard last, or ?number= and that of frames";
    let reason = "the query is no number";
    Problem::request(StatusCode::BAD_REQUEST, reason, remedy)
}

async fn events(
    State(shared): State<Shared>,
    Extension(Caller(peer)): Extension<Caller>,
    Named { id, .. }: Named,
    uri: Uri,
) -> Answer {
    let after = number_of(&uri, "after=", 0).ok_or_else(no_number)?;
    let mut stopped = shared.stopped.clone();
    let log = shared.call(move |to| to.events(&peer, &id)).await??;
    let events = tokio::select! {
        events = timeout(EVENTS_WAIT, log.wait(after)) => events.unwrap_or_default(),
        _ = stopped.changed() => log.since(after),
    };
    Ok(Json(Events { events }).into_response())
}

async fn commit(
    State(shared): State<Shared>,
    Extension(Caller(peer)): Extension<Caller>,
    Named { id, .. }: Named,
) -> Answer {
    shared.call(move |to| to.commit(&peer, &id)).await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn abort(
    State(shared): State<Shared>,
    Extension(Caller(peer)): Extension<Caller>,
    Named { id, .. }: Named,
    body: Body,
) -> Answer {
    let Abort { reason } = json(body).await?;
    shared
        .call(move |to| to.abort(&peer, &id, &reason))
        .await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn json<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let bytes = read(body, JSON_LEN).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let reason = format!("the body is not what it should be: {error}");
        let remedy = "report it, if it is tandemd that has sent it";
        Problem::request(StatusCode::BAD_REQUEST, reason, remedy)
    })
}

async fn read(body: Body, most: usize) -> Result<Bytes, Problem> {
    match timeout(TIME, to_bytes(body, most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let reason = format!("the body is longer than {most} bytes, or broke off");
            let remedy = "send less";
            Err(Problem::request(
                StatusCode::PAYLOAD_TOO_LARGE,
                reason,
                remedy,
            ))
        }
        Err(_) => {
            let reason = format!("the body took longer than {} s", TIME.as_secs());
            let remedy = "send it whole";
            Err(Problem::request(
                StatusCode::REQUEST_TIMEOUT,
                reason,
                remedy,
            ))
        }
    }
}
