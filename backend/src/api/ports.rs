//! The ports.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::routes::{
    Answer, IfMatch, IfNoneMatch, Name, NameParam, Shared, blocking, condition, json, object,
    tagged,
};
use super::schema::PortSettings;
use crate::control::{Put, Removed};
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
    params(NameParam),
    responses(
        (status = 200, body = Port, headers(("etag" = String, description = "Tag of its settings")), description = "The port"),
    )
)]
pub(super) async fn show(State(control): Shared, Name(name): Name) -> Answer {
    blocking(move || {
        let port = control.port(&name)?;
        Ok(tagged(&port.tag, &port))
    })
    .await
}

/// Makes a port with just these settings, in the place of one of that name.
#[utoipa::path(
    put,
    path = "/api/v1/ports/{name}",
    tag = "ports",
    params(NameParam, IfMatch, IfNoneMatch),
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

/// Changes the settings that are named (JSON Merge Patch, RFC 7396); null takes one back.
#[utoipa::path(
    patch,
    path = "/api/v1/ports/{name}",
    tag = "ports",
    params(NameParam, IfMatch),
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
        Ok(tagged(&now.tag, &now))
    })
    .await
}

/// Ends a port.
#[utoipa::path(
    delete,
    path = "/api/v1/ports/{name}",
    tag = "ports",
    params(NameParam, IfMatch),
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
    params(NameParam, IfMatch),
    responses(
        (status = 200, body = Port, headers(("etag" = String, description = "Tag of its settings")), description = "The port"),
    )
)]
pub(super) async fn reset(State(control): Shared, Name(name): Name, headers: HeaderMap) -> Answer {
    let condition = condition(&headers)?;
    blocking(move || {
        let now = control.reset(&name, &condition)?;
        Ok(tagged(&now.tag, &now))
    })
    .await
}

/// Words beside the result.
#[derive(Serialize, ToSchema)]
pub(super) struct Note {
    /// What else there is to know.
    note: String,
}
