//! Who a host is to other hosts: TLS 1.3 (RFC 8446) with certificates on both ends.
//!
//! An [`Identity`] is the directory that [`keys`](crate::keys) describes, read once. Either end demands
//! a certificate that the authority has signed; the end that connects also demands the name it meant to
//! reach (RFC 9525). There is no earlier version, no session resumption and no early data: each
//! connection looks at certificates and clocks anew.

mod error;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::keys::{CA_CERTIFICATE, HOST_CERTIFICATE, HOST_KEY};

pub use error::{TlsError, Whose};

/// How long before its end a certificate is warned of.
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Bits of a file's mode that let others than its owner at it.
const OTHERS: u32 = 0o077;

/// Says what time it is.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What is not as it should be, and does not stop a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Others can read the key.
    KeyReadable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The certificate ends soon.
    ExpiresSoon(Duration),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyReadable { path, mode } => write!(
                f,
                "{} can be read by others than its owner (its mode is {mode:03o}): chmod 600",
                path.display()
            ),
            Self::ExpiresSoon(left) => write!(
                f,
                "this host's certificate expires in {}: issue another one",
                error::span(*left)
            ),
        }
    }
}

/// Certificate and key of a host, and the authority that it believes.
#[derive(Clone)]
pub struct Identity {
    names: Vec<String>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    warnings: Vec<Warning>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads `ca.crt`, `host.crt` and `host.key` in `dir`. They are not looked at again.
    ///
    /// # Errors
    /// A file is missing or holds something else, the key is not that of the certificate, or the
    /// certificate not one that this host itself would believe now.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        Self::load_with_clock(dir, Arc::new(SystemTime::now))
    }

    /// As [`Self::load`], by another clock, now and in every handshake.
    ///
    /// # Errors
    /// As those of [`Self::load`].
    pub fn load_with_clock(dir: &Path, clock: Clock) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(roots(&dir.join(CA_CERTIFICATE))?);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| TlsError::malformed(dir.join(CA_CERTIFICATE), error))?;
        let (chain, names) = chain(&dir.join(HOST_CERTIFICATE))?;
        let left = verify(&chain, &*verifier, clock())?;
        let (key, exposed) = key(&dir.join(HOST_KEY))?;
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::OtherKey(dir.join(HOST_KEY)),
            error => TlsError::malformed(dir.join(HOST_KEY), error),
        })?;
        let key = Arc::new(SingleCertAndKey::from(key));
        let soon = (left < EXPIRES_SOON).then_some(Warning::ExpiresSoon(left));
        let time = Arc::new(Time(clock));
        Ok(Self {
            names,
            server: Arc::new(server(&provider, &time, verifier, Arc::clone(&key))?),
            client: Arc::new(client(&provider, &time, roots, key)?),
            warnings: exposed.into_iter().chain(soon).collect(),
        })
    }

    /// What others call this host: the first DNS name of its certificate, or its first address.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// All names and addresses that it may be reached by.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What is not as it should be.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// For the end that listens.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For the end that connects.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

/// What the other end is called, by the certificate of a handshake that has succeeded.
///
/// # Errors
/// It showed none, or one without a name.
pub fn peer_name(certificates: Option<&[CertificateDer<'_>]>) -> Result<String, TlsError> {
    let none = TlsError::NoCertificate(Whose::Theirs);
    let certificate = certificates.and_then(<[_]>::first).ok_or(none)?;
    let name = names(certificate)
        .ok()
        .and_then(|names| names.into_iter().next());
    name.ok_or(TlsError::NoName(Whose::Theirs))
}

fn server(
    provider: &Arc<CryptoProvider>,
    time: &Arc<Time>,
    verifier: Arc<dyn ClientCertVerifier>,
    key: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, TlsError> {
    let time = Arc::clone(time) as Arc<dyn TimeProvider>;
    let mut config = ServerConfig::builder_with_details(Arc::clone(provider), time)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::other)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(key);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    time: &Arc<Time>,
    roots: Arc<RootCertStore>,
    key: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, TlsError> {
    let time = Arc::clone(time) as Arc<dyn TimeProvider>;
    let mut config = ClientConfig::builder_with_details(Arc::clone(provider), time)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::other)?
        .with_root_certificates(roots)
        .with_client_cert_resolver(key);
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// All authorities in a file: while they change there are two.
fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::malformed(path.to_owned(), error))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(TlsError::malformed(path.to_owned(), "no certificate in it")),
        Err(error) => Err(TlsError::malformed(path.to_owned(), error)),
    }
}

type Chain = Vec<CertificateDer<'static>>;

/// A host's certificate, with those above it, and its names.
fn chain(path: &Path) -> Result<(Chain, Vec<String>), TlsError> {
    let chain = certificates(path)?;
    let names = chain.first().map(names).transpose();
    let names = names.map_err(|error| TlsError::malformed(path.to_owned(), error))?;
    match names {
        Some(names) if !names.is_empty() => Ok((chain, names)),
        _ => Err(TlsError::NoName(Whose::Ours)),
    }
}

fn key(path: &Path) -> Result<(PrivateKeyDer<'static>, Option<Warning>), TlsError> {
    let text = read(path)?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| TlsError::malformed(path.to_owned(), error))?;
    let metadata = fs::metadata(path).map_err(|error| TlsError::unread(path, error))?;
    let mode = metadata.permissions().mode() & 0o777;
    let warning = (mode & OTHERS != 0).then(|| Warning::KeyReadable {
        path: path.to_owned(),
        mode,
    });
    Ok((key, warning))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => TlsError::Missing(path.to_owned()),
        _ => TlsError::unread(path, error),
    })
}

/// Looks at this host's certificate as another host would, and says how long it is valid still.
fn verify(
    chain: &[CertificateDer<'static>],
    verifier: &dyn ClientCertVerifier,
    now: SystemTime,
) -> Result<Duration, TlsError> {
    let (first, above) = chain
        .split_first()
        .ok_or(TlsError::NoCertificate(Whose::Ours))?;
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    verifier
        .verify_client_cert(first, above, UnixTime::since_unix_epoch(since))
        .map_err(|error| match TlsError::of(&error, Whose::Ours) {
            // Here it is not another host's, but the file next to it.
            TlsError::UnknownAuthority(_) => TlsError::NotOfAuthority,
            error => error,
        })?;
    let (_, parsed) = X509Certificate::from_der(first).map_err(TlsError::other)?;
    let until = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(Duration::from_secs(until).saturating_sub(since))
}

/// Names and addresses of a certificate, names first; those that nobody could be reached by are none.
fn names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let extension = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let all = extension.map_or(&[][..], |extension| &extension.value.general_names);
    let dns = all.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let addresses = all.iter().filter_map(|name| match name {
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    let reachable = |name: &String| ServerName::try_from(name.as_str()).is_ok();
    Ok(dns.filter(reachable).chain(addresses).collect())
}

/// RFC 5280, 4.2.1.6: four octets or sixteen.
fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from);
    v4.or(v6).ok().map(|ip| ip.to_string())
}

struct Time(Clock);

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}
