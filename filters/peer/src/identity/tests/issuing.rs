//! The private authority.

use std::os::unix::fs::PermissionsExt;
use std::time::UNIX_EPOCH;

use super::pki::{MAX_LIFETIME, PkiError};
use super::*;

fn mode(file: &Path) -> u32 {
    std::fs::metadata(file).unwrap().permissions().mode() & 0o777
}

/// Certificates know whole seconds.
fn whole(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn an_authority_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let (deep, now) = (dir.path().join("a/b"), SystemTime::now());
    let made = pki::init(&deep, "test.example", 10 * DAY, now).unwrap();
    assert!(made.authority);
    assert_eq!(
        (made.uris.as_slice(), made.key_type.as_str()),
        (&["spiffe://test.example".to_owned()][..], "ECDSA P-256")
    );
    assert_eq!(whole(made.not_after), whole(now + 10 * DAY));
    assert_eq!(whole(made.not_before), whole(now) - 3600, "clocks differ");
    assert_eq!((mode(&deep), mode(&deep.join("ca.key")), mode(&deep.join("ca.pem"))), (0o700, 0o600, 0o644));
    assert_eq!(pki::show(&deep.join("ca.pem")).unwrap(), [made]);

    let before = std::fs::read(deep.join("ca.key")).unwrap();
    let again = pki::init(&deep, "test.example", 10 * DAY, now).unwrap_err();
    assert!(
        matches!(again, PkiError::Exists(_)) && again.hint().unwrap().contains("never replaced"),
        "{again}"
    );
    // What is left of one is not overwritten either.
    std::fs::remove_file(deep.join("ca.pem")).unwrap();
    assert!(matches!(pki::init(&deep, "test.example", DAY, now), Err(PkiError::Exists(_))));
    assert_eq!(std::fs::read(deep.join("ca.key")).unwrap(), before);
}

#[test]
fn what_cannot_be_a_name_or_a_lifetime_is_refused() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    for name in ["", "Test", "a b", "-a", "a/b", "..", &"a".repeat(64)] {
        assert!(matches!(pki::init(dir.path(), name, DAY, now), Err(PkiError::Domain(_))), "{name}");
    }
    for lifetime in [Duration::ZERO, Duration::from_millis(999), MAX_LIFETIME + Duration::from_secs(1)] {
        assert!(matches!(pki::init(dir.path(), "a", lifetime, now), Err(PkiError::Lifetime)));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
    let ca = Ca::new();
    for name in ["", "../a", ".a", "a/b", "a\n", &"a".repeat(64)] {
        let result = ca.authority().issue(name, None, DAY, ca.path(), now);
        assert!(matches!(result, Err(PkiError::Name(_))), "{name}");
    }
}

#[test]
fn a_certificate_is_for_one_sidecar_on_both_ends_of_a_tunnel() {
    let ca = Ca::new();
    let out = ca.file("for-node-a");
    let made = ca.authority().issue("Node_a", None, DAY, &out, ca.now).unwrap();
    assert_eq!(
        (made.certificate.as_path(), made.name.clone()),
        (out.join("Node_a.pem").as_path(), name("Node_a"))
    );
    assert_eq!((mode(&out), mode(&made.key), mode(&made.certificate)), (0o700, 0o600, 0o644));
    let [facts] = &pki::show(&made.certificate).unwrap()[..] else { panic!() };
    assert_eq!(facts.name().unwrap(), name("Node_a"));
    assert!(facts.for_servers && facts.for_clients && !facts.authority);
    assert_eq!(facts.issuer, pki::show(&ca.file("ca.pem")).unwrap()[0].subject);
    assert_eq!(std::fs::read(&made.authorities).unwrap(), std::fs::read(ca.file("ca.pem")).unwrap());
    let digits: Vec<_> = facts.fingerprint_text().split(':').map(str::to_owned).collect();
    assert!(digits.len() == 32 && digits.iter().all(|pair| u8::from_str_radix(pair, 16).is_ok()));

    let again = ca.authority().issue("Node_a", None, DAY, &out, ca.now).unwrap_err();
    assert!(again.hint().unwrap().contains("pki renew"), "{again}");
    // Two authorities do not share a folder by mistake.
    let other = Ca::new().authority().issue("b", None, DAY, &out, ca.now).unwrap_err();
    assert!(matches!(&other, PkiError::Exists(file) if file.ends_with("ca.pem")), "{other}");
}

#[test]
fn no_certificate_outlives_its_authority() {
    let ca = Ca::new();
    let made = ca.authority().issue("a", None, 20 * DAY, ca.path(), ca.now).unwrap();
    assert_eq!(whole(made.not_after), whole(ca.now + 10 * DAY));
    assert_eq!(whole(pki::show(&made.certificate).unwrap()[0].not_after), whole(made.not_after));
    let later = Authority::open(ca.path(), ca.now + 11 * DAY).err().unwrap();
    assert!(matches!(later, PkiError::AuthorityExpired(_)) && later.hint().is_some(), "{later}");
}

#[test]
fn a_renewed_certificate_has_the_old_name_and_a_new_key_and_its_file_the_old_mode() {
    let ca = Ca::new();
    let urn: PeerName = "urn:x:y".parse().unwrap();
    let made = ca.authority().issue("a", Some(urn.clone()), DAY, ca.path(), ca.now).unwrap();
    std::fs::set_permissions(&made.key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let old = (std::fs::read(&made.key).unwrap(), std::fs::read(&made.certificate).unwrap());
    let new = ca.authority().renew(&made.certificate, 2 * DAY, ca.now).unwrap();
    assert_eq!((&new.name, &new.key, mode(&new.key)), (&urn, &made.key, 0o640));
    assert_eq!(whole(new.not_after), whole(ca.now + 2 * DAY));
    assert!(std::fs::read(&made.key).unwrap() != old.0 && std::fs::read(&made.certificate).unwrap() != old.1);
    let names: Vec<_> =
        std::fs::read_dir(ca.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "nothing is left over: {names:?}");
    assert!(ca.authority().renew(&ca.file("ca.pem"), DAY, ca.now).is_err(), "an authority is not renewed");
    assert!(ca.authority().renew(&ca.file("absent.pem"), DAY, ca.now).is_err());
    assert!(ca.authority().renew(&ca.file("a.key"), DAY, ca.now).is_err());
}

#[test]
fn a_folder_without_a_whole_authority_issues_nothing() {
    let (ca, other) = (Ca::new(), Ca::new());
    let open = |ca: &Ca| Authority::open(ca.path(), ca.now).err().unwrap();
    std::fs::copy(other.file("ca.key"), ca.file("ca.key")).unwrap();
    assert!(matches!(open(&ca), PkiError::OtherKey(_)));
    std::fs::write(ca.file("ca.key"), "nonsense").unwrap();
    assert!(matches!(open(&ca), PkiError::Content { .. }));
    std::fs::remove_file(ca.file("ca.key")).unwrap();
    assert!(matches!(open(&ca), PkiError::File { .. }));
    std::fs::remove_file(ca.file("ca.pem")).unwrap();
    assert!(matches!(open(&ca), PkiError::NoAuthority(_)));
    let made = other.issue("a");
    std::fs::copy(&made.certificate, ca.file("ca.pem")).unwrap();
    assert!(open(&ca).to_string().contains("not the certificate of an authority"));
    for (file, says) in [(made.key.clone(), "no certificate in it"), (other.file("absent"), "cannot read")] {
        assert!(pki::show(&file).unwrap_err().to_string().contains(says));
    }
}
