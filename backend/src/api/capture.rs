//! `GET /api/v1/ports/NAME/capture`: the frames of a port, for as long as the client reads.

use std::convert::Infallible;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::IntoResponse;
use hyper::body::{Bytes, Frame};
use tandem_virtio_net::Direction;
use tokio::sync::mpsc::Receiver;

use super::problem::Problem;
use super::routes::{Answer, Name, NameParam, Shared, blocking};
use crate::capture::{Drops, Filter, MAX_SNAPLEN, Request};
use crate::control::{Refused, RefusedKind};

/// What Wireshark calls it.
const TYPE: &str = "application/x-pcapng";

/// The frames of a port and what became of them, as pcapng, for as long as the client reads and the port
/// is there.
#[utoipa::path(
    get,
    path = "/api/v1/ports/{name}/capture",
    tag = "ports",
    params(
        NameParam,
        ("direction" = Option<String>, Query, pattern = "^(from_vm|to_vm|both)$", description = "What the VM sends, what it is sent, or both; both if not given"),
        ("drops" = Option<String>, Query, pattern = "^(with|only|without)$", description = "Dropped frames too, only those, or none of them; with if not given"),
        ("snaplen" = Option<u32>, Query, minimum = 1, maximum = 262144, description = "Bytes of each frame, at most; all if not given"),
        ("count" = Option<u64>, Query, minimum = 1, description = "Frames after which it ends"),
        ("filter" = Option<String>, Query, example = "1,6 0 0 262144", description = "Program of the classic BSD packet filter as tcpdump -ddd prints it, its lines joined with commas"),
        ("expression" = Option<String>, Query, description = "How the filter was written, for the file"),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/x-pcapng", description = "The frames"),
    )
)]
pub(super) async fn capture(
    State(control): Shared,
    Name(name): Name,
    RawQuery(query): RawQuery,
) -> Answer {
    let request = request(query.as_deref().unwrap_or_default())?;
    blocking(move || {
        let stream = Stream(control.capture(&name, &request)?);
        Ok(([(header::CONTENT_TYPE, TYPE)], Body::new(stream)).into_response())
    })
    .await
}

/// A body that ends when the capture does.
struct Stream(Receiver<Bytes>);

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.poll_recv(cx);
        next.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// What the query asks for; all that is wrong with it.
fn request(query: &str) -> Result<Request, Problem> {
    let mut request = Request::default();
    let mut wrong = Vec::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if let Err(refused) = set(&mut request, &key, &value) {
            wrong.push(refused.about(&*key));
        }
    }
    if wrong.is_empty() {
        Ok(request)
    } else {
        Err(wrong.into())
    }
}

fn set(request: &mut Request, key: &str, value: &str) -> Result<(), Refused> {
    match key {
        "direction" => {
            request.direction = one_of(
                value,
                &[
                    ("from_vm", Some(Direction::FromVm)),
                    ("to_vm", Some(Direction::ToVm)),
                    ("both", None),
                ],
            )?;
        }
        "drops" => {
            request.drops = one_of(
                value,
                &[
                    ("with", Drops::With),
                    ("only", Drops::Only),
                    ("without", Drops::Without),
                ],
            )?;
        }
        "snaplen" => request.snaplen = number(value, u64::from(MAX_SNAPLEN))? as u32,
        "count" => request.count = Some(number(value, u64::MAX)?),
        "filter" => {
            let filter = Filter::from_str(value);
            let remedy = "send what `tcpdump -ddd -y EN10MB` prints, lines joined by commas";
            request.filter = Some(filter.map_err(|e| invalid(e.to_string(), remedy))?);
        }
        "expression" => request.expression = Some(value.to_owned()),
        _ => {
            let remedy = "use direction, drops, snaplen, count, filter or expression";
            return Err(invalid(format!("there is no parameter {key}"), remedy));
        }
    }
    Ok(())
}

fn invalid(reason: String, remedy: &str) -> Refused {
    Refused::new(RefusedKind::Invalid, reason, remedy)
}

fn one_of<T: Copy>(value: &str, choices: &[(&str, T)]) -> Result<T, Refused> {
    let found = choices.iter().find(|(name, _)| *name == value);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let remedy = format!("use one of: {}", names.join(", "));
        invalid(format!("\"{value}\" is not one of them"), &remedy)
    })
}

fn number(value: &str, most: u64) -> Result<u64, Refused> {
    match value.parse() {
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ => {
            let remedy = format!("use a number from 1 to {most}");
            Err(invalid(
                format!("\"{value}\" is not such a number"),
                &remedy,
            ))
        }
    }
}
