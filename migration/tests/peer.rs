//! The daemons of two hosts talk about a migration, over loopback.

mod hosts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hosts::{Host, LIMIT, Served, Site, plan};
use tandem_migration::handoff::{ArrivalEvent, Stage};
use tandem_migration::peer::{CONNECTIONS, EVENTS_WAIT, Objection, Peer, PeerError, What};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// What the caller hears of refusals with one reason.
fn refused_because(error: &PeerError) -> &str {
    match error {
        PeerError::Refused(objections) => &objections[0].reason,
        error => panic!("no refusal: {error:?}"),
    }
}

/// As the daemon does it: one thread drives the runtime, others call the other host.
#[test]
fn a_vm_moves_and_threads_that_are_none_of_the_runtime_can_ask() {
    let site = Site::new();
    let (alpha, beta) = (site.host("alpha"), site.host("beta"));
    let host = Host::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let served = handle.block_on(async { Served::start(&beta, &host) });
    let (stop, stopped) = oneshot::channel::<()>();
    let driver = std::thread::spawn(move || runtime.block_on(stopped));

    let peer = handle.block_on(served.connect("beta", &alpha)).unwrap();
    assert_eq!(peer.name(), "beta");
    handle
        .block_on(peer.prepare("m1", &plan(&["web1", "web1-b"])))
        .unwrap();
    // Again, as after a connection that broke.
    handle
        .block_on(peer.prepare("m1", &plan(&["web1", "web1-b"])))
        .unwrap();
    for (port, bytes) in [("web1", vec![1; 1 << 20]), ("web1-b", vec![2; 10])] {
        handle
            .block_on(peer.send_state("m1", port, bytes.clone()))
            .unwrap();
        assert_eq!(host.state_of("m1", port), bytes);
    }
    let error = handle.block_on(peer.commit("m1")).unwrap_err();
    assert!(refused_because(&error).contains("does not run"), "{error}");

    host.happens("m1", ArrivalEvent::Running(1));
    host.happens("m1", ArrivalEvent::Running(0));
    let events = handle.block_on(peer.events("m1", 0)).unwrap();
    let heard: Vec<_> = events
        .iter()
        .map(|event| (event.seq, event.port.as_deref(), event.what))
        .collect();
    let expected = [
        (1, Some("web1-b"), What::Running),
        (2, Some("web1"), What::Running),
    ];
    assert_eq!(heard, expected);
    assert_eq!(handle.block_on(peer.events("m1", 1)).unwrap(), events[1..]);

    handle.block_on(peer.commit("m1")).unwrap();
    handle.block_on(peer.commit("m1")).unwrap();
    assert_eq!(host.stage("m1"), Stage::Committed);
    let error = handle.block_on(peer.abort("m1", "no")).unwrap_err();
    assert!(refused_because(&error).contains("committed"), "{error}");
    assert!(host.calls().iter().all(|call| call.starts_with("alpha: ")));

    handle.block_on(served.stop());
    stop.send(()).unwrap();
    driver.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_veto_says_all_that_is_in_the_way() {
    let site = Site::new();
    let objections = vec![
        Objection::new("there is no such port", "add it").of_port("web1"),
        Objection::new("its MTU is 1500 here, 9000 there", "set mtu").of_port("web1-b"),
        Objection::new("this host is being emptied", "choose another"),
    ];
    let host = Host::objecting(objections.clone());
    let served = Served::start(&site.host("beta"), &host);
    let peer = served.connect("beta", &site.host("alpha")).await.unwrap();
    let error = peer
        .prepare("m1", &plan(&["web1", "web1-b"]))
        .await
        .unwrap_err();
    assert_eq!(error, PeerError::Refused(objections));
    assert_eq!(
        error.to_string(),
        "web1: there is no such port; add it. web1-b: its MTU is 1500 here, 9000 there; set mtu. \
         this host is being emptied; choose another"
    );
}

#[tokio::test]
async fn what_the_vm_needs_and_the_destination_does_not_know_is_in_the_way() {
    let site = Site::new();
    let host = Host::new();
    let served = Served::start(&site.host("beta"), &host);
    let peer = served.connect("beta", &site.host("alpha")).await.unwrap();
    let mut plan = plan(&["web1"]);
    plan.requires = vec!["overlay".into(), "mirror".into()];
    let error = peer.prepare("m1", &plan).await.unwrap_err();
    assert!(
        matches!(&error, PeerError::Refused(objections) if objections.len() == 2),
        "{error:?}"
    );
    assert!(error.to_string().contains("needs overlay"), "{error}");
    assert!(host.calls().is_empty());
}

#[tokio::test]
async fn a_migration_that_is_aborted_is_aborted_once() {
    let site = Site::new();
    let host = Host::new();
    let served = Served::start(&site.host("beta"), &host);
    let peer = served.connect("beta", &site.host("alpha")).await.unwrap();
    peer.prepare("m1", &plan(&["web1"])).await.unwrap();
    peer.abort("m1", "the VM is \"busy\"\n").await.unwrap();
    peer.abort("m1", "again").await.unwrap();
    assert_eq!(host.stage("m1"), Stage::Aborted);
    let error = peer.commit("m1").await.unwrap_err();
    assert!(refused_because(&error).contains("is \"busy\"\n"), "{error}");
    // Whoever waits for events is told.
    let events = peer.events("m1", 0).await.unwrap();
    assert_eq!(events[0].what, What::Aborted);
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn only_the_host_that_has_prepared_a_migration_knows_it() {
    let site = Site::new();
    let host = Host::new();
    let served = Served::start(&site.host("beta"), &host);
    let alpha = served.connect("beta", &site.host("alpha")).await.unwrap();
    let gamma = served.connect("beta", &site.host("gamma")).await.unwrap();
    alpha.prepare("m1", &plan(&["web1"])).await.unwrap();
    let unknown = |id: &str| PeerError::UnknownMigration(id.into());
    let bytes = vec![0; 10];
    assert_eq!(gamma.commit("m1").await, Err(unknown("m1")));
    assert_eq!(gamma.abort("m1", "mine").await, Err(unknown("m1")));
    assert_eq!(gamma.events("m1", 0).await, Err(unknown("m1")));
    assert_eq!(
        gamma.send_state("m1", "web1", bytes.clone()).await,
        Err(unknown("m1"))
    );
    assert_eq!(alpha.commit("m2").await, Err(unknown("m2")));
    let error = alpha.send_state("m1", "other", bytes).await.unwrap_err();
    assert!(refused_because(&error).contains("plan"), "{error}");
    let bad = alpha.commit("../m1").await;
    assert_eq!(bad, Err(PeerError::BadName("../m1".into())));
}

#[tokio::test]
async fn who_waits_hears_of_an_event_at_once_and_holds_up_nothing() {
    let site = Site::new();
    let host = Host::new();
    let served = Served::start(&site.host("beta"), &host);
    let peer = served.connect("beta", &site.host("alpha")).await.unwrap();
    peer.prepare("m1", &plan(&["web1"])).await.unwrap();
    let begin = Instant::now();
    let (events, ()) = tokio::join!(peer.events("m1", 0), async {
        host.asked.notified().await;
        peer.send_state("m1", "web1", vec![0; 10]).await.unwrap();
        host.happens("m1", ArrivalEvent::Running(0));
    });
    assert_eq!(events.unwrap()[0].what, What::Running);
    // Otherwise it would have been said that there is none, after that time.
    assert!(begin.elapsed() < EVENTS_WAIT / 2, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn who_waits_is_answered_when_the_daemon_stops() {
    let site = Site::new();
    let host = Host::new();
    let served = Served::start(&site.host("beta"), &host);
    let peer = served.connect("beta", &site.host("alpha")).await.unwrap();
    peer.prepare("m1", &plan(&["web1"])).await.unwrap();
    let (events, ()) = tokio::join!(peer.events("m1", 0), async {
        host.asked.notified().await;
        served.stop().await;
    });
    assert_eq!(events, Ok(Vec::new()));
}

#[tokio::test]
async fn a_daemon_that_was_started_again_is_found_and_knows_nothing() {
    let site = Site::new();
    let (alpha, beta) = (site.host("alpha"), site.host("beta"));
    let served = Served::start(&beta, &Host::new());
    let peer = served.connect("beta", &alpha).await.unwrap();
    peer.prepare("m1", &plan(&["web1"])).await.unwrap();
    let host = Host::new();
    let served = served.restart(&beta, &host).await;
    let unknown = PeerError::UnknownMigration("m1".into());
    assert_eq!(peer.commit("m1").await, Err(unknown.clone()));
    assert_eq!(peer.events("m1", 0).await, Err(unknown));
    peer.prepare("m1", &plan(&["web1"])).await.unwrap();
    assert_eq!(host.stage("m1"), Stage::Prepared);

    // Another host at its address is not taken for it.
    let gamma = site.host("gamma");
    let _served = served.restart(&gamma, &host).await;
    let error = peer.commit("m1").await.unwrap_err();
    assert!(matches!(error, PeerError::Tls(_)), "{error:?}");
}

#[tokio::test]
async fn nobody_there_and_no_answer_are_told_apart() {
    let site = Site::new();
    let alpha = site.host("alpha");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let soon = Duration::from_millis(100);
    let error = Peer::connect(&address, "beta", &alpha, soon).await;
    let error = error.err().unwrap();
    assert!(
        matches!(error, PeerError::TimedOut { what: "a connection", limit, .. } if limit == soon),
        "{error:?}"
    );
    drop(listener);
    let error = Peer::connect(&address, "beta", &alpha, LIMIT).await;
    let error = error.err().unwrap();
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn one_host_too_many_waits_until_another_leaves() {
    let site = Site::new();
    let alpha = site.host("alpha");
    let served = Served::start(&site.host("beta"), &Host::new());
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS {
        peers.push(Arc::new(served.connect("beta", &alpha).await.unwrap()));
    }
    let connect = served.connect("beta", &alpha);
    tokio::pin!(connect);
    let early = timeout(Duration::from_millis(200), &mut connect).await;
    assert!(early.is_err());
    peers.pop();
    connect.await.unwrap();
}
