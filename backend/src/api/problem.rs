//! Errors as problem details (RFC 9457).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::{Refused, RefusedKind};

/// An answer that says what is wrong.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    wrong: Vec<Refused>,
}

/// The members of RFC 9457, section 3.1, and ours: the first error's, then all of them.
#[derive(Serialize, ToSchema)]
pub(super) struct ProblemDetails {
    #[serde(rename = "type")]
    kind: &'static str,
    /// What the status means.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong.
    detail: String,
    /// The setting at fault, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// What to do about it.
    remedy: String,
    /// All that is wrong.
    errors: Vec<OneProblem>,
}

/// One of the things that are wrong.
#[derive(Serialize, ToSchema)]
struct OneProblem {
    /// The setting at fault, if it is one.
    field: Option<String>,
    /// What is wrong.
    reason: String,
    /// What to do about it.
    remedy: String,
}

impl Problem {
    /// A problem of the request itself.
    pub(super) fn request(status: StatusCode, reason: impl Into<String>, remedy: &str) -> Self {
        Self {
            status,
            wrong: vec![Refused::new(RefusedKind::Invalid, reason, remedy)],
        }
    }
}

impl From<Vec<Refused>> for Problem {
    fn from(wrong: Vec<Refused>) -> Self {
        let status = match wrong.first().map(|refused| refused.kind) {
            Some(RefusedKind::Invalid) => StatusCode::BAD_REQUEST,
            Some(RefusedKind::Conflict) => StatusCode::CONFLICT,
            Some(RefusedKind::NotFound) => StatusCode::NOT_FOUND,
            Some(RefusedKind::Stale) => StatusCode::PRECONDITION_FAILED,
            Some(RefusedKind::System) | None => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, wrong }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        vec![refused].into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let errors: Vec<OneProblem> = self
            .wrong
            .iter()
            .map(|refused| OneProblem {
                field: refused.field.clone(),
                reason: refused.reason.clone(),
                remedy: refused.remedy.clone(),
            })
            .collect();
        let first = |word: fn(&OneProblem) -> &str| errors.first().map_or("", word).to_owned();
        let body = ProblemDetails {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: first(|error| &error.reason),
            field: errors.first().and_then(|error| error.field.clone()),
            remedy: first(|error| &error.remedy),
            errors,
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        (
            self.status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            json,
        )
            .into_response()
    }
}
