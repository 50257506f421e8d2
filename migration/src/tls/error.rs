//! What goes wrong between hosts that should know each other, and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

/// Whose certificate it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// That of this host.
    Ours,
    /// That of the host at the other end.
    Theirs,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "this host's",
            Self::Theirs => "the other host's",
        })
    }
}

/// Why a host is not taken for who it should be, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is not there.
    #[error("{} is not there: issue this host its keys, and put ca.crt, host.crt and host.key there", .0.display())]
    Missing(PathBuf),
    /// A file cannot be read.
    #[error("{} cannot be read: {why}; check who may read it", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A file holds something else.
    #[error("{} is not what it should be ({why}): issue this host its keys again", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key belongs to another certificate.
    #[error("{} is not the key of host.crt: copy both from the same directory", .0.display())]
    OtherKey(PathBuf),
    /// The certificate is not one of the authority in the same directory.
    #[error(
        "host.crt was not signed by the authority in ca.crt: copy all three files from the same directory"
    )]
    NotOfAuthority,
    /// It was valid.
    #[error("{whose} certificate has expired {} ago by this host's clock: look at the clocks of both hosts, or issue another one", span(*.by))]
    Expired {
        /// Whose.
        whose: Whose,
        /// Since when.
        by: Duration,
    },
    /// It will be valid.
    #[error("{whose} certificate is valid only in {} by this host's clock: look at the clocks of both hosts", span(*.by))]
    NotYetValid {
        /// Whose.
        whose: Whose,
        /// In what time.
        by: Duration,
    },
    /// The other host says that this host's certificate is not valid now.
    #[error(
        "by the other host's clock this host's certificate is not valid yet, or no longer: look at the clocks of both hosts, or issue another one"
    )]
    NotValidThere,
    /// Signed by somebody else.
    #[error(
        "{0} certificate was not signed by the other's authority: hosts have different authorities, issue the keys of both by the same one"
    )]
    UnknownAuthority(Whose),
    /// It is another host.
    #[error("the host that answers is {}, not {wanted}: check its address and name, or issue it a certificate with that name", .has.join(", "))]
    WrongName {
        /// Who was to be reached.
        wanted: String,
        /// Who it is.
        has: Vec<String>,
    },
    /// It showed no certificate.
    #[error("{0} certificate was not shown, and is demanded: use a host's identity to connect")]
    NoCertificate(Whose),
    /// The certificate names nobody.
    #[error(
        "{0} certificate has neither a DNS name nor an address: issue one with the host's names"
    )]
    NoName(Whose),
    /// The other end refused with another alert (RFC 8446, 6.2).
    #[error("the other host refused the connection ({0}): see its log")]
    Alert(String),
    /// Anything else; it is no TLS 1.3, most likely.
    #[error(
        "no secure connection could be made ({0}): check that the port is the one tandemd migrates by"
    )]
    Other(String),
}

impl TlsError {
    pub(super) fn malformed(path: PathBuf, why: impl ToString) -> Self {
        let why = why.to_string();
        Self::Malformed { path, why }
    }

    pub(super) fn unread(path: &Path, error: io::Error) -> Self {
        Self::Unreadable {
            path: path.to_owned(),
            why: error.to_string(),
        }
    }

    pub(super) fn other(error: impl ToString) -> Self {
        Self::Other(error.to_string())
    }

    /// What an error of the TLS library means; a certificate that it is about is `whose`.
    pub(super) fn of(error: &rustls::Error, whose: Whose) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => Self::of_certificate(error, whose),
            rustls::Error::NoCertificatesPresented => Self::NoCertificate(whose),
            rustls::Error::AlertReceived(alert) => Self::of_alert(*alert),
            error => Self::other(error),
        }
    }

    fn of_certificate(error: &CertificateError, whose: Whose) -> Self {
        let by = |from: &UnixTime, to: &UnixTime| {
            Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()))
        };
        match error {
            CertificateError::ExpiredContext { time, not_after } => Self::Expired {
                whose,
                by: by(not_after, time),
            },
            CertificateError::NotValidYetContext { time, not_before } => Self::NotYetValid {
                whose,
                by: by(time, not_before),
            },
            // Another key of an authority of the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::UnknownAuthority(whose)
            }
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => Self::WrongName {
                wanted: expected.to_str().into_owned(),
                has: presented.iter().map(|name| bare(name)).collect(),
            },
            error => Self::other(error),
        }
    }

    /// What the other end found wrong with this one.
    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateExpired => Self::NotValidThere,
            AlertDescription::UnknownCA => Self::UnknownAuthority(Whose::Ours),
            AlertDescription::CertificateRequired => Self::NoCertificate(Whose::Ours),
            alert => Self::Alert(format!("{alert:?}")),
        }
    }

    /// Looks for what the TLS library said in an error of something above it.
    pub(crate) fn find(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::of(error, Whose::Theirs));
            }
            // An io::Error is asked for what it wraps, not for what that wraps.
            let wrapped = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref);
            next = match wrapped {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        None
    }
}

/// A name without what the TLS library says of its kind: `DnsName("beta")`, `IpAddress(10.0.0.1)`.
fn bare(name: &str) -> String {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner);
    inner.trim_matches(['"', ')']).to_owned()
}

/// A time in its largest unit.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
