//! The switches.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;

use super::routes::{
    Answer, IfMatch, IfNoneMatch, Name, NameParam, Shared, blocking, condition, json, object,
    tagged,
};
use super::schema::SwitchSettings;
use crate::control::Put;
use crate::status::{Switch, Switches};

/// All switches, by name.
#[utoipa::path(
    get,
    path = "/api/v1/switches",
    tag = "switches",
    responses(
        (status = 200, body = Switches, description = "The switches"),
    )
)]
pub(super) async fn list(State(control): Shared) -> Answer {
    blocking(move || {
        let switches = control.switches();
        Ok(json(StatusCode::OK, &Switches { switches }))
    })
    .await
}

/// One switch.
#[utoipa::path(
    get,
    path = "/api/v1/switches/{name}",
    tag = "switches",
    params(NameParam),
    responses(
        (status = 200, body = Switch, headers(("etag" = String, description = "Tag of its settings")), description = "The switch"),
    )
)]
pub(super) async fn show(State(control): Shared, Name(name): Name) -> Answer {
    blocking(move || {
        let switch = control.switch(&name)?;
        Ok(tagged(&switch.tag, &switch))
    })
    .await
}

/// Makes a switch with just these settings, or gives them to the one of that name.
#[utoipa::path(
    put,
    path = "/api/v1/switches/{name}",
    tag = "switches",
    params(NameParam, IfMatch, IfNoneMatch),
    request_body = SwitchSettings,
    responses(
        (status = 200, body = Switch, description = "There was one; it has the new settings"),
        (status = 201, body = Switch, description = "There was none"),
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
        let (put, now) = control.put_switch(&name, &settings, &condition)?;
        let status = match put {
            Put::Created => StatusCode::CREATED,
            Put::Replaced => StatusCode::OK,
        };
        Ok(json(status, &now))
    })
    .await
}

/// Changes the settings that are named (JSON Merge Patch, RFC 7396); null takes one back.
#[utoipa::path(
    patch,
    path = "/api/v1/switches/{name}",
    tag = "switches",
    params(NameParam, IfMatch),
    request_body = SwitchSettings,
    responses(
        (status = 200, body = Switch, headers(("etag" = String, description = "Tag of its settings")), description = "The switch"),
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
        let now = control.patch_switch(&name, &changes, &condition)?;
        Ok(tagged(&now.tag, &now))
    })
    .await
}

/// Ends a switch that has no ports.
#[utoipa::path(
    delete,
    path = "/api/v1/switches/{name}",
    tag = "switches",
    params(NameParam, IfMatch),
    responses(
        (status = 204, description = "It is ended"),
    )
)]
pub(super) async fn remove(State(control): Shared, Name(name): Name, headers: HeaderMap) -> Answer {
    let condition = condition(&headers)?;
    blocking(move || {
        control.remove_switch(&name, &condition)?;
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

/// Forgets what was set over the API: the switch is again what the file says.
#[utoipa::path(
    post,
    path = "/api/v1/switches/{name}/reset",
    tag = "switches",
    params(NameParam, IfMatch),
    responses(
        (status = 200, body = Switch, headers(("etag" = String, description = "Tag of its settings")), description = "The switch"),
    )
)]
pub(super) async fn reset(State(control): Shared, Name(name): Name, headers: HeaderMap) -> Answer {
    let condition = condition(&headers)?;
    blocking(move || {
        let now = control.reset_switch(&name, &condition)?;
        Ok(tagged(&now.tag, &now))
    })
    .await
}
