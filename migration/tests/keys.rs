//! Keys are made once, and a host's directory is what it should be, or says what is wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tandem_migration::keys::{
    Authority, CA_CERTIFICATE, CA_KEY, HOST_CERTIFICATE, HOST_KEY, KeysError,
};
use tandem_migration::tls::{Identity, TlsError, Warning};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn files(dir: &Path) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| name(entry.unwrap()))
        .collect();
    names.sort();
    names
}

fn load_error(dir: &Path) -> TlsError {
    Identity::load(dir).unwrap_err()
}

#[test]
fn an_authority_is_made_once_and_signs_for_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, host) = (dir.path().join("site/authority"), dir.path().join("beta"));
    Authority::create(&authority).unwrap();
    assert_eq!(files(&authority), [CA_CERTIFICATE, CA_KEY]);
    assert_eq!(mode(&authority.join(CA_KEY)), 0o600);
    let key = fs::read(authority.join(CA_KEY)).unwrap();
    let again = Authority::create(&authority).unwrap_err();
    assert!(matches!(again, KeysError::Exists(_)), "{again}");
    assert_eq!(fs::read(authority.join(CA_KEY)).unwrap(), key);

    let loaded = Authority::load(&authority).unwrap();
    let names = ["beta", "beta.example.org", "192.0.2.1", "2001:db8::1"];
    let made = loaded.issue(&names, &host).unwrap();
    assert_eq!(files(&host), [CA_CERTIFICATE, HOST_CERTIFICATE, HOST_KEY]);
    assert_eq!(made.key, host.join(HOST_KEY));
    assert_eq!(mode(&made.key), 0o600);
    let identity = Identity::load(&host).unwrap();
    assert_eq!(identity.name(), "beta");
    assert_eq!(identity.names(), names);
    assert_eq!(identity.warnings(), []);

    // A host of which only the address is known is called by that; the authority's host can be one.
    let address = loaded.issue(&["192.0.2.1"], &authority).unwrap();
    let identity = Identity::load(&authority).unwrap();
    assert_eq!(identity.name(), "192.0.2.1");
    assert_eq!(address.authority, authority.join(CA_CERTIFICATE));
}

#[test]
fn keys_are_never_overwritten_and_never_made_by_halves() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(&dir.path().join("a")).unwrap();
    let other = Authority::create(&dir.path().join("b")).unwrap();
    let host = dir.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join(HOST_CERTIFICATE), "mine").unwrap();
    let error = authority.issue(&["beta"], &host).unwrap_err();
    assert!(
        matches!(&error, KeysError::Exists(path) if path.ends_with(HOST_CERTIFICATE)),
        "{error}"
    );
    assert_eq!(files(&host), [HOST_CERTIFICATE]);
    fs::remove_file(host.join(HOST_CERTIFICATE)).unwrap();
    fs::copy(dir.path().join("a/ca.crt"), host.join(CA_CERTIFICATE)).unwrap();
    let error = other.issue(&["beta"], &host).unwrap_err();
    assert!(matches!(error, KeysError::OtherAuthority(_)), "{error}");
    assert_eq!(files(&host), [CA_CERTIFICATE]);
    authority.issue(&["beta"], &host).unwrap();
}

#[test]
fn what_cannot_be_made_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let error = Authority::load(dir.path()).unwrap_err();
    assert!(matches!(error, KeysError::NoAuthority(_)), "{error}");
    let authority = Authority::create(dir.path()).unwrap();
    let host = dir.path().join("host");
    let error = authority.issue(&[], &host).unwrap_err();
    assert!(matches!(error, KeysError::NoName), "{error}");
    let long = "x".repeat(300);
    for bad in ["", "beta/x", "*", "bäta", "10.0.0", "1.2.3.4.5", &long] {
        let error = authority.issue(&["beta", bad], &host).unwrap_err();
        assert!(matches!(error, KeysError::BadName(_)), "{bad:?}: {error}");
    }
    assert!(!host.exists());
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = authority.issue(&["beta"], &file).unwrap_err();
    assert!(matches!(error, KeysError::File { .. }), "{error}");
    fs::write(dir.path().join(CA_KEY), "no key").unwrap();
    let error = Authority::load(dir.path()).unwrap_err();
    assert!(matches!(error, KeysError::Malformed { .. }), "{error}");
}

#[test]
fn a_directory_that_is_not_as_it_should_be_says_why() {
    let site = tempfile::tempdir().unwrap();
    let authority = Authority::create(&site.path().join("authority")).unwrap();
    let issue = |name: &str| {
        let dir = site.path().join(name);
        authority.issue(&[name], &dir).unwrap();
        dir
    };
    for name in [CA_CERTIFICATE, HOST_CERTIFICATE, HOST_KEY] {
        let dir = issue(&format!("without-{name}"));
        fs::remove_file(dir.join(name)).unwrap();
        assert_eq!(load_error(&dir), TlsError::Missing(dir.join(name)));
        let dir = issue(&format!("damaged-{name}"));
        fs::write(dir.join(name), "no PEM").unwrap();
        let error = load_error(&dir);
        assert!(
            matches!(&error, TlsError::Malformed { path, .. } if *path == dir.join(name)),
            "{error}"
        );
    }

    let (beta, gamma) = (issue("beta"), issue("gamma"));
    fs::copy(gamma.join(HOST_KEY), beta.join(HOST_KEY)).unwrap();
    assert_eq!(load_error(&beta), TlsError::OtherKey(beta.join(HOST_KEY)));
    let other = site.path().join("other");
    Authority::create(&other).unwrap();
    fs::copy(other.join(CA_CERTIFICATE), gamma.join(CA_CERTIFICATE)).unwrap();
    assert_eq!(load_error(&gamma), TlsError::NotOfAuthority);
}

#[test]
fn a_key_that_others_can_read_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path()).unwrap();
    let made = authority.issue(&["beta"], dir.path()).unwrap();
    fs::set_permissions(&made.key, fs::Permissions::from_mode(0o640)).unwrap();
    let identity = Identity::load(dir.path()).unwrap();
    let (path, mode) = (made.key, 0o640);
    assert_eq!(identity.warnings(), [Warning::KeyReadable { path, mode }]);
    assert!(identity.warnings()[0].to_string().ends_with("chmod 600"));
}
