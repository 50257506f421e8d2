//! A client of the API, for the CLI: one request on one connection, and streams.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::http::response::Parts;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::control::Condition;

/// Time for a whole request. Removing a port waits for its VM's threads, never for the VM.
const TIME: Duration = Duration::from_secs(30);

/// Why a request was not done; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no tandemd answers on {}; start it, or name its socket with --api-socket", .0.display())]
    NotRunning(PathBuf),
    /// The socket belongs to others.
    #[error("{} may not be opened by this user; use sudo, or join the group tandem", .0.display())]
    NotAllowed(PathBuf),
    /// The operating system's error.
    #[error("{} cannot be opened: {error}; check --api-socket", .path.display())]
    Socket {
        /// Where the socket was looked for.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It broke off.
    #[error("tandemd broke off: {0}; see its log")]
    Broken(String),
    /// It took too long.
    #[error("tandemd did not answer within {} s; see its log", TIME.as_secs())]
    Slow,
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// What the request depends on is no longer so.
    #[error("{0}")]
    Stale(String),
}

/// An answer of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// JSON as it came; empty if there is none.
    pub text: String,
    /// The tag of the settings that it has, if it has one.
    pub tag: Option<String>,
}

/// Sends a request to the daemon at `socket` and returns the answer. What the request depends on is
/// the daemon's to check.
///
/// # Errors
/// See [`ClientError`]; a refusal by the daemon is one, too.
pub fn request(
    socket: &Path,
    method: Method,
    path: &str,
    condition: &Condition,
    body: Option<&Value>,
) -> Result<Answer, ClientError> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "tandem")
        .header(header::CONTENT_TYPE, "application/json");
    request = match condition {
        Condition::Always => request,
        Condition::IsNew => request.header(header::IF_NONE_MATCH, "*"),
        Condition::Exists => request.header(header::IF_MATCH, "*"),
        Condition::Is(tags) => request.header(header::IF_MATCH, tags.join(", ")),
    };
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = request
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| ClientError::Broken(error.to_string()))?;
    let (response, bytes) = runtime()?.block_on(async {
        tokio::time::timeout(TIME, exchange(socket, request))
            .await
            .unwrap_or(Err(ClientError::Slow))
    })?;
    let tag = response.headers.get(header::ETAG);
    let tag = tag.and_then(|tag| tag.to_str().ok()).map(str::to_owned);
    let text = answer(response.status, &bytes)?;
    Ok(Answer { text, tag })
}

/// Sends a GET and hands over the answer's body as it comes, until it ends or `take` says so.
///
/// # Errors
/// See [`ClientError`]; a refusal by the daemon is one, too.
pub fn stream(
    socket: &Path,
    path: &str,
    mut take: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), ClientError> {
    let request = get(path)?;
    runtime()?.block_on(async {
        let mut stream = Stream::of(socket, request).await?;
        while let Some(bytes) = stream.next().await? {
            if take(&bytes).is_break() {
                break;
            }
        }
        Ok(())
    })
}

/// An answer that comes bit by bit, for as long as this is kept.
pub struct Stream {
    body: Incoming,
    _connection: Ended,
}

impl Stream {
    /// Sends a GET.
    ///
    /// # Errors
    /// See [`ClientError`]; a refusal by the daemon is one, too.
    pub async fn get(socket: &Path, path: &str) -> Result<Self, ClientError> {
        Self::of(socket, get(path)?).await
    }

    async fn of(socket: &Path, request: Request<Full<Bytes>>) -> Result<Self, ClientError> {
        let (response, connection) = tokio::time::timeout(TIME, send(socket, request))
            .await
            .unwrap_or(Err(ClientError::Slow))?;
        let status = response.status();
        let stream = Self {
            _connection: Ended(connection),
            body: response.into_body(),
        };
        if status.is_success() {
            return Ok(stream);
        }
        let bytes = tokio::time::timeout(TIME, stream.body.collect()).await;
        let bytes = bytes.map_err(|_| ClientError::Slow)?;
        let bytes = bytes.map_err(|error| ClientError::Broken(error.to_string()))?;
        Err(refused(status, &bytes.to_bytes()))
    }

    /// What comes next; none: the daemon has ended the answer.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| ClientError::Broken(error.to_string()))?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

fn get(path: &str) -> Result<Request<Full<Bytes>>, ClientError> {
    Request::builder()
        .uri(path)
        .header(header::HOST, "tandem")
        .body(Full::default())
        .map_err(|error| ClientError::Broken(error.to_string()))
}

/// Ends a connection's task when it is dropped.
struct Ended(JoinHandle<hyper::Result<()>>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn runtime() -> Result<Runtime, ClientError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ClientError::Broken(error.to_string()))
}

async fn exchange(
    socket: &Path,
    request: Request<Full<Bytes>>,
) -> Result<(Parts, Bytes), ClientError> {
    let (response, connection) = send(socket, request).await?;
    let _connection = Ended(connection);
    let (head, body) = response.into_parts();
    let body = body.collect().await;
    let body = body.map_err(|error| ClientError::Broken(error.to_string()))?;
    Ok((head, body.to_bytes()))
}

type Sent = (Response<Incoming>, JoinHandle<hyper::Result<()>>);

/// Sends a request; the answer's body comes as long as the connection's task runs.
async fn send(socket: &Path, request: Request<Full<Bytes>>) -> Result<Sent, ClientError> {
    let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| unopened(socket, error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    Ok((response, connection))
}

fn unopened(socket: &Path, error: io::Error) -> ClientError {
    let path = socket.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(path),
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed(path),
        _ => ClientError::Socket { path, error },
    }
}

fn answer(status: StatusCode, bytes: &[u8]) -> Result<String, ClientError> {
    if status.is_success() {
        return Ok(String::from_utf8_lossy(bytes).into_owned());
    }
    Err(refused(status, bytes))
}

fn refused(status: StatusCode, bytes: &[u8]) -> ClientError {
    let refusal = serde_json::from_slice(bytes)
        .ok()
        .and_then(|problem| refusal(&problem));
    let words = refusal.unwrap_or_else(|| format!("tandemd said {status}; see its log"));
    match status {
        StatusCode::PRECONDITION_FAILED => ClientError::Stale(words),
        _ => ClientError::Refused(words),
    }
}

/// All errors of a problem (RFC 9457) in one line.
fn refusal(problem: &Value) -> Option<String> {
    let line = |error: &Value| {
        let field = error["field"].as_str().filter(|field| *field != "name");
        let field = field.map(|field| format!("{field}: ")).unwrap_or_default();
        Some(format!(
            "{field}{}; {}",
            error["reason"].as_str()?,
            error["remedy"].as_str()?
        ))
    };
    let lines: Vec<String> = problem["errors"]
        .as_array()?
        .iter()
        .filter_map(line)
        .collect();
    (!lines.is_empty()).then(|| lines.join(". "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_problem_becomes_one_line() {
        let problem = json!({"errors": [
            {"field": "mtu", "reason": "7 is too small", "remedy": "give more"},
            {"field": null, "reason": "it is full", "remedy": "wait"},
        ]});
        let error = answer(StatusCode::BAD_REQUEST, problem.to_string().as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "mtu: 7 is too small; give more. it is full; wait"
        );
    }

    #[test]
    fn a_refusal_that_is_no_problem_still_says_something() {
        assert!(
            answer(StatusCode::BAD_GATEWAY, b"{}")
                .unwrap_err()
                .to_string()
                .contains("502")
        );
        assert!(
            answer(StatusCode::NOT_FOUND, b"<html>")
                .unwrap_err()
                .to_string()
                .contains("404")
        );
        assert_eq!(answer(StatusCode::NO_CONTENT, b"").unwrap(), "");
    }
}
