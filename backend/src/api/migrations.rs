//! VMs on their way to another host, or from one.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::problem::Problem;
use super::routes::{Answer, Name, NameParam, json, object};
use crate::config::valid_name;
use crate::control::{Refused, RefusedKind};
use crate::migration::{List, Migration, Migrations, Prepare};

pub(super) type Shared = State<Arc<Migrations>>;

/// Why a migration is aborted.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Abort {
    /// Why, for logs and status of both hosts.
    #[serde(default)]
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// All migrations, by VM: of each the one that is on, or was last.
#[utoipa::path(
    get,
    path = "/api/v1/migrations",
    tag = "migrations",
    responses(
        (status = 200, body = List, description = "The migrations"),
    )
)]
pub(super) async fn list(State(all): Shared) -> Answer {
    let migrations = all.list();
    Ok(json(StatusCode::OK, &List { migrations }))
}

/// A VM's migration.
#[utoipa::path(
    get,
    path = "/api/v1/migrations/{name}",
    tag = "migrations",
    params(NameParam),
    responses(
        (status = 200, body = Migration, description = "The migration"),
    )
)]
pub(super) async fn show(State(all): Shared, Name(vm): Name) -> Answer {
    Ok(json(StatusCode::OK, &all.show(&vm)?))
}

/// Asks the other host whether the VM can come. Once it has agreed, the VM may be moved.
#[utoipa::path(
    post,
    path = "/api/v1/migrations/{name}/prepare",
    tag = "migrations",
    params(NameParam),
    request_body = Prepare,
    responses(
        (status = 200, body = Migration, description = "It can"),
    )
)]
pub(super) async fn prepare(State(all): Shared, Name(vm): Name, body: Body) -> Answer {
    valid_name(&vm)?;
    let prepare: Prepare = read(body).await?;
    prepare.check()?;
    Ok(json(StatusCode::OK, &all.prepare(&vm, &prepare).await?))
}

/// The VM stays where it has gone.
#[utoipa::path(
    post,
    path = "/api/v1/migrations/{name}/commit",
    tag = "migrations",
    params(NameParam),
    responses(
        (status = 200, body = Migration, description = "It does"),
    )
)]
pub(super) async fn commit(State(all): Shared, Name(vm): Name) -> Answer {
    Ok(json(StatusCode::OK, &all.commit(&vm)?))
}

/// The VM stays where it was.
#[utoipa::path(
    post,
    path = "/api/v1/migrations/{name}/abort",
    tag = "migrations",
    params(NameParam),
    request_body = Abort,
    responses(
        (status = 200, body = Migration, description = "It does"),
    )
)]
pub(super) async fn abort(State(all): Shared, Name(vm): Name, body: Body) -> Answer {
    let abort: Abort = read(body).await?;
    let reason = abort.reason.as_deref().unwrap_or("somebody has said so");
    let reason: String = reason.chars().take(1000).collect();
    Ok(json(StatusCode::OK, &all.abort(&vm, &reason)?))
}

async fn read<T: for<'a> Deserialize<'a>>(body: Body) -> Result<T, Problem> {
    let members = object(body).await?;
    serde_json::from_value(Value::Object(members)).map_err(|e| {
        let remedy = "see /api/v1/openapi.json";
        Refused::new(RefusedKind::Invalid, e.to_string(), remedy).into()
    })
}
