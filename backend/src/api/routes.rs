//! Paths and methods, each a call of [`Control`].

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::error::Category;
use serde_json::{Map, Value};
use utoipa::IntoParams;

use super::problem::Problem;
use super::{capture, events, migrations, ports, reports, schema, switches, teams};
use crate::control::{Condition, Control};
use crate::migration::Migrations;

/// Bytes of a request's body.
const BODY_BYTES: usize = 64 << 10;
/// Time for a request's body.
const BODY_TIME: Duration = Duration::from_secs(10);

pub(super) type Answer = Result<Response, Problem>;
pub(super) type Shared = State<Arc<Control>>;

/// All routes.
pub(super) fn router(control: Arc<Control>, migrations: Arc<Migrations>) -> Router {
    let migrations = Router::new()
        .route("/api/v1/migrations", get(migrations::list))
        .route("/api/v1/migrations/{name}", get(migrations::show))
        .route(
            "/api/v1/migrations/{name}/prepare",
            post(migrations::prepare),
        )
        .route("/api/v1/migrations/{name}/commit", post(migrations::commit))
        .route("/api/v1/migrations/{name}/abort", post(migrations::abort))
        .with_state(migrations);
    Router::new()
        .route("/api/v1/openapi.json", get(schema::document))
        .route("/api/v1/status", get(reports::status))
        .route("/api/v1/events", get(events::stream))
        .route("/api/v1/ports", get(ports::list))
        .route(
            "/api/v1/ports/{name}",
            get(ports::show)
                .put(ports::put)
                .patch(ports::patch)
                .delete(ports::remove),
        )
        .route("/api/v1/ports/{name}/reset", post(ports::reset))
        .route("/api/v1/ports/{name}/capture", get(capture::capture))
        .route("/api/v1/switches", get(switches::list))
        .route(
            "/api/v1/switches/{name}",
            get(switches::show)
                .put(switches::put)
                .patch(switches::patch)
                .delete(switches::remove),
        )
        .route("/api/v1/switches/{name}/reset", post(switches::reset))
        .route("/api/v1/teams", get(teams::list))
        .route(
            "/api/v1/teams/{name}",
            get(teams::show)
                .put(teams::put)
                .patch(teams::patch)
                .delete(teams::remove),
        )
        .route("/api/v1/teams/{name}/reset", post(teams::reset))
        .route("/api/v1/profiles", get(reports::profiles))
        .route("/api/v1/vms", get(reports::vms))
        .route("/api/v1/vms/{name}", get(reports::vm))
        .route("/metrics", get(reports::metrics))
        .method_not_allowed_fallback(async || {
            let remedy = "use a method that Allow names; see /api/v1/openapi.json";
            Problem::request(
                StatusCode::METHOD_NOT_ALLOWED,
                "this cannot be done here",
                remedy,
            )
        })
        .fallback(async || {
            let remedy = "use /api/v1/ports, /api/v1/ports/NAME, or see /api/v1/openapi.json";
            Problem::request(StatusCode::NOT_FOUND, "there is no such path", remedy)
        })
        .with_state(control)
        .merge(migrations)
}

/// The metrics without the rest, for an address that others reach.
pub(super) fn metrics_only(control: Arc<Control>) -> Router {
    Router::new()
        .route("/metrics", get(reports::metrics))
        .with_state(control)
}

/// What a path names.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)] // It describes `Name`.
pub(super) struct NameParam {
    /// Its name.
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    name: String,
}

/// What a change may depend on.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)] // It describes `condition`.
pub(super) struct IfMatch {
    /// The ETag that it has, or *: change it only if it is still so.
    #[param(rename = "If-Match", example = "*")]
    if_match: Option<String>,
}

/// What making one may depend on.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)] // It describes `condition`.
pub(super) struct IfNoneMatch {
    /// *: only if there is none of that name.
    #[param(rename = "If-None-Match", pattern = r"^\*$")]
    if_none_match: Option<String>,
}

/// The name in a path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name)).map_err(|_| {
            let remedy = "use letters, digits, '.', '_' and '-'";
            Problem::request(StatusCode::BAD_REQUEST, "the path is no text", remedy)
        })
    }
}

/// Runs a call that may block away from the thread that serves everybody.
pub(super) async fn blocking(call: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    tokio::task::spawn_blocking(call).await.unwrap_or_else(|_| {
        let remedy = "see the daemon's log, and report it";
        Err(Problem::request(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request failed",
            remedy,
        ))
    })
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    (status, Json(value)).into_response()
}

/// Reads a body that is a JSON object; none at all is an empty one.
pub(super) async fn object(body: Body) -> Result<Map<String, Value>, Problem> {
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

/// What the request depends on (RFC 9110, 13.1.1 and 13.1.2).
pub(super) fn condition(headers: &HeaderMap) -> Result<Condition, Problem> {
    let bad = |what: &str| {
        let remedy = "send If-Match with an ETag or *, or If-None-Match: *";
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

/// An object, with the tag of its settings for [`condition`].
pub(super) fn tagged(tag: &str, object: &impl Serialize) -> Response {
    let tag = [(header::ETAG, tag.to_owned())];
    (StatusCode::OK, tag, Json(object)).into_response()
}
