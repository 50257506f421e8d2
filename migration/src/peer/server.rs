//! The destination's end: who may connect, and the requests as calls of [`Destination`].

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::limits::{Handshakes, Place};
use super::{CONNECTION_LIFE, CONNECTIONS, Destination, EVENTS_WAIT, TIME, routes};
use crate::tls::{Identity, TlsError, peer_name};

/// Time that requests in progress get when the daemon stops.
const GRACE: Duration = Duration::from_secs(2);
/// Time that a host that is refused gets to hear why.
const LINGER: Duration = Duration::from_secs(1);
/// Between two lines of the log about hosts that are refused.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of a request's head, and of its body that are read ahead.
const BUFFER: usize = 64 << 10;

/// Serves the destination's end on `listener` until `stop` is there; then requests in progress get two seconds.
///
/// To be run on a tokio runtime with time and I/O; calls of `destination` are made on its blocking threads.
pub async fn serve(
    listener: TcpListener,
    identity: &Identity,
    destination: Arc<dyn Destination>,
    stop: impl Future<Output = ()>,
) {
    let (go_on, stopped) = watch::channel(());
    let server = Server {
        acceptor: TlsAcceptor::from(identity.server()),
        handshakes: Handshakes::default(),
        slots: Arc::new(Semaphore::new(CONNECTIONS)),
        router: routes::router(destination, stopped.clone()),
        stopped,
        complaint: Arc::default(),
    };
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                // There is no place: it is closed, and costs nobody anything.
                Ok((stream, from)) => if let Some(place) = server.handshakes.enter(from.ip()) {
                    connections.spawn(server.clone().connection(stream, from, place));
                },
                Err(error) => {
                    // Out of descriptors, most likely: others have to close some first.
                    log::warn!("migration: cannot accept: {error}");
                    sleep(Duration::from_millis(200)).await;
                }
            },
        }
    }
    drop(listener);
    drop(go_on);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(GRACE, all).await;
}

#[derive(Clone)]
struct Server {
    acceptor: TlsAcceptor,
    handshakes: Handshakes,
    slots: Arc<Semaphore>,
    router: Router,
    stopped: watch::Receiver<()>,
    complaint: Arc<Mutex<Option<Instant>>>,
}

impl Server {
    async fn connection(mut self, stream: TcpStream, from: SocketAddr, place: Place) {
        let mut stopped = self.stopped.clone();
        let known = tokio::select! {
            _ = stopped.changed() => return,
            known = timeout(TIME, self.known(stream)) => known,
        };
        let (stream, slot, name) = match known {
            Ok(Ok(known)) => known,
            Ok(Err(why)) => return self.complain(from, &why),
            Err(_) if self.slots.available_permits() == 0 => {
                return self.complain(from, "too many hosts are connected");
            }
            Err(_) => return self.complain(from, &format!("no handshake in {} s", TIME.as_secs())),
        };
        drop(place);
        log::debug!("migration: {name} has connected from {from}");
        if let Err(error) = self.serve(stream, &name).await {
            log::debug!("migration: the connection of {name} ended: {error}");
        }
        drop(slot);
    }

    /// Finds out who it is, and waits until one more may be served.
    async fn known(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, OwnedSemaphorePermit, String), String> {
        // Answers are short, and somebody waits for each.
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let stream = match self.acceptor.accept(stream).into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                linger(stream).await;
                let error = TlsError::find(&error).map_or(error.to_string(), |e| e.to_string());
                return Err(error);
            }
        };
        let name = peer_name(stream.get_ref().1.peer_certificates());
        let name = name.map_err(|error| error.to_string())?;
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.map_err(|error| error.to_string())?;
        Ok((stream, slot, name))
    }

    async fn serve(&mut self, stream: TlsStream<TcpStream>, name: &str) -> hyper::Result<()> {
        let router = self.router.clone().layer(routes::caller(name));
        let mut connection = pin!(
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(TIME)
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        );
        tokio::select! {
            ended = connection.as_mut() => return ended,
            _ = self.stopped.changed() => {}
            () = sleep(CONNECTION_LIFE) => {}
        }
        connection.as_mut().graceful_shutdown();
        timeout(EVENTS_WAIT + TIME, connection)
            .await
            .unwrap_or(Ok(()))
    }

    /// Says why a host was refused, but not for every attempt of somebody who keeps trying.
    fn complain(&self, from: SocketAddr, why: &str) {
        let mut last = self
            .complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let level = match *last {
            Some(last) if last.elapsed() < COMPLAINT_PAUSE => log::Level::Debug,
            _ => log::Level::Warn,
        };
        if level == log::Level::Warn {
            *last = Some(Instant::now());
        }
        log::log!(level, "migration: {from} was refused: {why}");
    }
}

/// Reads on until the other end closes. Closing with something unread would reset the connection, and the other
/// end lose the alert that says what is wrong.
async fn linger(mut stream: TcpStream) {
    let mut sink = [0; 1024];
    let end = async { while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {} };
    let _ = timeout(LINGER, end).await;
}
