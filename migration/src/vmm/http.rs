//! One request to a VMM's HTTP API on a unix socket, and the answer.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{ANSWER_TIME, MESSAGE_LEN, VmmError, runtime, words};

/// What came back.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Answer {
    /// Why it is no success: cloud-hypervisor lists an error and its causes as strings.
    pub(super) fn reason(&self) -> String {
        let causes: Option<Vec<String>> = serde_json::from_slice(&self.body).ok();
        let text = causes.map(|causes| causes.join(": "));
        let text = text.unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned());
        match words(&text) {
            text if text.is_empty() => format!("it says {}", self.status),
            text => text,
        }
    }
}

/// Asks, and waits for the answer no longer than `limit` if there is one.
pub(super) fn request(
    socket: &Path,
    (method, path): (Method, &str),
    body: Option<&Value>,
    limit: Option<Duration>,
) -> Result<Answer, VmmError> {
    let what = format!("{method} {path}");
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(
            body.map(Value::to_string).unwrap_or_default(),
        )))
        .map_err(|error| VmmError::System(error.to_string()))?;
    runtime()?.block_on(async {
        let connect = timeout(ANSWER_TIME, UnixStream::connect(socket));
        let stream = connect.await.map_err(|_| VmmError::Slow(what.clone()))?;
        let stream = stream.map_err(|error| VmmError::unopened(socket, &error))?;
        let exchange = exchange(stream, request, &what);
        match limit {
            Some(limit) => timeout(limit, exchange)
                .await
                .unwrap_or_else(|_| Err(VmmError::Slow(what.clone()))),
            None => exchange.await,
        }
    })
}

async fn exchange(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
    what: &str,
) -> Result<Answer, VmmError> {
    let gone = |error: hyper::Error| match error.is_parse() {
        true => VmmError::protocol(what, error),
        false => VmmError::Gone(error.to_string()),
    };
    // Names of headers are the same in any case (RFC 9110, 5.1), which not every small server knows.
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(gone)?;
    // It ends with the runtime.
    tokio::spawn(connection);
    let response: Response<_> = sender.send_request(request).await.map_err(gone)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MESSAGE_LEN);
    let body = body.collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            VmmError::TooLong
        } else {
            VmmError::Gone(error.to_string())
        }
    })?;
    let body = body.to_bytes();
    Ok(Answer { status, body })
}
