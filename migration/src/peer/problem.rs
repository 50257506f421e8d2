//! Errors as problem details (RFC 9457), for both ends.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{Objection, Refusal, VERSION};

/// The `code` of a migration that is not known.
pub(super) const UNKNOWN_MIGRATION: &str = "unknown_migration";
/// That of a version that is not known.
pub(super) const UNKNOWN_VERSION: &str = "unknown_version";
/// That of a refusal with objections.
pub(super) const REFUSED: &str = "refused";
/// That of a request that is wrong in itself.
const BAD_REQUEST: &str = "bad_request";

/// The members of RFC 9457, section 3.1, but for `instance`, and ours.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: String,
    /// What the status means.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What is wrong.
    pub(super) detail: String,
    /// The same for programs.
    pub(super) code: String,
    /// What to do about it.
    pub(super) remedy: String,
    /// All that is in the way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) objections: Vec<Objection>,
    /// The versions that the destination knows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) versions: Vec<u16>,
}

impl Problem {
    fn new(status: StatusCode, code: &str, detail: impl Into<String>, remedy: &str) -> Self {
        Self {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.into(),
            remedy: remedy.into(),
            ..Self::default()
        }
    }

    /// A problem of the request itself.
    pub(super) fn request(status: StatusCode, detail: impl Into<String>, remedy: &str) -> Self {
        Self::new(status, BAD_REQUEST, detail, remedy)
    }

    /// A request of another version.
    pub(super) fn version() -> Self {
        let detail = format!("this tandemd migrates by version {VERSION} of the protocol");
        let remedy =
            "send the header Tandem-Migration with that version, or update the older of the two";
        Self {
            versions: vec![VERSION],
            ..Self::new(StatusCode::NOT_IMPLEMENTED, UNKNOWN_VERSION, detail, remedy)
        }
    }
}

impl From<Vec<Objection>> for Problem {
    fn from(objections: Vec<Objection>) -> Self {
        let first = objections.first();
        let detail = first
            .map_or("it was refused", |first| &first.reason)
            .to_owned();
        let remedy = first
            .map_or("see the daemon's log", |first| &first.remedy)
            .to_owned();
        Self {
            objections,
            ..Self::new(StatusCode::CONFLICT, REFUSED, detail, &remedy)
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Objections(objections) => objections.into(),
            Refusal::Unknown => Self::new(
                StatusCode::NOT_FOUND,
                UNKNOWN_MIGRATION,
                "this tandemd has prepared no such migration",
                "prepare it first",
            ),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let json = serde_json::to_vec(&self).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, json).into_response()
    }
}
