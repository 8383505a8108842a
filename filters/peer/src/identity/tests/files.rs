//! Files that cannot be used, and what is said of them.

use std::os::unix::fs::PermissionsExt;

use qudag_filter_api::ConfigPath;
use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;
use crate::identity::load;

/// The error of opening, which the check of the configuration has at the same place.
fn wrong(settings: &IdentitySettings) -> IdentityError {
    let error = Identity::open(settings).unwrap_err();
    let checked = settings.check(&ConfigPath::root().key("identity"));
    let found = checked.iter().find(|found| found.problem == error.to_string());
    let found = found.unwrap_or_else(|| panic!("{error} is not in {checked:?}"));
    assert_eq!(found.at.to_string(), format!("identity.{}", error.part.key()));
    assert!(found.hint.as_ref().is_some_and(|hint| !hint.is_empty()));
    error
}

/// A certificate that issues itself, with these names.
fn self_signed(dir: &Path, names: &[&str]) -> IdentitySettings {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["node.example".to_owned()]).unwrap();
    params.subject_alt_names.extend(names.iter().map(|&name| SanType::URI(name.try_into().unwrap())));
    let pem = params.self_signed(&key).unwrap().pem();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let certificate = file("own.pem", &pem);
    IdentitySettings {
        authorities: certificate.clone(),
        certificate,
        key: file("own.key", &key.serialize_pem()),
    }
}

#[tokio::test]
async fn each_mistake_has_its_file_its_reason_and_its_hint() {
    let ca = Ca::new();
    let (good, other) = (ca.issue("a"), ca.issue("b"));
    assert_eq!(good.check(&ConfigPath::root()), []);
    let file = |name: &str, text: &str| {
        std::fs::write(ca.file(name), text).unwrap();
        ca.file(name)
    };
    let key = std::fs::read_to_string(&good.key).unwrap();
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let with = |part: Part, file: PathBuf| match part {
        Part::Certificate => IdentitySettings { certificate: file, ..good.clone() },
        Part::Key => IdentitySettings { key: file, ..good.clone() },
        Part::Authorities => IdentitySettings { authorities: file, ..good.clone() },
    };
    use Part::{Authorities, Certificate, Key};
    for (part, path, says, label) in [
        (Certificate, ca.file("absent"), "cannot be read", "unreadable"),
        (Certificate, ca.path().to_owned(), "cannot be read", "unreadable"),
        (Certificate, file("large", &"x".repeat((1 << 20) + 1)), "larger than 1 MiB", "unreadable"),
        (Certificate, file("empty", ""), "no certificate in it", "bad_certificate"),
        (Certificate, file("cut", "-----BEGIN CERTIFICATE-----\nAAAA"), "not PEM", "bad_certificate"),
        (Certificate, file("garbage", garbage), "no certificate", "bad_certificate"),
        (Certificate, good.key.clone(), "no certificate in it", "bad_certificate"),
        (Key, ca.file("absent"), "cannot be read", "unreadable"),
        (Key, file("no-key", "hello"), "no private key in it", "bad_key"),
        (Key, good.certificate.clone(), "no private key in it", "bad_key"),
        (Key, file("encrypted", &encrypted), "is encrypted", "bad_key"),
        (Key, file("bad-key", bad_key), "cannot be used", "bad_key"),
        (Key, other.key.clone(), "is not that of the certificate in", "other_key"),
        (Authorities, ca.file("absent"), "cannot be read", "unreadable"),
        (Authorities, file("empty", ""), "no certificate in it", "bad_certificate"),
        (Authorities, file("garbage", garbage), "cannot be used", "bad_certificate"),
    ] {
        let error = wrong(&with(part, path.clone()));
        let text = error.to_string();
        assert!(text.contains(says) && text.starts_with(&path.display().to_string()), "{text}, not {says}");
        assert_eq!((error.part, error.label()), (part, label), "{text}");
    }
    let all = IdentitySettings {
        certificate: ca.file("empty"),
        key: ca.file("no-key"),
        authorities: ca.file("garbage"),
    };
    assert_eq!(all.check(&ConfigPath::root()).len(), 3, "every problem at once");
}

#[tokio::test]
async fn a_certificate_has_one_name() {
    let dir = tempfile::tempdir().unwrap();
    assert!(wrong(&self_signed(dir.path(), &[])).to_string().contains("has no URI"));
    let two = wrong(&self_signed(dir.path(), &["spiffe://a/b", "spiffe://a/c"]));
    assert!(two.to_string().contains("has 2 URIs"), "{two}");
    let bad = wrong(&self_signed(dir.path(), &["spiffe://A/b"]));
    assert!(bad.to_string().contains("not a SPIFFE ID") && bad.label() == "no_name", "{bad}");
    let one = Identity::open(&self_signed(dir.path(), &["spiffe://a/b"])).unwrap();
    assert_eq!(one.name().as_str(), "spiffe://a/b", "other kinds of names do not count");
}

#[test]
fn outside_of_a_runtime_it_is_an_error() {
    let ca = Ca::new();
    let error = Identity::open(&ca.issue("a")).unwrap_err();
    assert!(error.label() == "unwatched" && !error.hint().is_empty(), "{error}");
}

#[test]
fn what_is_hardly_meant_is_remarked() {
    let (ca, other) = (Ca::new(), Ca::new());
    let good = ca.issue("a");
    let remarks = |settings: &IdentitySettings| load::load(settings).unwrap().remarks;
    assert_eq!(remarks(&good), Vec::<String>::new());

    std::fs::set_permissions(&good.key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(remarks(&good), Vec::<String>::new(), "a group is meant");
    std::fs::set_permissions(&good.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let [open] = &remarks(&good)[..] else { panic!() };
    assert!(open.contains("a.key can be read by everybody (mode 644)"), "{open}");
    std::fs::set_permissions(&good.key, std::fs::Permissions::from_mode(0o600)).unwrap();

    let foreign = IdentitySettings { authorities: other.file("ca.pem"), ..good };
    let [from] = &remarks(&foreign)[..] else { panic!() };
    assert!(from.contains("is from none of the authorities"), "{from}");
}

#[test]
fn a_certificate_for_servers_only_is_remarked() {
    use rcgen::ExtendedKeyUsagePurpose;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = self_signed(dir.path(), &["spiffe://a/b"]);
    let key = KeyPair::from_pem(&std::fs::read_to_string(&settings.key).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://a/b".try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    settings.certificate = dir.path().join("server.pem");
    std::fs::write(&settings.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
    let remarks = load::load(&settings).unwrap().remarks;
    assert!(remarks.iter().any(|remark| remark.contains("clientAuth")), "{remarks:?}");
}
