//! The API: HTTP/1.1 with JSON on `RUN_DIR/api.sock`.
//!
//! | path | methods |
//! |---|---|
//! | `/api/v1/openapi.json` | GET: this, as an OpenAPI document |
//! | `/api/v1/status` | GET |
//! | `/api/v1/events` | GET: a stream of server-sent events |
//! | `/api/v1/ports` | GET |
//! | `/api/v1/ports/NAME` | GET, PUT (create or replace), PATCH (RFC 7396), DELETE |
//! | `/api/v1/ports/NAME/reset` | POST: back to file and command line |
//! | `/api/v1/ports/NAME/capture` | GET: pcapng until the client goes away, see docs/capture.md |
//! | `/api/v1/switches`, `/api/v1/switches/NAME`, `/api/v1/switches/NAME/reset` | as for ports |
//! | `/api/v1/teams`, `/api/v1/teams/NAME`, `/api/v1/teams/NAME/reset` | as for ports |
//! | `/api/v1/profiles` | GET |
//! | `/api/v1/migrations`, `/api/v1/migrations/VM` | GET |
//! | `/api/v1/migrations/VM/prepare`, `…/commit`, `…/abort` | POST: see docs/migration.md |
//! | `/api/v1/vms` | GET |
//! | `/api/v1/vms/NAME` | GET |
//! | `/metrics` | GET, for Prometheus |
//!
//! The answer to GET and PATCH of a port has the tag of its settings (`ETag`). Changes with `If-Match` and that tag are
//! refused if somebody has changed the port meanwhile; PUT with `If-None-Match: *` creates only.
//!
//! Errors are problem details (RFC 9457). Requests are bounded in size and in time.

mod capture;
mod events;
mod handlers;
mod migrations;
mod ports;
mod problem;
mod reports;
mod routes;
mod schema;
mod socket;
mod switches;
mod teams;

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

pub use schema::PortSettings;
pub use socket::ApiSocket;

use crate::control::Control;
use crate::migration::Migrations;

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

/// Where the API is served, the metrics only, and other hosts' migrations.
#[derive(Debug)]
pub struct Listeners {
    /// The API.
    pub api: ApiSocket,
    /// The metrics.
    pub metrics: Option<std::net::TcpListener>,
    /// Other hosts.
    pub migration: Option<std::net::TcpListener>,
}

/// Serves the API, and other hosts, on a thread `api` until `stop` is there.
///
/// # Errors
/// The operating system's.
pub fn start(
    runtime: Runtime,
    listeners: Listeners,
    control: Arc<Control>,
    migrations: Arc<Migrations>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let Listeners {
        api: socket,
        metrics,
        migration,
    } = listeners;
    let (listener, metrics) = {
        let _context = runtime.enter();
        let metrics = metrics.map(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        (
            UnixListener::from_std(socket.listener()?)?,
            metrics.transpose()?,
        )
    };
    Builder::new().name("api".into()).spawn(move || {
        runtime.block_on(serve(
            listener, metrics, migration, control, migrations, stop,
        ));
        // A call that is still in the engine may take its time; it is not waited for.
        runtime.shutdown_timeout(GRACE);
        drop(socket);
    })
}

async fn serve(
    listener: UnixListener,
    metrics: Option<TcpListener>,
    migration: Option<std::net::TcpListener>,
    control: Arc<Control>,
    migrations: Arc<Migrations>,
    stop: impl Future<Output = ()>,
) {
    let (go_on, stopped) = watch::channel(());
    let api = routes::router(Arc::clone(&control), Arc::clone(&migrations));
    let api = accept_all(
        async || listener.accept().await.map(|(stream, _)| stream),
        api,
        stopped.clone(),
    );
    let mut told = stopped.clone();
    let migrations = async {
        if let Some(listener) = migration {
            let stop = async { drop(told.changed().await) };
            migrations.serve(listener, stop).await;
        }
    };
    let metrics = async {
        if let Some(listener) = metrics {
            let accept = async || listener.accept().await.map(|(stream, _)| stream);
            accept_all(accept, routes::metrics_only(control), stopped).await;
        }
    };
    let stop = async {
        stop.await;
        drop(go_on);
    };
    tokio::join!(api, metrics, migrations, stop);
}

/// Serves connections until the other end of `stopped` is gone, then lets them finish.
async fn accept_all<S>(
    accept: impl AsyncFn() -> io::Result<S>,
    router: Router,
    mut stopped: watch::Receiver<()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let connections = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, accept().await)
        };
        let (slot, stream) = tokio::select! {
            _ = stopped.changed() => break,
            (slot, accepted) = accepted => match accepted {
                Ok(stream) => (slot, stream),
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
