//! `pki …`: a small private certificate authority for the tunnels between sidecars.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use qudag_filter_api::Period;
use qudag_filter_peer::identity::pki::{self, Authority, CA_CERTIFICATE, CA_KEY, Issued, PkiError};
use qudag_filter_peer::identity::{Facts, PeerName, Standing};
use serde_json::{Value, json};

use super::args::Format;
use super::exit::{FAILED, Failure, USAGE};
use super::output::{self, Tone, cell, columns, plain};

const DAY: u64 = 86_400;

/// `pki …`
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make an authority: ca.pem for every sidecar, and ca.key for you alone
    Init {
        /// Where; the folder is made, and an authority that is there is never replaced
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The trust domain: certificates are issued for spiffe://NAME/… unless told otherwise
        #[arg(long, value_name = "NAME", default_value = "qudag")]
        name: String,
        /// How long it holds
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Issue a certificate for a sidecar: NAME.pem, NAME.key, and ca.pem beside them
    Issue {
        /// The sidecar's name, in its URI and in the names of its files
        name: String,
        /// The folder of the authority
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The URI that tells who the sidecar is [default: spiffe://TRUST-DOMAIN/NAME]
        #[arg(long, value_name = "URI")]
        uri: Option<PeerName>,
        /// How long it holds
        #[command(flatten)]
        lifetime: Lifetime,
        /// Where to write the files [default: the folder of the authority]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Replace a certificate and its key by new ones for the same URI; a sidecar that runs takes them at once
    Renew {
        /// The certificate; its key lies beside it and ends in .key
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The folder of the authority
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How long it holds
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Show what stands in certificates: subject, URIs, validity, kind of key, fingerprint
    Show {
        /// Files in PEM
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
}

/// How long a certificate holds.
#[derive(Clone, Copy, Debug, Default, Args)]
#[group(multiple = false)]
pub struct Lifetime {
    /// For this many days [default: 365 for a certificate, 3650 for an authority]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: Option<u32>,
    /// For a time with a unit, for short ones: 12h
    #[arg(long, value_name = "DURATION")]
    pub lifetime: Option<Period>,
}

impl Lifetime {
    fn or_days(self, days: u32) -> Duration {
        let by_days = Duration::from_secs(u64::from(self.days.unwrap_or(days)) * DAY);
        self.lifetime.map_or(by_days, |period| period.0)
    }
}

/// Does what `pki` was asked for.
///
/// # Errors
/// When a file is in the way, missing or wrong.
pub(super) fn run(command: PkiCommand, format: Format) -> Result<(), Failure> {
    let now = SystemTime::now();
    match command {
        PkiCommand::Init { dir, name, lifetime } => {
            let made = pki::init(&dir, &name, lifetime.or_days(3650), now)?;
            let (certificate, key) = (absolute(&dir.join(CA_CERTIFICATE)), absolute(&dir.join(CA_KEY)));
            match format.json {
                true => output::json(&json!({
                    "certificate": certificate, "key": key, "uri": made.uris.first(), "not_after": time(made.not_after),
                })),
                false => output::print(&format!(
                    "wrote {certificate}, the authority's certificate, for every sidecar\n\
                     wrote {key}, its private key, for you alone: no sidecar needs it\n\n\
                     Next:\n  qudag-sidecar pki issue node-a --dir {}\n",
                    word(&dir.display().to_string())
                )),
            }
        }
        PkiCommand::Issue { name, dir, uri, lifetime, out } => {
            let out = out.unwrap_or_else(|| dir.clone());
            let issued = Authority::open(&dir, now)?.issue(&name, uri, lifetime.or_days(365), &out, now)?;
            print_issued(&issued, format)
        }
        PkiCommand::Renew { file, dir, lifetime } => {
            let issued = Authority::open(&dir, now)?.renew(&file, lifetime.or_days(365), now)?;
            let (certificate, key) = (issued.certificate.display(), issued.key.display());
            match format.json {
                true => output::json(&as_issued(&issued)),
                false => output::print(&format!(
                    "{}, until {}\nreplaced {certificate} and {key}\n",
                    issued.name,
                    time(issued.not_after)
                )),
            }
        }
        PkiCommand::Show { files } => show(&files, format, now),
    }
}

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Self {
        let code = match error {
            PkiError::Name(_) | PkiError::Domain(_) | PkiError::Lifetime => USAGE,
            _ => FAILED,
        };
        let failure = Self::new(code, error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

fn print_issued(issued: &Issued, format: Format) -> Result<(), Failure> {
    if format.json {
        return output::json(&as_issued(issued));
    }
    let [certificate, key, authorities] =
        [&issued.certificate, &issued.key, &issued.authorities].map(|file| word(&absolute(file)));
    output::print(&format!(
        "{}, until {}\n\n\
         For its configuration:\n\n\
         listeners:\n  peer:\n    identity:\n      certificate: {certificate}\n      key: {key}\n      \
         authorities: {authorities}\n",
        issued.name,
        time(issued.not_after),
    ))
}

fn as_issued(issued: &Issued) -> Value {
    json!({
        "name": issued.name,
        "certificate": absolute(&issued.certificate),
        "key": absolute(&issued.key),
        "authorities": absolute(&issued.authorities),
        "not_after": time(issued.not_after),
    })
}

fn show(files: &[PathBuf], format: Format, now: SystemTime) -> Result<(), Failure> {
    let (mut shown, mut failure) = (Vec::new(), None);
    for file in files {
        match pki::show(file) {
            Ok(certificates) => shown.extend(certificates.into_iter().map(|facts| (file, facts))),
            Err(why) => failure = failure.or(Some(Failure::from(why))),
        }
    }
    if format.json {
        let all: Vec<_> = shown.iter().map(|(file, facts)| as_json(file, facts, now)).collect();
        output::json(&Value::Array(all))?;
    } else {
        let colour = output::colour_on_stdout();
        let blocks: Vec<_> = shown.iter().map(|(file, facts)| as_text(file, facts, now, colour)).collect();
        output::print(&blocks.join("\n"))?;
    }
    failure.map_or(Ok(()), Err)
}

fn as_json(file: &Path, facts: &Facts, now: SystemTime) -> Value {
    json!({
        "file": file.display().to_string(),
        "subject": facts.subject,
        "issuer": facts.issuer,
        "uris": facts.uris,
        "not_before": time(facts.not_before),
        "not_after": time(facts.not_after),
        "standing": facts.standing(now).label(),
        "key_type": facts.key_type,
        "fingerprint_sha256": facts.fingerprint_text(),
        "authority": facts.authority,
    })
}

fn as_text(file: &Path, facts: &Facts, now: SystemTime, colour: bool) -> String {
    let standing = facts.standing(now);
    let tone = match standing {
        Standing::Good => Tone::Good,
        Standing::Soon => Tone::Warn,
        Standing::NotYet | Standing::Expired => Tone::Bad,
    };
    let uris = match facts.name() {
        Ok(name) => plain(name.as_str()),
        Err(_) if facts.authority => plain(facts.uris.join(", ")),
        Err(why) => cell(why.to_string(), Tone::Bad),
    };
    let row = |key: &str, value| vec![plain(format!("  {key}")), value];
    let heading = cell(file.display().to_string(), Tone::Head).paint(colour);
    let rows = columns(
        vec![
            row("uri", uris),
            row("validity", cell(standing.label(), tone)),
            row("from", plain(time(facts.not_before))),
            row("until", plain(time(facts.not_after))),
            row("key", plain(&facts.key_type)),
            row("for", plain(if facts.authority { "issuing certificates" } else { "a sidecar" })),
            row("subject", plain(&facts.subject)),
            row("issuer", plain(&facts.issuer)),
            row("sha-256", plain(facts.fingerprint_text())),
        ],
        colour,
    );
    format!("{heading}\n{rows}")
}

/// A file's path from the root, as the configuration of a service needs it.
fn absolute(file: &Path) -> String {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned()).display().to_string()
}

/// A text as one word of YAML and of a shell.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => json!(text).to_string(),
    }
}

/// In whole seconds, as certificates have it.
fn time(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    at.map_or_else(|| seconds.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_it_needs_to_be() {
        assert_eq!(word("/etc/qudag-sidecar/node_a.pem"), "/etc/qudag-sidecar/node_a.pem");
        assert_eq!(word("/a b/#c: \"d\""), r#""/a b/#c: \"d\"""#);
        assert_eq!(word(""), r#""""#);
    }

    #[test]
    fn times_are_whole_seconds() {
        assert_eq!(time(UNIX_EPOCH + Duration::from_millis(86_400_999)), "1970-01-02T00:00:00Z");
    }
}
