//! Errors as problem details (RFC 9457).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::control::{Refused, RefusedKind};

/// An answer that says what is wrong.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    wrong: Vec<Refused>,
}

/// The members of RFC 9457, section 3.1, and ours: the first error's, then all of them.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    remedy: &'a str,
    errors: Vec<One<'a>>,
}

#[derive(Serialize)]
struct One<'a> {
    field: Option<&'a str>,
    reason: &'a str,
    remedy: &'a str,
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
        let errors: Vec<One<'_>> = self
            .wrong
            .iter()
            .map(|refused| One {
                field: refused.field.as_deref(),
                reason: &refused.reason,
                remedy: &refused.remedy,
            })
            .collect();
        let first = self.wrong.first();
        let body = Body {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: first.map_or("", |refused| &refused.reason),
            field: first.and_then(|refused| refused.field.as_deref()),
            remedy: first.map_or("", |refused| &refused.remedy),
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
