//! The API: HTTP/1.1 with JSON on `RUN_DIR/api.sock`.
//!
//! | path | methods |
//! |---|---|
//! | `/api/v1/status` | GET |
//! | `/api/v1/ports` | GET |
//! | `/api/v1/ports/NAME` | GET, PUT (create or replace), PATCH (RFC 7396), DELETE |
//!
//! A port's answer has the tag of its settings (`ETag`). Changes with `If-Match` and that tag are
//! refused if somebody has changed the port meanwhile; PUT with `If-None-Match: *` creates only.
//!
//! Errors are problem details (RFC 9457). Requests are bounded in size and in time.

mod problem;
mod routes;
mod socket;

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

pub use socket::ApiSocket;

use crate::control::Control;

/// Connections served at once; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// Time for the head of a request, and between two requests on a connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Time that requests in progress get when the daemon stops.
const GRACE: Duration = Duration::from_secs(2);

/// Makes the runtime of the API: one thread, and threads for calls that block.
///
/// # Errors
/// The operating system's.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("api call")
        .max_blocking_threads(4)
        .build()
}

/// Serves the API on a thread `api` until `stop` is there.
///
/// # Errors
/// The operating system's.
pub fn start(
    runtime: Runtime,
    socket: ApiSocket,
    control: Arc<Control>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let listener = {
        let _context = runtime.enter();
        UnixListener::from_std(socket.listener()?)?
    };
    Builder::new().name("api".into()).spawn(move || {
        runtime.block_on(serve(listener, control, stop));
        // A call that is still in the engine may take its time; it is not waited for.
        runtime.shutdown_timeout(GRACE);
        drop(socket);
    })
}

async fn serve(listener: UnixListener, control: Arc<Control>, stop: impl Future<Output = ()>) {
    let service = TowerToHyperService::new(routes::router(control));
    let connections = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, stream) = tokio::select! {
            () = &mut stop => break,
            (slot, accepted) = accepted => match accepted {
                Ok((stream, _)) => (slot, stream),
                Err(error) => {
                    // Out of descriptors, most likely: others have to close some first.
                    log::warn!("api: cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            },
        };
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .serve_connection(TokioIo::new(stream), service.clone());
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("api: a connection ended: {error}");
            }
            drop(slot);
        });
    }
    let _ = tokio::time::timeout(GRACE, connections.shutdown()).await;
}
