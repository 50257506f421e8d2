//! Keys and certificates for hosts that migrate VMs to each other.
//!
//! One authority signs for all hosts of a site; a host takes another for one of them if the authority
//! has signed its certificate (X.509, RFC 5280). It is made once, on a host that its key never leaves:
//!
//! ```text
//!   authority's directory          what a host gets, in a directory of its own
//!     ca.crt   its certificate       ca.crt     the authority's certificate
//!     ca.key   its key, 0600         host.crt   the host's certificate
//!                                    host.key   the host's key, 0600
//! ```
//!
//! All are PEM (RFC 7468), keys are ECDSA P-256 in PKCS #8. A host's certificate is for both ends of a
//! connection and names the host: DNS names and addresses (RFC 5280, 4.2.1.6), the first DNS name is
//! what others call it. Certificates begin a day early, since clocks differ, and last ten years. Nothing
//! is ever overwritten. To change authorities, concatenate the `ca.crt` of both on each host
//! until every host has a certificate of the new one.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::ServerName;
use thiserror::Error;

/// The authority's certificate.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The authority's key.
pub const CA_KEY: &str = "ca.key";
/// A host's certificate.
pub const HOST_CERTIFICATE: &str = "host.crt";
/// A host's key.
pub const HOST_KEY: &str = "host.key";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEARS_10: Duration = Duration::from_secs(3653 * 24 * 60 * 60);
/// RFC 5280, appendix A: ub-common-name.
const MAX_COMMON_NAME: usize = 64;

/// Who may read a file.
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

/// Why keys are not made, and what to do.
#[derive(Debug, Error)]
pub enum KeysError {
    /// There is one.
    #[error(
        "{} is there already, and keys are never overwritten: give another directory, or move it away if no host needs it",
        .0.display()
    )]
    Exists(PathBuf),
    /// There is none.
    #[error("there is no authority in {}: create one, or name the directory it was made in", .0.display())]
    NoAuthority(PathBuf),
    /// A host of another authority has its files there.
    #[error(
        "{} is of another authority: give this host a directory of its own",
        .0.display()
    )]
    OtherAuthority(PathBuf),
    /// No name was given.
    #[error("a host needs a name: give the DNS name or address by which others reach it")]
    NoName,
    /// It is neither name nor address.
    #[error("{0:?} is neither a DNS name nor an IP address: give what others reach the host by")]
    BadName(String),
    /// The files are there, and are something else.
    #[error("{} holds no {what}: restore it, or create another authority", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The operating system's error.
    #[error("{} cannot be {done}: {error}; check that its directory is there, and who may use it", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        done: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The cryptographic library's error.
    #[error("no certificate could be made: {0}; please report it")]
    Failed(#[from] rcgen::Error),
}

/// When a certificate is valid, both ends included, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From when.
    pub from: SystemTime,
    /// Until when.
    pub until: SystemTime,
}

impl Validity {
    /// From a day before `now` for ten years.
    pub fn usual(now: SystemTime) -> Self {
        Self {
            from: now - DAY,
            until: now + YEARS_10,
        }
    }
}

/// What a host was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFiles {
    /// `ca.crt`.
    pub authority: PathBuf,
    /// `host.crt`.
    pub certificate: PathBuf,
    /// `host.key`.
    pub key: PathBuf,
}

/// Signs for the hosts of a site.
#[derive(Debug)]
pub struct Authority {
    /// Its certificate, as it is in the file.
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority, with its files in `dir`. The directory is made if it is not there.
    ///
    /// # Errors
    /// [`KeysError::Exists`] if there is one, and what the operating system says.
    pub fn create(dir: &Path) -> Result<Self, KeysError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(Vec::new(), Validity::usual(SystemTime::now()))?;
        // Authorities differ in name, so that a certificate of another is known for one.
        let id: String =
            key.public_key_raw()
                .iter()
                .skip(1)
                .take(4)
                .fold(String::new(), |mut text, byte| {
                    text.push_str(&format!("{byte:02x}"));
                    text
                });
        let name = format!("Tandem migration authority {id}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();

        make_dir(dir)?;
        Writer::default()
            .write(dir.join(CA_KEY), SECRET, &key.serialize_pem())?
            .write(dir.join(CA_CERTIFICATE), PUBLIC, &certificate)?
            .keep();
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Takes up the authority that was made in `dir`.
    ///
    /// # Errors
    /// It is not there, or not as it was made.
    pub fn load(dir: &Path) -> Result<Self, KeysError> {
        let read = |name| match fs::read_to_string(dir.join(name)) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(KeysError::NoAuthority(dir.to_owned()))
            }
            Err(error) => Err(file(dir.join(name), "read", error)),
        };
        let malformed = |name, what| KeysError::Malformed {
            path: dir.join(name),
            what,
        };
        let certificate = read(CA_CERTIFICATE)?;
        let key = KeyPair::from_pem(&read(CA_KEY)?)
            .map_err(|_| malformed(CA_KEY, "key of an authority"))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .map_err(|_| malformed(CA_CERTIFICATE, "certificate of an authority"))?;
        Ok(Self {
            certificate,
            issuer,
        })
    }

    /// Makes key and certificate of a host that others reach by `names` (DNS names and addresses),
    /// valid as usual, and writes its three files to `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// No name or a bad one; one of the files is there; what the operating system says. Then none of
    /// them was written.
    pub fn issue(&self, names: &[&str], dir: &Path) -> Result<HostFiles, KeysError> {
        self.issue_for(names, Validity::usual(SystemTime::now()), dir)
    }

    /// As [`Self::issue`], with a validity of the caller's.
    ///
    /// # Errors
    /// As those of [`Self::issue`].
    pub fn issue_for(
        &self,
        names: &[&str],
        validity: Validity,
        dir: &Path,
    ) -> Result<HostFiles, KeysError> {
        let first = *names.first().ok_or(KeysError::NoName)?;
        for name in names {
            ServerName::try_from(*name).map_err(|_| KeysError::BadName((*name).to_owned()))?;
        }
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = params(names, validity)?;
        if first.len() <= MAX_COMMON_NAME {
            params.distinguished_name.push(DnType::CommonName, first);
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        self.write(dir, &key.serialize_pem(), &certificate)
    }

    fn write(&self, dir: &Path, key: &str, certificate: &str) -> Result<HostFiles, KeysError> {
        let files = HostFiles {
            authority: dir.join(CA_CERTIFICATE),
            certificate: dir.join(HOST_CERTIFICATE),
            key: dir.join(HOST_KEY),
        };
        make_dir(dir)?;
        let mut writer = Writer::default()
            .write(files.key.clone(), SECRET, key)?
            .write(files.certificate.clone(), PUBLIC, certificate)?;
        // In the authority's own directory it is there.
        writer = match fs::read_to_string(&files.authority) {
            Ok(there) if there == self.certificate => writer,
            Ok(_) => return Err(KeysError::OtherAuthority(files.authority)),
            Err(_) => writer.write(files.authority.clone(), PUBLIC, &self.certificate)?,
        };
        writer.keep();
        Ok(files)
    }
}

fn params(names: Vec<String>, validity: Validity) -> Result<CertificateParams, KeysError> {
    let mut params = CertificateParams::new(names)?;
    params.not_before = validity.from.into();
    params.not_after = validity.until.into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Tandem");
    Ok(params)
}

fn make_dir(dir: &Path) -> Result<(), KeysError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| file(dir.to_owned(), "made", error))
}

fn file(path: PathBuf, done: &'static str, error: io::Error) -> KeysError {
    KeysError::File { path, done, error }
}

/// Writes files that are not there yet, all or none of them.
#[derive(Default)]
struct Writer {
    written: Vec<PathBuf>,
}

impl Writer {
    fn write(mut self, path: PathBuf, mode: u32, text: &str) -> Result<Self, KeysError> {
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path);
        let mut opened = opened.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => KeysError::Exists(path.clone()),
            _ => file(path.clone(), "written", error),
        })?;
        self.written.push(path.clone());
        opened
            .write_all(text.as_bytes())
            .and_then(|()| opened.sync_all())
            .map_err(|error| file(path, "written", error))?;
        Ok(self)
    }

    fn keep(mut self) {
        self.written.clear();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for path in &self.written {
            // What is left over makes the next attempt say so.
            let _ = fs::remove_file(path);
        }
    }
}
