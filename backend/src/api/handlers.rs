//! What is done with ports, switches and teams alike: listed, shown, made, changed, ended, reset.
//!
//! The functions here are generic; [`handlers`] gives them, for one kind of object, the paths and
//! the descriptions that the OpenAPI document is made from.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::routes::{Answer, blocking, condition, json, object, tagged};
use crate::control::{Control, Put, Removed, Resource};

/// Makes the handlers of one kind of object in the module where this stands:
///
/// - its settings, its object of the API, and the object that lists all;
/// - the path of the list, and a word for one of them;
/// - the answer of a DELETE that has something to say, if one may.
macro_rules! handlers {
    (
        $Config:ident, $Settings:ident, $Object:ident, $Objects:ident { $objects:ident },
        $path:literal, $one:literal $(, $Note:ident)?
    ) => {
        use axum::body::Body;
        use axum::extract::State;
        use axum::http::{HeaderMap, StatusCode};

        use super::handlers;
        use super::routes::{Answer, IfMatch, IfNoneMatch, Name, NameParam, Shared, blocking, json};
        use crate::control::Resource;

        #[utoipa::path(
            get,
            path = $path,
            tag = stringify!($objects),
            operation_id = concat!("list_", stringify!($objects)),
            summary = concat!("All ", stringify!($objects), ", by name."),
            responses((status = 200, body = $Objects, description = "All of them"))
        )]
        pub(super) async fn list(State(control): Shared) -> Answer {
            blocking(move || {
                let $objects = $Config::list(&control);
                Ok(json(StatusCode::OK, &$Objects { $objects }))
            })
            .await
        }

        #[utoipa::path(
            get,
            path = concat!($path, "/{name}"),
            tag = stringify!($objects),
            operation_id = concat!("show_", $one),
            summary = concat!("One ", $one, "."),
            params(NameParam),
            responses(
                (status = 200, body = $Object, headers(("etag" = String, description = "Tag of its settings")), description = "It is there"),
            )
        )]
        pub(super) async fn show(State(control): Shared, Name(name): Name) -> Answer {
            handlers::show::<$Config>(control, name).await
        }

        #[utoipa::path(
            put,
            path = concat!($path, "/{name}"),
            tag = stringify!($objects),
            operation_id = concat!("put_", $one),
            summary = concat!("Makes a ", $one, " with just these settings, in the place of one of that name."),
            params(NameParam, IfMatch, IfNoneMatch),
            request_body = $Settings,
            responses(
                (status = 200, body = $Object, description = "There was one; it has the new settings"),
                (status = 201, body = $Object, description = "There was none"),
            )
        )]
        pub(super) async fn put(
            State(control): Shared,
            Name(name): Name,
            headers: HeaderMap,
            body: Body,
        ) -> Answer {
            handlers::put::<$Config>(control, name, headers, body).await
        }

        #[utoipa::path(
            patch,
            path = concat!($path, "/{name}"),
            tag = stringify!($objects),
            operation_id = concat!("patch_", $one),
            summary = "Changes the settings that are named (JSON Merge Patch, RFC 7396); null takes one back.",
            params(NameParam, IfMatch),
            request_body = $Settings,
            responses(
                (status = 200, body = $Object, headers(("etag" = String, description = "Tag of its settings")), description = "It has the new settings"),
            )
        )]
        pub(super) async fn patch(
            State(control): Shared,
            Name(name): Name,
            headers: HeaderMap,
            body: Body,
        ) -> Answer {
            handlers::patch::<$Config>(control, name, headers, body).await
        }

        #[utoipa::path(
            delete,
            path = concat!($path, "/{name}"),
            tag = stringify!($objects),
            operation_id = concat!("remove_", $one),
            summary = concat!("Ends a ", $one, "."),
            params(NameParam, IfMatch),
            responses(
                $((status = 200, body = $Note, description = "It is ended until the daemon starts again"),)?
                (status = 204, description = "It is ended"),
            )
        )]
        pub(super) async fn remove(
            State(control): Shared,
            Name(name): Name,
            headers: HeaderMap,
        ) -> Answer {
            handlers::remove::<$Config>(control, name, headers).await
        }

        #[utoipa::path(
            post,
            path = concat!($path, "/{name}/reset"),
            tag = stringify!($objects),
            operation_id = concat!("reset_", $one),
            summary = "Forgets what was set over the API: it is again what file and command line say.",
            params(NameParam, IfMatch),
            responses(
                (status = 200, body = $Object, headers(("etag" = String, description = "Tag of its settings")), description = "It has the settings of before"),
            )
        )]
        pub(super) async fn reset(
            State(control): Shared,
            Name(name): Name,
            headers: HeaderMap,
        ) -> Answer {
            handlers::reset::<$Config>(control, name, headers).await
        }
    };
}

pub(super) use handlers;

pub(super) async fn show<T: Resource>(control: Arc<Control>, name: String) -> Answer {
    blocking(move || {
        let shown = T::show(&control, &name)?;
        Ok(tagged(T::shown_tag(&shown), &shown))
    })
    .await
}

pub(super) async fn put<T: Resource>(
    control: Arc<Control>,
    name: String,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let condition = condition(&headers)?;
    let settings = object(body).await?;
    blocking(move || {
        let (put, now) = T::put(&control, &name, &settings, &condition)?;
        let status = match put {
            Put::Created => StatusCode::CREATED,
            Put::Replaced => StatusCode::OK,
        };
        // No tag: what is kept is not what was sent, but has its defaults (RFC 9110, 9.3.4).
        Ok(json(status, &now))
    })
    .await
}

pub(super) async fn patch<T: Resource>(
    control: Arc<Control>,
    name: String,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let condition = condition(&headers)?;
    let changes = object(body).await?;
    blocking(move || {
        let now = T::patch(&control, &name, &changes, &condition)?;
        Ok(tagged(T::shown_tag(&now), &now))
    })
    .await
}

pub(super) async fn remove<T: Resource>(
    control: Arc<Control>,
    name: String,
    headers: HeaderMap,
) -> Answer {
    let condition = condition(&headers)?;
    blocking(move || {
        Ok(match T::remove(&control, &name, &condition)? {
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

pub(super) async fn reset<T: Resource>(
    control: Arc<Control>,
    name: String,
    headers: HeaderMap,
) -> Answer {
    let condition = condition(&headers)?;
    blocking(move || {
        let now = T::reset(&control, &name, &condition)?;
        Ok(tagged(T::shown_tag(&now), &now))
    })
    .await
}

/// Words beside the result.
#[derive(Serialize, ToSchema)]
pub(super) struct Note {
    /// What else there is to know.
    note: String,
}
