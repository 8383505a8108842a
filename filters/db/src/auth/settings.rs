//! `listeners.postgres.tls`, `server_tls` and `auth` in the configuration; the first two are those of `listeners.redis` as well.

use std::fmt;
use std::path::{Path, PathBuf};

use qudag_filter_api::{ConfigError, ConfigPath};
use qudag_filter_common::certificates;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls::{Within, check_authorities, private_key, server_config};
use super::userlist;

/// The certificate that clients see when they ask for TLS, or begin with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientTlsSettings {
    /// The certificate in PEM, and behind it those that lead to its authority. Read again when it changes.
    pub certificate: PathBuf,
    /// The private key in PEM. Read again when it changes.
    pub key: PathBuf,
}

/// How connections to the server are encrypted, as libpq's `sslmode` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServerTlsMode {
    /// Never.
    Disable,
    /// Where the server offers it. Who is between can see and change everything, as without it.
    #[default]
    Prefer,
    /// Always, with any certificate.
    Require,
    /// Always, with a certificate of an authority in `ca`.
    VerifyCa,
    /// Always, with a certificate of an authority that is made out for the server's name.
    VerifyFull,
}

/// TLS to the server. A Unix socket is never encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerTlsSettings {
    /// Whether, and what is verified.
    pub mode: ServerTlsMode,
    /// The certificate authorities in PEM, instead of the system's. Read again when the file changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// SCRAM-SHA-256, with channel binding over TLS; MD5 for users of whom only an MD5 hash is known.
    #[default]
    Scram,
    /// The password itself, which is refused without TLS unless the client is on this host.
    Password,
    /// Not at all: every client is who it says it is.
    Trust,
}

/// Who clients are, in pooled sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSettings {
    /// How clients prove who they are.
    pub method: Method,
    /// Users and their secrets, each line `"user" "secret"` as in PgBouncer's `auth_file`; a secret is a SCRAM verifier, an MD5 hash or a
    /// password. Read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<PathBuf>,
    /// Who may connect to the database `qudag_sidecar`, which shows pools, sessions and queues, and pauses them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub admins: Vec<String>,
    /// What is asked of the server for users that are not in the file: `$1` is the user, and the second column of the row its secret.
    pub query: String,
    /// Who asks it; without a user it is not asked. Its own secret, a password or an MD5 hash, is in the file, unless the server trusts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_user: Option<String>,
    /// In which database it is asked.
    pub query_database: String,
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            method: Method::Scram,
            users: None,
            admins: Vec::new(),
            query:
                "SELECT rolname, rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin \
                    AND (rolvaliduntil IS NULL OR rolvaliduntil > now())"
                    .to_owned(),
            query_user: None,
            query_database: "postgres".to_owned(),
        }
    }
}

impl ClientTlsSettings {
    /// Every problem of these settings. Reads the files.
    pub fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let in_file = |key: &str, file: &Path, why: &dyn fmt::Display| {
            at.key(key).error(format!("{}: {why}", file.display()))
        };
        let chain = certificates(&self.certificate).map_err(|why| {
            in_file("certificate", &self.certificate, &why)
                .hint("a file with the server's certificate in PEM")
        });
        let key = private_key(&self.key).map_err(|why| {
            in_file("key", &self.key, &why).hint("a file with the certificate's private key in PEM")
        });
        match (chain, key) {
            (Ok(chain), Ok(key)) => match server_config(Within::Postgres, chain, key) {
                Ok(_) => Vec::new(),
                Err(rustls::Error::InconsistentKeys(_)) => {
                    let why = format!("not the key of the certificate in {}", self.certificate.display());
                    vec![in_file("key", &self.key, &why).hint("the key that the certificate was made with")]
                }
                Err(why @ rustls::Error::InvalidCertificate(_)) => {
                    vec![in_file("certificate", &self.certificate, &why)]
                }
                Err(why) => vec![in_file("key", &self.key, &why)],
            },
            (chain, key) => chain.err().into_iter().chain(key.err()).collect(),
        }
    }
}

impl ServerTlsSettings {
    /// Every problem of these settings. Reads the file.
    pub fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let ca = at.key("ca");
        let error = match (self.mode, &self.ca) {
            (ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull, Some(file)) => {
                check_authorities(self.mode, file).err().map(|why| {
                    ca.error(format!("{}: {why}", file.display())).hint("a file with certificates in PEM")
                })
            }
            (ServerTlsMode::VerifyCa, None) => {
                let why = "any server with a certificate of any public authority would be believed";
                let error = at.key("mode").error(why);
                Some(error.hint("name the authority in `ca`, or choose verify_full"))
            }
            (ServerTlsMode::VerifyFull, None) => None,
            (_, Some(_)) => {
                let why = "nothing is verified in this mode";
                Some(ca.error(why).hint("`mode: verify_full`, or leave the key out"))
            }
            (_, None) => None,
        };
        error.into_iter().collect()
    }
}

impl AuthSettings {
    /// Whether anybody can be let in.
    pub fn knows_users(&self) -> bool {
        self.method == Method::Trust || self.users.is_some() || self.query_user.is_some()
    }

    /// Every problem of these settings. Reads the file. That clients have to prove themselves while nobody is known is for
    /// [`Users::open`](super::Users::open) to say, since it is a problem only where sessions are pooled.
    pub fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let users = self.users.as_ref().and_then(|file| match userlist::read(file) {
            Ok(users) => Some(users),
            Err(why) => {
                let hint = "lines such as \"ann\" \"SCRAM-SHA-256$4096:…\", as in PgBouncer's auth_file";
                errors.push(at.key("users").error(format!("{}: {why}", file.display())).hint(hint));
                None
            }
        });
        if let Some(name) = &self.query_user {
            let key = at.key("query_user");
            let stored = users.and_then(|users| users.get(name.as_bytes())).flatten();
            if name.is_empty() || name.contains('\0') {
                errors.push(key.error("no name of a user").hint("such as pgbouncer"));
            } else if stored.is_some_and(|stored| stored.identity().is_none()) {
                errors.push(
                    key.error("nobody can log in with a SCRAM verifier")
                        .hint("the user's password in the file of `users`"),
                );
            }
            if !self.query.contains("$1") {
                let hint = "such as SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1";
                errors.push(at.key("query").error("without $1 it cannot ask for a user").hint(hint));
            }
            if self.query_database.is_empty() || self.query_database.contains('\0') {
                errors.push(at.key("query_database").error("no name of a database").hint("such as postgres"));
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};
    use serde_json::{from_value, json};

    use super::*;

    fn places(errors: Vec<ConfigError>) -> Vec<String> {
        errors.into_iter().map(|error| error.at.to_string()).collect()
    }

    #[test]
    fn certificate_and_key_have_to_be_there_and_belong_together() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let [one, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let certificate =
            CertificateParams::new(vec!["db.example".to_owned()]).unwrap().self_signed(&one).unwrap();
        let (certificate, key) = (write("a.pem", &certificate.pem()), write("a.key", &one.serialize_pem()));
        let (other, junk) = (write("b.key", &other.serialize_pem()), write("c.pem", "sesame"));
        let wrong = |certificate: &Path, key: &Path| {
            let settings = ClientTlsSettings { certificate: certificate.to_owned(), key: key.to_owned() };
            let errors = settings.check(&ConfigPath::root());
            assert!(errors.iter().all(|error| !error.problem.contains("sesame")));
            places(errors)
        };
        assert_eq!(wrong(&certificate, &key), [""; 0]);
        assert_eq!(wrong(&certificate, &other), ["key"]);
        assert_eq!(wrong(&junk, &key), ["certificate"]);
        assert_eq!(wrong(&certificate, &junk), ["key"]);
        assert_eq!(wrong(folder.path(), Path::new("/nonexistent")), ["certificate", "key"]);
        assert_eq!(wrong(&key, &key), ["certificate"]);
    }

    #[test]
    fn authorities_go_with_the_modes_that_verify() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        let key = KeyPair::generate().unwrap();
        fs::write(&ca, CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap().pem()).unwrap();
        let wrong = |mode: &str, ca: Option<&Path>| {
            let settings: ServerTlsSettings = from_value(json!({ "mode": mode, "ca": ca })).unwrap();
            places(settings.check(&ConfigPath::root()))
        };
        for mode in ["disable", "prefer", "require"] {
            assert_eq!(wrong(mode, None), [""; 0]);
            assert_eq!(wrong(mode, Some(&ca)), ["ca"]);
        }
        for mode in ["verify_ca", "verify_full"] {
            assert_eq!(wrong(mode, Some(&ca)), [""; 0]);
            assert_eq!(wrong(mode, Some(Path::new("/dev/null"))), ["ca"]);
        }
        assert_eq!((wrong("verify_ca", None), wrong("verify_full", None)), (vec!["mode".to_owned()], vec![]));
        assert!(from_value::<ServerTlsSettings>(json!({ "mode": "verify-full" })).is_err());
        assert!(from_value::<ServerTlsSettings>(json!({ "cafile": "x" })).is_err());
    }

    #[test]
    fn users_are_a_list_and_who_asks_can_log_in() {
        let folder = tempfile::tempdir().unwrap();
        let users = folder.path().join("users");
        let verifier = "SCRAM-SHA-256$4096:AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        fs::write(&users, format!("\"ann\" \"sesame\"\n\"bob\" \"{verifier}\"\n")).unwrap();
        let wrong = |settings: serde_json::Value| {
            let settings: AuthSettings = from_value(settings).unwrap();
            places(settings.check(&ConfigPath::root()))
        };
        assert_eq!(wrong(json!({})), [""; 0]);
        assert_eq!(wrong(json!({ "users": users, "query_user": "ann" })), [""; 0]);
        assert_eq!(
            wrong(json!({ "users": users, "query_user": "carl" })),
            [""; 0],
            "the server may trust it"
        );
        assert_eq!(wrong(json!({ "users": users, "query_user": "bob" })), ["query_user"]);
        assert_eq!(
            wrong(json!({ "query_user": "", "query": "SELECT", "query_database": "" })),
            ["query_user", "query", "query_database"]
        );
        fs::write(&users, "ann sesame").unwrap();
        assert_eq!(wrong(json!({ "users": users })), ["users"]);
        assert_eq!(wrong(json!({ "users": "/nonexistent" })), ["users"]);
        assert!(from_value::<AuthSettings>(json!({ "method": "md5" })).is_err());
    }
}
