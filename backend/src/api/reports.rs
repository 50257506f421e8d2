//! What the daemon reports: the whole, switches, profiles, VMs, metrics.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::routes::{Answer, Name, NameParam, Shared, blocking, json};
use crate::metrics;
use crate::status::{Profiles, Status, Vm, Vms};

/// The whole.
#[utoipa::path(
    get,
    path = "/api/v1/status",
    tag = "status",
    responses(
        (status = 200, body = Status, description = "Version, ports, switches"),
    )
)]
pub(super) async fn status(State(control): Shared) -> Answer {
    blocking(move || Ok(json(StatusCode::OK, &control.status()))).await
}

/// All profiles of the configuration file, by name.
#[utoipa::path(
    get,
    path = "/api/v1/profiles",
    tag = "profiles",
    responses(
        (status = 200, body = Profiles, description = "The profiles"),
    )
)]
pub(super) async fn profiles(State(control): Shared) -> Answer {
    blocking(move || {
        let profiles = control.profiles();
        Ok(json(StatusCode::OK, &Profiles { profiles }))
    })
    .await
}

/// All VMs, by name.
#[utoipa::path(
    get,
    path = "/api/v1/vms",
    tag = "vms",
    responses(
        (status = 200, body = Vms, description = "The VMs"),
    )
)]
pub(super) async fn vms(State(control): Shared) -> Answer {
    blocking(move || Ok(json(StatusCode::OK, &Vms { vms: control.vms() }))).await
}

/// One VM.
#[utoipa::path(
    get,
    path = "/api/v1/vms/{name}",
    tag = "vms",
    params(NameParam),
    responses(
        (status = 200, body = Vm, description = "The VM"),
    )
)]
pub(super) async fn vm(State(control): Shared, Name(name): Name) -> Answer {
    blocking(move || Ok(json(StatusCode::OK, &control.vm(&name)?))).await
}

/// Metrics for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "metrics",
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "See docs/metrics.md"),
    )
)]
pub(super) async fn metrics(State(control): Shared) -> Answer {
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
