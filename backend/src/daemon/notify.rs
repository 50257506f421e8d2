//! Tells the service manager how far we are: one datagram (sd_notify(3)).

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Sends `state`, such as `READY=1`, if a service manager listens.
pub(super) fn send(state: &str) {
    if let Some(path) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send_to(path.as_bytes(), state)
    {
        log::warn!("NOTIFY_SOCKET: {error}");
    }
}

/// Says that the configuration is read again; `READY=1` follows (sd_notify(3), "RELOADING=1").
pub(super) fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000;
    send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

/// Says `WATCHDOG=1` again and again, if the service manager has asked for that, for as long as
/// `beats` grows. Never returns.
///
/// Runs where the API runs, so that its silence means that the API stands still, or that `beats` does.
pub(super) async fn watchdog(beats: impl Fn() -> u64) {
    let of = |name| env::var(name).ok();
    let Some(limit) = watchdog_limit(of("WATCHDOG_USEC"), of("WATCHDOG_PID")) else {
        return std::future::pending().await;
    };
    let mut look = tokio::time::interval(limit / 4);
    let mut last = None;
    loop {
        look.tick().await;
        let now = Some(beats());
        if now != last {
            last = now;
            send("WATCHDOG=1");
        }
    }
}

/// How long we may be silent (sd_watchdog_enabled(3)); none if nobody listens to this process.
fn watchdog_limit(micros: Option<String>, process: Option<String>) -> Option<Duration> {
    let ours = process.is_none_or(|id| id.parse() == Ok(std::process::id()));
    let micros = micros?.parse().ok()?;
    (ours && micros > 0).then(|| Duration::from_micros(micros))
}

fn send_to(path: &[u8], state: &str) -> io::Result<()> {
    let address = match path {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_on_only_for_whom_it_is_meant() {
        let limit = |micros: &str, process: Option<u32>| {
            watchdog_limit(Some(micros.into()), process.map(|id| id.to_string()))
        };
        let me = std::process::id();
        assert_eq!(limit("2500000", None), Some(Duration::from_millis(2500)));
        assert_eq!(limit("1", Some(me)), Some(Duration::from_micros(1)));
        for nothing in [limit("1", Some(me + 1)), limit("0", None), limit("x", None)] {
            assert_eq!(nothing, None);
        }
        assert_eq!(watchdog_limit(None, None), None);
    }
}
