//! The ports.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Problem;
use super::routes::{Answer, Name, Shared, blocking, json, object};
use super::schema::PortSettings;
use crate::control::{Condition, Put, Removed};
use crate::status::{Port, Ports};

/// All ports, by name.
#[utoipa::path(
    get,
    path = "/api/v1/ports",
    tag = "ports",
    responses(
        (status = 200, body = Ports, description = "The ports"),
    )
)]
pub(super) async fn list(State(control): Shared) -> Answer {
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

/// One port.
#[utoipa::path(
    get,
    path = "/api/v1/ports/{name}",
    tag = "ports",
    params(("name" = String, Path, description = "Name of the port", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")),
    responses(
        (status = 200, body = Port, headers(("etag" = String, description = "Tag of its settings")), description = "The port"),
    )
)]
pub(super) async fn show(State(control): Shared, Name(name): Name) -> Answer {
    blocking(move || Ok(port(StatusCode::OK, &control.port(&name)?))).await
}

/// Makes a port with just these settings, in the place of one of that name.
#[utoipa::path(
    put,
    path = "/api/v1/ports/{name}",
    tag = "ports",
    params(("name" = String, Path, description = "Name of the port", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
        ("If-Match" = Option<String>, Header, description = "ETag of the port, or *: change it only if it is still so", example = "*"),
        ("If-None-Match" = Option<String>, Header, pattern = r"^\*$", description = "*: only if there is none of that name"),
    ),
    request_body = PortSettings,
    responses(
        (status = 200, body = Port, description = "There was one; it has the new settings"),
        (status = 201, body = Port, description = "There was none"),
    )
)]
pub(super) async fn put(
    State(control): Shared,
    Name(name): Name,
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

/// Changes the settings that are named (JSON Merge Patch, RFC 7396); null is the default.
#[utoipa::path(
    patch,
    path = "/api/v1/ports/{name}",
    tag = "ports",
    params(("name" = String, Path, description = "Name of the port", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
        ("If-Match" = Option<String>, Header, description = "ETag of the port, or *: change it only if it is still so", example = "*"),
        ("If-None-Match" = Option<String>, Header, pattern = r"^\*$", description = "*: only if there is none of that name"),
    ),
    request_body = PortSettings,
    responses(
        (status = 200, body = Port, headers(("etag" = String, description = "Tag of its settings")), description = "The port"),
    )
)]
pub(super) async fn patch(
    State(control): Shared,
    Name(name): Name,
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

/// Ends a port.
#[utoipa::path(
    delete,
    path = "/api/v1/ports/{name}",
    tag = "ports",
    params(("name" = String, Path, description = "Name of the port", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
        ("If-Match" = Option<String>, Header, description = "ETag of the port, or *: change it only if it is still so", example = "*"),
        ("If-None-Match" = Option<String>, Header, pattern = r"^\*$", description = "*: only if there is none of that name"),
    ),
    responses(
        (status = 200, body = Note, description = "It is ended until the daemon starts again"),
        (status = 204, description = "It is ended"),
    )
)]
pub(super) async fn remove(State(control): Shared, Name(name): Name, headers: HeaderMap) -> Answer {
    let condition = condition(&headers)?;
    blocking(move || {
        Ok(match control.remove(&name, &condition)? {
            Removed::ForGood => StatusCode::NO_CONTENT.into_response(),
            Removed::UntilRestart => {
                let note = format!(
                    "the command line of tandemd names {name}: it comes back at the next start \
                     unless it is taken out there"
                );
                json(StatusCode::OK, &Note { note })
            }
        })
    })
    .await
}

/// Forgets what was set over the API: the port is again what file and command line say.
#[utoipa::path(
    post,
    path = "/api/v1/ports/{name}/reset",
    tag = "ports",
    params(("name" = String, Path, description = "Name of the port", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
        ("If-Match" = Option<String>, Header, description = "ETag of the port, or *: change it only if it is still so", example = "*"),
        ("If-None-Match" = Option<String>, Header, pattern = r"^\*$", description = "*: only if there is none of that name"),
    ),
    responses(
        (status = 200, body = Port, headers(("etag" = String, description = "Tag of its settings")), description = "The port"),
    )
)]
pub(super) async fn reset(State(control): Shared, Name(name): Name, headers: HeaderMap) -> Answer {
    let condition = condition(&headers)?;
    blocking(move || {
        let now = control.reset(&name, &condition)?;
        Ok(port(StatusCode::OK, &now))
    })
    .await
}

/// Words beside the result.
#[derive(Serialize, ToSchema)]
pub(super) struct Note {
    /// What else there is to know.
    note: String,
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
