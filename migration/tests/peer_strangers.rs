//! Who is not known, or does not speak as it should, gets nowhere and holds up nobody.

mod hosts;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hosts::{Host, LIMIT, Served, Site, plan};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tandem_migration::keys::Validity;
use tandem_migration::peer::{HANDSHAKES_OF_ONE, JSON_LEN, Peer, PeerError, TIME};
use tandem_migration::state::MAX_LEN;
use tandem_migration::tls::{Clock, Identity, TlsError, Whose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn refused(served: &Served, name: &str, identity: &Identity) -> TlsError {
    match served.connect(name, identity).await {
        Err(PeerError::Tls(error)) => error,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("connected"),
    }
}

#[tokio::test]
async fn another_authority_is_not_believed() {
    let (site, other) = (Site::new(), Site::new());
    let host = Host::new();
    let served = Served::start(&site.host("beta"), &host);
    let stranger = other.issue("alpha");
    let error = refused(&served, "beta", &Identity::load(&stranger).unwrap()).await;
    assert_eq!(error, TlsError::UnknownAuthority(Whose::Theirs));

    // One that believes both authorities finds out that it is not believed.
    let path = |dir: &Path| dir.join("ca.crt");
    let mut both = std::fs::read(path(&stranger)).unwrap();
    both.extend(std::fs::read(path(&site.dir.path().join("beta"))).unwrap());
    std::fs::write(path(&stranger), both).unwrap();
    let error = refused(&served, "beta", &Identity::load(&stranger).unwrap()).await;
    assert_eq!(error, TlsError::UnknownAuthority(Whose::Ours));
    assert!(host.calls().is_empty());
}

#[tokio::test]
async fn no_certificate_is_not_enough() {
    let site = Site::new();
    let host = Host::new();
    let served = Served::start(&site.host("beta"), &host);
    let mut roots = RootCertStore::empty();
    let authority = site.dir.path().join("beta/ca.crt");
    roots
        .add(CertificateDer::from_pem_file(authority).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let anonymous = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut stream = raw(&served, "beta", Arc::new(anonymous)).await;
    let error = async {
        stream
            .write_all(b"GET /migration/v1 HTTP/1.1\r\n\r\n")
            .await?;
        stream.read_u8().await
    };
    let error = error.await.unwrap_err().to_string();
    assert!(error.contains("CertificateRequired"), "{error}");
    assert!(host.calls().is_empty());
}

#[tokio::test]
async fn another_name_is_another_host() {
    let site = Site::new();
    let served = Served::start(&site.host("beta"), &Host::new());
    let alpha = site.host("alpha");
    let error = refused(&served, "gamma", &alpha).await;
    assert_eq!(
        error.to_string(),
        "the host that answers is beta, 127.0.0.1, not gamma: check its address and name, or issue it a \
         certificate with that name"
    );
    let peer = served.connect("127.0.0.1", &alpha).await.unwrap();
    assert_eq!(peer.name(), "beta");
}

/// Two hosts whose clocks are days apart, and a certificate that is valid by one of them only.
#[tokio::test]
async fn what_is_not_valid_now_is_not_believed() {
    let site = Site::new();
    let now = UNIX_EPOCH + 20_000 * DAY;
    let at = |time: SystemTime| -> Clock { Arc::new(move || time) };
    let issue = |name: &str, until: SystemTime| {
        let dir = site.dir.path().join(name);
        let from = now - 10 * DAY;
        site.authority
            .issue_for(&[name], Validity { from, until }, &dir)
            .unwrap();
        dir
    };
    let alpha = issue("alpha", now - 3 * DAY);
    let slow = Identity::load_with_clock(&alpha, at(now - 4 * DAY)).unwrap();
    assert_eq!(slow.warnings().len(), 1);
    let beta = Identity::load_with_clock(&issue("beta", now + 90 * DAY), at(now)).unwrap();
    assert!(beta.warnings().is_empty());

    let expired = |whose| TlsError::Expired { whose, by: 3 * DAY };
    let error = Identity::load_with_clock(&alpha, at(now)).err();
    assert_eq!(error, Some(expired(Whose::Ours)));
    let early = Identity::load_with_clock(&alpha, at(now - 12 * DAY)).err();
    let (whose, by) = (Whose::Ours, 2 * DAY);
    assert_eq!(early, Some(TlsError::NotYetValid { whose, by }));

    let served = Served::start(&beta, &Host::new());
    let error = refused(&served, "beta", &slow).await;
    assert_eq!(error, TlsError::NotValidThere);
    let served = Served::start(&slow, &Host::new());
    let error = refused(&served, "alpha", &beta).await;
    assert_eq!(error, expired(Whose::Theirs));
    assert_eq!(
        error.to_string(),
        "the other host's certificate has expired 3 days ago by this host's clock: look at the clocks of both hosts, \
         or issue another one"
    );
}

/// A connection as the host's own, to send over it what `Peer` would not.
async fn raw(served: &Served, name: &str, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(served.address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(config);
    connector.connect(name, stream).await.unwrap()
}

/// All that comes until the other end closes, whichever way it does.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    let read = timeout(LIMIT, stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("it is not closed");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Each is silent at another moment; all are closed in time, and a host that is known is served meanwhile.
#[tokio::test]
async fn half_open_connections_hold_up_nobody() {
    let site = Site::new();
    let (alpha, beta) = (site.host("alpha"), site.host("beta"));
    let served = Served::start(&beta, &Host::new());
    let mut in_head = raw(&served, "beta", alpha.client()).await;
    in_head.write_all(b"GET /migra").await.unwrap();
    let mut in_body = raw(&served, "beta", alpha.client()).await;
    let head = "POST /migration/v1/migrations/m1 HTTP/1.1\r\nhost: beta\r\ntandem-migration: 1\r\n\
                content-length: 100\r\n\r\n{";
    in_body.write_all(head.as_bytes()).await.unwrap();
    let begin = Instant::now();
    let mut silent = Vec::new();
    for _ in 1..HANDSHAKES_OF_ONE {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    let peer = served.connect("beta", &alpha).await.unwrap();
    peer.prepare("m1", &plan(&["web1"])).await.unwrap();
    silent.push(TcpStream::connect(served.address).await.unwrap());
    // One more from that address finds no place.
    let mut more = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(rest(&mut more).await, "");
    assert!(begin.elapsed() < TIME, "{:?}", begin.elapsed());

    let silent = async {
        for stream in &mut silent {
            assert_eq!(rest(stream).await, "");
        }
    };
    let ((), head, body) = tokio::join!(silent, rest(&mut in_head), rest(&mut in_body));
    let took = begin.elapsed();
    assert!(
        took >= TIME - Duration::from_secs(1) && took < 3 * TIME,
        "{took:?}"
    );
    assert!(
        head.is_empty() || head.starts_with("HTTP/1.1 408"),
        "{head}"
    );
    assert!(body.starts_with("HTTP/1.1 408"), "{body}");
}

#[tokio::test]
async fn garbage_is_refused() {
    let site = Site::new();
    let (alpha, beta) = (site.host("alpha"), site.host("beta"));
    let host = Host::new();
    let served = Served::start(&beta, &host);
    let mut plain = TcpStream::connect(served.address).await.unwrap();
    plain
        .write_all(b"GET /migration/v1 HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    assert!(!rest(&mut plain).await.contains("HTTP"));
    let mut inside = raw(&served, "beta", alpha.client()).await;
    inside.write_all(b"\0\x01\xff\r\n\r\n").await.unwrap();
    assert!(rest(&mut inside).await.starts_with("HTTP/1.1 400"));

    let long = format!("POST migrations/m1|{{\"vm\":\"{}\"}}", "x".repeat(JSON_LEN));
    let plan = |vm: &str, ports: &str| {
        format!(
            "POST migrations/m1|{{\"vm\":\"{vm}\",\"source\":\"a\",\"limit_s\":1,\"ports\":[{ports}]}}"
        )
    };
    let port = "{\"name\":\"a\",\"feature_level\":1,\"queue_pairs\":1,\"mtu\":1}";
    let cases = [
        ("413", long.as_str()),
        ("400", "POST migrations/m1|garbage"),
        ("400", "POST migrations/m1|{}"),
        ("400", &plan("web1", "")),
        ("400", &plan("web1", &format!("{port},{port}"))),
        ("400", &plan("../web1", port)),
        ("400", &plan("web1", &port.replace("\"a\"", "\"a/b\""))),
        ("400", &plan("web1", &port.replace(":1,", ":-1,"))),
        ("400", "POST migrations/..%2Fm1|{}"),
        ("400", "POST migrations/m1/abort|{\"reason\":1}"),
        ("400", "GET migrations/m1/events?after=x|"),
        ("404", "GET migrations|"),
        ("404", "PUT ../../etc/passwd|"),
        ("405", "DELETE migrations/m1|"),
    ];
    for (status, case) in cases {
        let answer = ask(&served, &alpha, "1", case.as_bytes()).await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{case:.100}: {answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(answer.contains("\"remedy\""), "{answer}");
    }
    assert!(host.calls().is_empty());
    // What is new in a plan, and need not be known, is passed over.
    let new = plan("web1", &port.replace("\"mtu\"", "\"new\":[],\"mtu\""));
    let answer = ask(&served, &alpha, "1", new.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_state_that_is_too_long_is_refused() {
    let site = Site::new();
    let alpha = site.host("alpha");
    let host = Host::new();
    let served = Served::start(&site.host("beta"), &host);
    let mut case = b"PUT migrations/m1/ports/web1/state|".to_vec();
    case.resize(case.len() + MAX_LEN + 1, 0);
    let answer = ask(&served, &alpha, "1", &case).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(host.calls().is_empty());
}

#[tokio::test]
async fn another_version_is_told_which_is_known() {
    let site = Site::new();
    let alpha = site.host("alpha");
    let served = Served::start(&site.host("beta"), &Host::new());
    for (version, path) in [("2", "GET ../v2|"), ("", "GET |"), ("1.1", "GET |")] {
        let answer = ask(&served, &alpha, version, path.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
        assert!(answer.contains("\"versions\":[1]"), "{answer}");
    }
}

/// A source is told by a destination of another version, whatever that has at this version's paths.
#[tokio::test]
async fn a_destination_of_another_version_is_known_for_one() {
    let site = Site::new();
    let beta = site.host("beta");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answers = async {
        let body = "{\"code\":\"unknown_version\",\"versions\":[2,3]}";
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(beta.server());
        let mut stream = acceptor.accept(stream).await.unwrap();
        let answer = format!(
            "HTTP/1.1 501 No\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        rest(&mut stream).await;
    };
    let alpha = site.host("alpha");
    let connect = Peer::connect(&address, "beta", &alpha, LIMIT);
    let (peer, ()) = tokio::join!(async { connect.await.err() }, answers);
    let theirs = vec![2, 3];
    assert_eq!(peer, Some(PeerError::Version { theirs }));
}

/// Sends `METHOD PATH|BODY` and returns the answer.
async fn ask(served: &Served, identity: &Identity, version: &str, case: &[u8]) -> String {
    let at = |byte| case.iter().position(|b| *b == byte).unwrap();
    let (space, bar) = (at(b' '), at(b'|'));
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    let (method, path) = (text(&case[..space]), text(&case[space + 1..bar]));
    let body = &case[bar + 1..];
    let path = format!("/migration/v1/{path}");
    let head = format!(
        "{method} {} HTTP/1.1\r\nhost: beta\r\ntandem-migration: {version}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        path.trim_end_matches('/'),
        body.len()
    );
    let mut stream = raw(served, "beta", identity.client()).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    rest(&mut stream).await
}
