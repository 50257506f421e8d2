//! The stream of events: server-sent events (HTML, section 9.2).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::stream::{self, StreamExt};
use tokio::sync::Semaphore;

use utoipa::ToSchema;

use super::problem::Problem;
use super::routes::{Answer, Shared};
use crate::events::{Event, EventKind};

/// Streams at once. They stay open, and must leave connections to others.
const STREAMS: usize = 32;
/// How often a line is sent when nothing happens, to find out who is gone.
const ALIVE: Duration = Duration::from_secs(15);

/// An event as the stream has it.
#[derive(ToSchema)]
#[allow(dead_code)] // It describes what `message` makes.
pub(super) struct ServerSentEvent {
    /// The sequence of the event.
    id: String,
    /// The kind of the event.
    event: EventKind,
    /// The event itself, as JSON in one line: an `Event`.
    data: String,
}

static STREAMS_LEFT: Semaphore = Semaphore::const_new(STREAMS);

/// What happens, from now on or from after the event `Last-Event-ID`: a stream of server-sent
/// events. The data of each is an object; `id` is its sequence, `event` its kind.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "events",
    params(("Last-Event-ID" = Option<u64>, Header, description = "The last event that was heard, or 0; those since are sent first, as far as they are kept")),
    responses(
        (status = 200, body = ServerSentEvent, content_type = "text/event-stream", description = "The events"),
    )
)]
pub(super) async fn stream(State(control): Shared, headers: HeaderMap) -> Answer {
    let last = headers.get("last-event-id");
    let last = last.map(|last| last.to_str().ok()?.trim().parse().ok());
    if last == Some(None) {
        let remedy = "send the id of the event that was heard last";
        let reason = "Last-Event-ID is no number";
        return Err(Problem::request(StatusCode::BAD_REQUEST, reason, remedy));
    }
    let Ok(permit) = STREAMS_LEFT.try_acquire() else {
        let reason = format!("{STREAMS} streams of events are open");
        let remedy = "end one of them";
        return Err(Problem::request(
            StatusCode::SERVICE_UNAVAILABLE,
            reason,
            remedy,
        ));
    };
    let events = Arc::clone(control.events());
    let subscriber = events.subscribe(last.flatten());
    let heard = stream::unfold((events, subscriber, permit), async |mut all| {
        let heard = all.1.next(&all.0).await?;
        Some((stream::iter(heard), all))
    });
    // Whoever subscribes knows by this that it has.
    let hello = stream::once(async { Ok(sse::Event::default().comment("events follow")) });
    let messages = heard
        .flatten()
        .map(|event| Ok::<_, Infallible>(message(&event)));
    let alive = KeepAlive::new().interval(ALIVE);
    Ok(Sse::new(hello.chain(messages))
        .keep_alive(alive)
        .into_response())
}

fn message(event: &Event) -> sse::Event {
    let json = serde_json::to_string(event).unwrap_or_default();
    sse::Event::default()
        .id(event.sequence.to_string())
        .event(event.event.name())
        .data(json)
}
