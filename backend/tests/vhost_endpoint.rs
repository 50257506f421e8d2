//! The socket: where VMMs are met, how often, and what is left afterwards.

mod vhost_support;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use tandem::broker::Broker;
use tandem::vhost::{Endpoint, EndpointError, Source};
use vhost_support::*;

fn open(dir: &Path, source: Source) -> Result<Endpoint, EndpointError> {
    Endpoint::open("p", dir, source, MockDevice::new(1), &Broker::in_process())
}

fn at(path: &Path) -> Source {
    Source::Listen {
        path: path.into(),
        permissions: 0o660,
        group: None,
    }
}

#[test]
fn a_second_vmm_is_turned_away_and_counted() {
    let rig = Rig::new(1);
    let first = rig.connect();
    first.hello();
    for n in 1..=3 {
        rig.connect().closed();
        rig.until("counted", |s| s.refused_connections == n);
    }
    first.sync();
    drop(first);
    rig.device.wait(&Event::Disconnected, 1);
    rig.connect().hello();
    assert_eq!(rig.until("connected", |s| s.connected).connects, 2);
}

/// The old one's end and the new one's knock are found at the same moment.
#[test]
fn a_vmm_that_restarts_at_once_is_not_a_second_one() {
    let rig = Rig::new(1);
    for _ in 0..500 {
        let vmm = rig.connect();
        vmm.hello();
        vmm.sync();
    }
    let status = rig.until("all served", |s| s.connects == 500);
    assert_eq!(status.refused_connections, 0);
}

#[test]
fn the_socket_is_as_asked_and_goes_with_the_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.sock");
    let gid = fs::metadata(dir.path()).unwrap().gid();
    let source = Source::Listen {
        path: path.clone(),
        permissions: 0o640,
        group: Some(gid.to_string()),
    };
    let endpoint = open(dir.path(), source).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(
        (meta.permissions().mode() & 0o777, meta.gid()),
        (0o640, gid)
    );
    drop(endpoint);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_session_leaves_no_file_in_the_run_directory() {
    let rig = Rig::new(1);
    let vmm = rig.connect();
    vmm.hello();
    vmm.sync();
    assert_eq!(fs::read_dir(rig.dir.path()).unwrap().count(), 1);
}

#[test]
fn a_dead_daemons_socket_is_taken_over_and_a_live_ones_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.sock");
    drop(UnixListener::bind(&path).unwrap());
    let endpoint = open(dir.path(), at(&path)).unwrap();
    let error = open(dir.path(), at(&path)).err().unwrap();
    assert!(matches!(error, EndpointError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another process listens at"));
    UnixStream::connect(&path).unwrap();
    drop(endpoint);
    // Somebody else's socket, by now, is not removed.
    let endpoint = open(dir.path(), at(&path)).unwrap();
    fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(endpoint);
    assert!(path.exists());
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let words = |source| open(dir.path(), source).err().unwrap().to_string();
    let long = dir.path().join("x".repeat(120));
    for source in [at(&long), Source::Connect { path: long.clone() }] {
        let said = words(source);
        let len = long.as_os_str().len();
        assert!(
            said.contains(&format!("is {len} bytes long, more than the 107")),
            "{said}"
        );
    }
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(words(at(&file)).contains("exists and is not a socket"));
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let datagram = dir.path().join("datagram");
    let _datagram = UnixDatagram::bind(&datagram).unwrap();
    assert!(words(at(&datagram)).contains("another process listens"));
    let path = dir.path().join("p.sock");
    let group = Some("no-such-group".into());
    let source = Source::Listen {
        path: path.clone(),
        permissions: 0o660,
        group,
    };
    assert!(words(source).contains("there is no group no-such-group"));
    assert!(words(at(&dir.path().join("no/dir.sock"))).contains("its directory must exist"));
    let pair = OwnedFd::from(UnixDatagram::pair().unwrap().0);
    assert!(words(Source::Socket(pair)).contains("not a unix stream socket"));
    assert!(!path.exists());
}

#[test]
fn a_path_of_107_bytes_fits() {
    let dir = tempfile::tempdir().unwrap();
    let room = 107 - dir.path().as_os_str().len() - 1;
    let path = dir.path().join("x".repeat(room));
    let device = MockDevice::new(1);
    let _endpoint = listen(dir.path(), &path, device).unwrap();
    Vmm::new(UnixStream::connect(&path).unwrap()).hello();
}

#[test]
fn a_listening_socket_can_be_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("given.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let endpoint = open(dir.path(), Source::Socket(listener.into())).unwrap();
    Vmm::new(UnixStream::connect(&path).unwrap()).hello();
    until(&endpoint, "connected", |s| s.connects == 1);
    drop(endpoint);
    assert!(path.exists(), "it is not ours to remove");
}

#[test]
fn a_connection_can_be_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let endpoint = open(dir.path(), Source::Socket(ours.into())).unwrap();
    let vmm = Vmm::new(theirs);
    vmm.hello();
    until(&endpoint, "connected", |s| s.connects == 1);
    drop(vmm);
    until(&endpoint, "gone for good", |s| {
        !s.connected
            && s.reason
                .as_ref()
                .is_some_and(|r| r.contains("handed over is gone"))
    });
}

#[test]
fn where_the_vmm_listens_we_connect_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmm.sock");
    let device = MockDevice::new(1);
    let source = Source::Connect { path: path.clone() };
    let broker = Broker::in_process();
    let device_too = Arc::clone(&device) as _;
    let endpoint = Endpoint::open("p", dir.path(), source, device_too, &broker).unwrap();
    let reason = endpoint.status().reason.unwrap();
    assert!(reason.contains("none listens at"), "{reason}");
    for n in 1..=3 {
        let listener = UnixListener::bind(&path).unwrap();
        let vmm = Vmm::new(listener.accept().unwrap().0);
        vmm.hello();
        vmm.sync();
        drop((vmm, listener));
        fs::remove_file(&path).unwrap();
        device.wait(&Event::Disconnected, n);
    }
    assert_eq!(endpoint.status().connects, 3);
    assert_eq!(endpoint.status().last_error, None);
}

#[test]
fn an_endpoint_ends_with_a_session_under_way() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let vmm = rig.connect();
    vmm.hello();
    vmm.start(&guest, VERSION_1);
    vmm.start_ring(0, &guest);
    let Rig {
        endpoint,
        device,
        path,
        dir,
    } = rig;
    drop(endpoint);
    assert_eq!(device.events().last(), Some(&Event::Disconnected));
    vmm.closed();
    assert!(!path.exists());
    drop(dir);
}

#[test]
fn to_disconnect_ends_this_session_and_not_the_next() {
    let rig = Rig::new(1);
    rig.endpoint.disconnect("nobody is there".into());
    let vmm = rig.connect();
    vmm.hello();
    vmm.sync();
    rig.endpoint.disconnect("queue 0 broke".into());
    vmm.closed();
    let status = rig.until("down", |s| !s.connected);
    assert_eq!(status.last_error.as_deref(), Some("queue 0 broke"));
    assert!(
        status
            .reason
            .unwrap()
            .ends_with("the last session: queue 0 broke")
    );
    let vmm = rig.connect();
    vmm.hello();
    vmm.sync();
    assert!(rig.endpoint.status().connected);
}

#[test]
fn a_run_directory_that_is_gone_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.sock");
    let endpoint = listen(&dir.path().join("gone"), &path, MockDevice::new(1)).unwrap();
    Vmm::new(UnixStream::connect(&path).unwrap()).closed();
    let status = until(&endpoint, "an error", |s| s.last_error.is_some());
    assert!(
        status.last_error.unwrap().contains("gone: No such file"),
        "the directory is named"
    );
}
