//! Paths and methods, each a call of [`Control`].

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::error::Category;
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::control::{Condition, Control, Put, Removed};
use crate::metrics;
use crate::status::{Port, Ports, Vms};

/// Bytes of a request's body.
const BODY_BYTES: usize = 64 << 10;
/// Time for a request's body.
const BODY_TIME: Duration = Duration::from_secs(10);

type Answer = Result<Response, Problem>;
type Shared = State<Arc<Control>>;

/// All routes.
pub(super) fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/ports", get(list))
        .route(
            "/api/v1/ports/{name}",
            get(show).put(put).patch(patch).delete(remove),
        )
        .route("/api/v1/ports/{name}/reset", post(reset))
        .route("/api/v1/vms", get(vms))
        .route("/api/v1/vms/{name}", get(vm))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(async || {
            let remedy = "use GET, or on one port GET, PUT, PATCH or DELETE";
            Problem::request(
                StatusCode::METHOD_NOT_ALLOWED,
                "this cannot be done here",
                remedy,
            )
        })
        .fallback(async || {
            let remedy = "use /api/v1/status, /api/v1/ports, /api/v1/vms, or one of them: /api/v1/ports/NAME";
            Problem::request(StatusCode::NOT_FOUND, "there is no such path", remedy)
        })
        .with_state(control)
}

/// The metrics without the rest, for an address that others reach.
pub(super) fn metrics_only(control: Arc<Control>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(control)
}

async fn metrics(State(control): Shared) -> Answer {
    blocking(move || {
        let ports = control.ports();
        let page = metrics::Page {
            status: control.status(),
            vms: control.vms_of(&ports),
            ports,
        };
        let kind = [(header::CONTENT_TYPE, metrics::TYPE)];
        Ok((kind, page.text()).into_response())
    })
    .await
}

async fn status(State(control): Shared) -> Answer {
    blocking(move || Ok(json(StatusCode::OK, &control.status()))).await
}

async fn list(State(control): Shared) -> Answer {
    blocking(move || {
        Ok(json(
            StatusCode::OK,
            &Ports {
                ports: control.ports(),
            },
        ))
    })
    .await
}

async fn vms(State(control): Shared) -> Answer {
    blocking(move || Ok(json(StatusCode::OK, &Vms { vms: control.vms() }))).await
}

async fn vm(State(control): Shared, Path(name): Path<String>) -> Answer {
    blocking(move || Ok(json(StatusCode::OK, &control.vm(&name)?))).await
}

async fn show(State(control): Shared, Path(name): Path<String>) -> Answer {
    blocking(move || Ok(port(StatusCode::OK, &control.port(&name)?))).await
}

async fn put(
    State(control): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let condition = condition(&headers)?;
    let settings = object(body).await?;
    blocking(move || {
        let (put, now) = control.put(&name, &settings, &condition)?;
        let status = match put {
            Put::Created => StatusCode::CREATED,
            Put::Replaced => StatusCode::OK,
        };
        // No tag: what is kept is not what was sent, but has its defaults (RFC 9110, 9.3.4).
        Ok(json(status, &now))
    })
    .await
}

async fn patch(
    State(control): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let condition = condition(&headers)?;
    let changes = object(body).await?;
    blocking(move || {
        let now = control.patch(&name, &changes, &condition)?;
        Ok(port(StatusCode::OK, &now))
    })
    .await
}

async fn remove(State(control): Shared, Path(name): Path<String>, headers: HeaderMap) -> Answer {
    let condition = condition(&headers)?;
    blocking(move || {
        Ok(match control.remove(&name, &condition)? {
            Removed::ForGood => StatusCode::NO_CONTENT.into_response(),
            Removed::UntilRestart => {
                let note = format!(
                    "the command line of tandemd names {name}: it comes back at the next start \
                     unless it is taken out there"
                );
                json(StatusCode::OK, &serde_json::json!({"note": note}))
            }
        })
    })
    .await
}

async fn reset(State(control): Shared, Path(name): Path<String>, headers: HeaderMap) -> Answer {
    let condition = condition(&headers)?;
    blocking(move || {
        let now = control.reset(&name, &condition)?;
        Ok(port(StatusCode::OK, &now))
    })
    .await
}

/// What the request depends on (RFC 9110, 13.1.1 and 13.1.2).
fn condition(headers: &HeaderMap) -> Result<Condition, Problem> {
    let bad = |what: &str| {
        let remedy = "send If-Match with the ETag of a port or *, or If-None-Match: *";
        Err(Problem::request(StatusCode::BAD_REQUEST, what, remedy))
    };
    match (
        headers.get(header::IF_MATCH),
        headers.get(header::IF_NONE_MATCH),
    ) {
        (None, None) => Ok(Condition::Always),
        (None, Some(value)) if value == "*" => Ok(Condition::IsNew),
        (Some(value), None) if value == "*" => Ok(Condition::Exists),
        (Some(_), None) => {
            let lines = headers.get_all(header::IF_MATCH).iter();
            let lines = lines.filter_map(|line| line.to_str().ok());
            let tags = lines.flat_map(|line| line.split(','));
            let tags = tags.map(|tag| tag.trim().to_owned());
            Ok(Condition::Is(tags.collect()))
        }
        (None, Some(_)) => bad("If-None-Match names tags, which is of no use here"),
        (Some(_), Some(_)) => bad("If-Match and If-None-Match contradict each other"),
    }
}

/// A port, with the tag of its settings for [`condition`].
fn port(status: StatusCode, port: &Port) -> Response {
    let tag = [(header::ETAG, port.tag.clone())];
    (status, tag, Json(port)).into_response()
}

/// Runs a call that may block away from the thread that serves everybody.
async fn blocking(call: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    tokio::task::spawn_blocking(call).await.unwrap_or_else(|_| {
        let remedy = "see the daemon's log, and report it";
        Err(Problem::request(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request failed",
            remedy,
        ))
    })
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    (status, Json(value)).into_response()
}

/// Reads a body that is a JSON object; none at all is an empty one.
async fn object(body: Body) -> Result<Map<String, Value>, Problem> {
    let bytes = match tokio::time::timeout(BODY_TIME, to_bytes(body, BODY_BYTES)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let reason = format!("the body is longer than {BODY_BYTES} bytes, or broke off");
            let remedy = "send one JSON object of settings";
            return Err(Problem::request(
                StatusCode::PAYLOAD_TOO_LARGE,
                reason,
                remedy,
            ));
        }
        Err(_) => {
            let reason = format!("the body took longer than {} s", BODY_TIME.as_secs());
            return Err(Problem::request(
                StatusCode::REQUEST_TIMEOUT,
                reason,
                "send it whole",
            ));
        }
    };
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        let reason = match error.classify() {
            // serde names its own types here.
            Category::Data => "the body is JSON, but not a JSON object".to_owned(),
            _ => format!("the body is not a JSON object: {error}"),
        };
        let remedy = r#"send settings, such as {"mtu": 9000}"#;
        Problem::request(StatusCode::BAD_REQUEST, reason, remedy)
    })
}
