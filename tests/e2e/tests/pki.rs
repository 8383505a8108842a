//! The private authority for tunnels, from its first command to a renewed certificate.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use qudag_kit::program::{Finished, Start};
use qudag_kit::{Pki, TestSidecar, eventually, needs_program};
use serde_json::Value;

async fn pki(args: &[&str]) -> Finished {
    Start::new(TestSidecar::binary()).arg("pki").args(args.iter().copied()).output().await
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn shown(files: &[&Path]) -> Vec<Value> {
    let files: Vec<_> = files.iter().map(|file| text(file)).collect();
    let json = pki(&[&["show", "--json"], &files[..]].concat()).await.ok();
    serde_json::from_str(&json).unwrap()
}

#[tokio::test]
async fn from_nothing_to_a_configuration_in_two_commands() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path().join("my pki"), folder.path().join("for-node-a"));
    let made = pki(&["init", "--dir", text(&dir), "--name", "example.org"]).await.ok();
    for part in ["ca.pem", "ca.key", "for you alone", "qudag-sidecar pki issue node-a --dir"] {
        assert!(made.contains(part), "{part} in\n{made}");
    }
    assert_eq!(dir.join("ca.key").metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let issued = pki(&["issue", "node-a", "--dir", text(&dir), "--out", text(&out)]).await.ok();
    let lines = format!(
        "listeners:\n  peer:\n    identity:\n      certificate: {0}/node-a.pem\n      key: {0}/node-a.key\n      authorities: {0}/ca.pem\n",
        out.display()
    );
    assert!(
        issued.contains(&lines) && issued.starts_with("spiffe://example.org/node-a, until 2"),
        "{issued}"
    );
    assert_eq!(out.join("node-a.key").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!out.join("ca.key").exists(), "no sidecar needs it");
    assert!(![made, issued].concat().contains("PRIVATE"), "a key was printed");

    let people = pki(&["show", text(&out.join("node-a.pem")), text(&dir.join("ca.pem"))]).await.ok();
    for part in [
        "spiffe://example.org/node-a",
        "valid",
        "ECDSA P-256",
        "a sidecar",
        "issuing certificates",
        "CN=node-a",
        "sha-256",
    ] {
        assert!(people.contains(part), "{part} in\n{people}");
    }
    let [own, authority] = &shown(&[&out.join("node-a.pem"), &dir.join("ca.pem")]).await[..] else {
        panic!()
    };
    assert_eq!(own["uris"], serde_json::json!(["spiffe://example.org/node-a"]));
    assert_eq!((&own["issuer"], &own["standing"]), (&authority["subject"], &"valid".into()));
    assert_eq!((&own["authority"], &authority["authority"]), (&false.into(), &true.into()));
}

#[tokio::test]
async fn nothing_is_overwritten_and_mistakes_have_their_codes() {
    let kit = Pki::new().await;
    let dir = text(kit.dir());
    let files = kit.issue("a").await;
    let key = std::fs::read(kit.dir().join("ca.key")).unwrap();
    for (args, code, says) in [
        (&["init", "--dir", dir][..], 1, "never replaced"),
        (&["issue", "a", "--dir", dir], 1, "pki renew"),
        (&["issue", "b", "--dir", "/nonexistent"], 1, "pki init"),
        (&["issue", "b", "--dir", dir, "--out", "/proc/1/x"], 1, "cannot write"),
        (&["renew", "/nonexistent.pem", "--dir", dir], 1, "cannot read"),
        (&["show", "/nonexistent.pem"], 1, "cannot read"),
        (&["show", text(&files.key)], 1, "private keys are not shown"),
        (&["issue", "../b", "--dir", dir], 2, "cannot be a name"),
        (&["issue", "b", "--dir", dir, "--uri", "node-b"], 2, "not a URI"),
        (&["issue", "b", "--dir", dir, "--uri", "spiffe://B/x"], 2, "not a SPIFFE ID"),
        (&["issue", "b", "--dir", dir, "--lifetime", "10ms"], 2, "1 second to 100 years"),
        (&["init", "--dir", dir, "--name", "Example.org"], 2, "cannot be a trust domain"),
        (&["issue", "b"], 2, "--dir"),
    ] {
        let done = pki(args).await;
        assert_eq!(done.code, code, "{args:?}: {done:?}");
        assert!(done.stderr.contains(says), "{args:?}: {}", done.stderr);
    }
    assert_eq!(std::fs::read(kit.dir().join("ca.key")).unwrap(), key);
    assert!(!kit.dir().join("b.pem").exists() && !kit.dir().join("b.key").exists());
    // What can be shown is, when another file cannot.
    let part = pki(&["show", "/nonexistent.pem", text(&files.certificate)]).await;
    assert!(part.code == 1 && part.stdout.contains(&files.name), "{part:?}");
}

#[tokio::test]
async fn a_certificate_is_renewed_and_a_short_one_expires() {
    let kit = Pki::new().await;
    let files = kit.issue_with("a", &["--uri", "urn:example:a", "--days", "2"]).await;
    let before = shown(&[&files.certificate]).await.remove(0);
    kit.renew(&files, &["--lifetime", "12h"]).await;
    let after = shown(&[&files.certificate]).await.remove(0);
    assert_eq!((files.name.as_str(), &after["uris"]), ("urn:example:a", &before["uris"]));
    assert_ne!(after["fingerprint_sha256"], before["fingerprint_sha256"]);
    assert!(after["not_after"].as_str() < before["not_after"].as_str(), "{after:#} {before:#}");

    let told = pki(&["renew", text(&files.certificate), "--dir", text(kit.dir())]).await.ok();
    assert!(told.starts_with("urn:example:a, until ") && told.contains("replaced "), "{told}");

    let short = kit.issue_with("b", &["--lifetime", "1s"]).await;
    let expired = async || {
        let [facts] = &shown(&[&short.certificate]).await[..] else { panic!() };
        (facts["standing"] == "expired").then_some(())
    };
    eventually(Duration::from_secs(10), "it expires", expired).await;
}

#[tokio::test]
async fn other_programs_agree() {
    needs_program!("openssl");
    let kit = Pki::new().await;
    let files = kit.issue("a").await;
    let openssl = async |args: &[&str]| Start::new("openssl").args(args.iter().copied()).output().await;
    let (certificate, authorities) = (text(&files.certificate), text(&files.authorities));
    for purpose in ["sslserver", "sslclient"] {
        let args = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", authorities, certificate];
        openssl(&args).await.ok();
    }
    let names = openssl(&["x509", "-in", certificate, "-noout", "-ext", "subjectAltName"]).await.ok();
    assert_eq!(names.matches("URI:").count(), 1, "{names}");
    assert!(names.contains("URI:spiffe://kit.test/a"), "{names}");
    let print = openssl(&["x509", "-in", certificate, "-noout", "-fingerprint", "-sha256"]).await.ok();
    let facts = shown(&[&files.certificate]).await.remove(0);
    assert!(print.trim().ends_with(facts["fingerprint_sha256"].as_str().unwrap()), "{print} {facts:#}");
    let key = openssl(&["pkey", "-in", text(&files.key), "-noout", "-check"]).await;
    assert_eq!(key.code, 0, "{key:?}");
    // And what openssl makes is understood, with the key of an elliptic curve as it writes them.
    let (own, own_key) = (kit.dir().join("openssl.pem"), kit.dir().join("openssl.key"));
    let args = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-384",
        "-nodes",
        "-days",
        "3",
        "-subj",
        "/O=Example/CN=openssl",
        "-addext",
        "subjectAltName=URI:spiffe://example.org/x,DNS:x.example",
        "-keyout",
        text(&own_key),
        "-out",
        text(&own),
    ];
    assert_eq!(openssl(&args).await.code, 0);
    let facts = shown(&[&own]).await.remove(0);
    assert_eq!(facts["uris"], serde_json::json!(["spiffe://example.org/x"]));
    assert_eq!(
        (&facts["key_type"], &facts["subject"]),
        (&"ECDSA P-384".into(), &"O=Example, CN=openssl".into())
    );
}
