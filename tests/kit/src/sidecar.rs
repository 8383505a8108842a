//! The real sidecar program.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::Client;
use crate::netns::Namespace;
use crate::program::{Finished, Program, Start};
use crate::wait::PATIENCE;

/// What a sidecar is started with.
#[derive(Default)]
pub struct Setup<'a> {
    /// Its configuration. `version` and an `admin` section on a free port are added where they are missing.
    pub yaml: &'a str,
    /// The namespace to run in.
    pub namespace: Option<&'a Namespace>,
    /// Environment variables.
    pub env: &'a [(&'a str, &'a str)],
}

/// A running sidecar with a state directory and a configuration file of its own; killed on drop.
pub struct TestSidecar {
    program: Program,
    dir: TempDir,
    namespace: Option<String>,
    env: Vec<(String, String)>,
    admin: SocketAddr,
    token: String,
}

/// An answer of the admin API.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body: JSON, or a string where it is something else.
    pub body: Value,
}

impl Answer {
    /// The body of a success.
    ///
    /// # Panics
    /// When it is a refusal.
    pub fn ok(self) -> Value {
        assert!(self.status.is_success(), "{}: {}", self.status, self.body);
        self.body
    }
}

impl TestSidecar {
    /// Starts a sidecar and waits until it is ready.
    pub async fn start(yaml: &str) -> Self {
        Self::with(Setup { yaml, ..Setup::default() }).await
    }

    /// Starts a sidecar and waits until it is ready.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn with(setup: Setup<'_>) -> Self {
        let dir = tempfile::Builder::new().prefix("qk").tempdir().unwrap();
        write_config(&dir.path().join("sidecar.yaml"), setup.yaml);
        let namespace = setup.namespace.map(|namespace| namespace.name().to_owned());
        let env: Vec<_> =
            setup.env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut program = spawn(dir.path(), setup.namespace, &env);
        let (admin, token) = announced(&mut program, dir.path()).await;
        Self { program, dir, namespace, env, admin, token }
    }

    /// Runs a sidecar that is expected not to start, to its end.
    pub async fn refused(yaml: &str) -> Finished {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("sidecar.yaml");
        write_config(&config, yaml);
        run_command(dir.path()).output().await
    }

    /// The program file: `$QUDAG_SIDECAR_BIN`, or `qudag-sidecar` in the build folder that the running test is in.
    ///
    /// # Panics
    /// When there is none.
    pub fn binary() -> PathBuf {
        if let Some(path) = std::env::var_os("QUDAG_SIDECAR_BIN") {
            return path.into();
        }
        let test = std::env::current_exe().unwrap();
        let found = test.ancestors().map(|dir| dir.join("qudag-sidecar")).find(|path| path.is_file());
        found.unwrap_or_else(|| panic!("no qudag-sidecar beside {}; build it first", test.display()))
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("sidecar.yaml")
    }

    /// Its private folder, which holds the configuration file and the state directory `state`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Where its admin API listens.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// The token of its admin API.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// `qudag-sidecar ARGS --state-dir …`.
    pub fn command(&self, args: &[&str]) -> Start {
        let mut start = Start::new(Self::binary()).args(args.iter().copied());
        start = start.arg("--state-dir").arg(self.dir.path().join("state"));
        if let Some(namespace) = &self.namespace {
            start = start.in_namespace_named(namespace);
        }
        start
    }

    /// Runs `qudag-sidecar ARGS --state-dir …` to its end.
    pub async fn cli(&self, args: &[&str]) -> Finished {
        self.command(args).output().await
    }

    /// Runs `qudag-sidecar ARGS --json --state-dir …`, which must succeed, and returns what it printed.
    ///
    /// # Panics
    /// When it fails or prints something else than JSON.
    pub async fn cli_json(&self, args: &[&str]) -> Value {
        let printed = self.cli(&[args, &["--json"]].concat()).await.ok();
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// A request to the admin API. The body is sent as JSON, unless it is null.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn admin(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) = match &self.namespace {
            None => self.admin_here(method, path, body).await,
            Some(namespace) => self.admin_inside(namespace, method, path, body).await,
        };
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status, body }
    }

    async fn admin_here(&self, method: &str, path: &str, body: String) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        if method == "POST" {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::from(Bytes::from(body))).unwrap();
        let reply = Client::http1(self.admin).await.unwrap().request(request).await.unwrap();
        (reply.status, reply.text())
    }

    async fn admin_inside(
        &self,
        namespace: &str,
        method: &str,
        path: &str,
        body: String,
    ) -> (StatusCode, String) {
        let mut curl = Start::new("curl").in_namespace_named(namespace).args(["-s", "-w", "\n%{http_code}"]);
        curl = curl.args(["-X", method, "-H", &format!("Authorization: Bearer {}", self.token)]);
        if method == "POST" {
            curl = curl.args(["-H", "Content-Type: application/json", "--data-binary", &body]);
        }
        let printed = curl.arg(format!("http://{}{path}", self.admin)).output().await.ok();
        let (text, code) = printed.rsplit_once('\n').unwrap();
        (code.parse().unwrap(), text.to_owned())
    }

    /// A POST to the admin API that must be accepted.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.admin("POST", path, body).await.ok()
    }

    /// GET `/status`.
    pub async fn status(&self) -> Value {
        self.admin("GET", "/status", Value::Null).await.ok()
    }

    /// The number of the generation in force.
    pub async fn generation(&self) -> u64 {
        self.status().await["generation"].as_u64().unwrap()
    }

    /// Where the first listener of a kind really listens.
    pub async fn listener(&self, kind: &str) -> SocketAddr {
        self.find_listener(kind, |_| true).await
    }

    /// Where a listener of a kind with a name really listens.
    pub async fn listener_named(&self, kind: &str, name: &str) -> SocketAddr {
        self.find_listener(kind, |found| found == name).await
    }

    async fn find_listener(&self, kind: &str, wanted: impl Fn(&str) -> bool) -> SocketAddr {
        let status = self.status().await;
        let listeners = status["listeners"].as_array().unwrap();
        let found = listeners.iter().find(|listener| {
            listener["kind"] == kind && wanted(listener["name"].as_str().unwrap_or_default())
        });
        let addr = found.and_then(|listener| listener["addr"].as_str()?.parse().ok());
        addr.unwrap_or_else(|| panic!("no such {kind} listener in {listeners:#?}"))
    }

    /// The entry of a filter in `status`.
    pub async fn filter(&self, kind: &str, name: &str) -> Value {
        let status = self.status().await;
        let filters = status["filters"].as_array().unwrap();
        let found = filters.iter().find(|filter| filter["kind"] == kind && filter["name"] == name);
        found.unwrap_or_else(|| panic!("no filter {kind}.{name} in {filters:#?}")).clone()
    }

    /// Switches a filter, by its full name, for good.
    pub async fn toggle(&self, name: &str, on: bool) -> Value {
        let verb = if on { "enable" } else { "disable" };
        self.post(&format!("/filters/{name}/{verb}"), Value::Null).await
    }

    /// Replaces the configuration file by renaming another one over it. Nothing else is done.
    pub fn write_config(&self, yaml: &str) {
        write_config(&self.config(), yaml);
    }

    /// Replaces the configuration file and reloads it.
    pub async fn reload_with(&self, yaml: &str) -> Answer {
        self.write_config(yaml);
        self.admin("POST", "/reload", Value::Null).await
    }

    /// The sum of the series of a metric whose labels include `labels`; 0 if there are none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.admin("GET", "/metrics", Value::Null).await.ok();
        sum(text.as_str().unwrap_or_default(), name, labels)
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Starts it again, after it ended, with the same configuration file and state directory.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_again(&mut self) {
        self.program.kill();
        let mut start = run_command(self.dir.path());
        if let Some(namespace) = &self.namespace {
            start = start.in_namespace_named(namespace);
        }
        for (key, value) in &self.env {
            start = start.env(key, value);
        }
        self.program = start.spawn(self.dir.path());
        (self.admin, self.token) = announced(&mut self.program, self.dir.path()).await;
    }

    /// Tells it to stop (SIGTERM) and waits for its end; how it ended, and how long that took.
    ///
    /// # Panics
    /// When it goes on for longer than `deadline`.
    pub async fn stop(&mut self, deadline: Duration) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.program.signal(Signal::TERM);
        (self.program.wait_for_end(deadline).await, start.elapsed())
    }
}

/// Under coverage the sidecar is asked to end, because a killed program writes no profile.
impl Drop for TestSidecar {
    fn drop(&mut self) {
        if std::env::var_os("LLVM_PROFILE_FILE").is_none() || self.program.ended().is_some() {
            return;
        }
        // Twice: the second one drops what is under way.
        for _ in 0..2 {
            self.program.signal(Signal::TERM);
            let asked = Instant::now();
            while self.program.ended().is_none() && asked.elapsed() < Duration::from_secs(1) {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            if self.program.ended().is_some() {
                return;
            }
        }
    }
}

/// The whole configuration text that [`TestSidecar`] makes of `yaml`.
pub fn complete(yaml: &str) -> String {
    let has = |key: &str| yaml.lines().any(|line| line.starts_with(key));
    let mut text = String::new();
    if !has("version:") {
        text.push_str("version: 1\n");
    }
    text.push_str(yaml.trim_start_matches('\n'));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    if !has("admin:") {
        text.push_str("admin: { bind: \"127.0.0.1:0\" }\n");
    }
    text
}

fn write_config(file: &Path, yaml: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, complete(yaml)).unwrap();
    std::fs::rename(&new, file).unwrap();
}

fn run_command(dir: &Path) -> Start {
    let start = Start::new(TestSidecar::binary()).named("sidecar").arg("run");
    start.arg("--config").arg(dir.join("sidecar.yaml")).arg("--state-dir").arg(dir.join("state"))
}

fn spawn(dir: &Path, namespace: Option<&Namespace>, env: &[(String, String)]) -> Program {
    let mut start = run_command(dir).in_namespace(namespace);
    for (key, value) in env {
        start = start.env(key, value);
    }
    start.spawn(dir)
}

/// Waits for the file in which a sidecar says where its admin API is; it appears when everything listens.
async fn announced(program: &mut Program, dir: &Path) -> (SocketAddr, String) {
    crate::eventually(PATIENCE, "the sidecar is ready", async || {
        if let Some(status) = program.ended() {
            panic!("the sidecar ended: {status}\n{}", program.log());
        }
        let instances = std::fs::read_dir(dir.join("state")).ok()?.flatten();
        let mut instances = instances.filter_map(|entry| {
            let text = std::fs::read(entry.path().join("instance.json")).ok()?;
            serde_json::from_slice::<Value>(&text).ok()
        });
        let instance = instances.find(|instance| instance["pid"] == program.pid())?;
        let admin = instance["admin"].as_str()?.parse().ok()?;
        let token = instance["token_file"].as_str().map(std::fs::read_to_string);
        let token = token.transpose().ok()?.unwrap_or_default();
        Some((admin, token.trim().to_owned()))
    })
    .await
}

/// The sum of the series of a metric in Prometheus text.
fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (series, value) = rest.rsplit_once(' ')?;
        let complete = series.is_empty() || (series.starts_with('{') && series.ends_with('}'));
        let matches = labels.iter().all(|(key, value)| series.contains(&format!("{key}=\"{value}\"")));
        (complete && matches).then(|| value.parse::<f64>().ok())?
    });
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_added_up() {
        let text = "# TYPE a counter\na{kind=\"dns\",x=\"1\"} 2\na{kind=\"dns\",x=\"2\"} 3\na{kind=\"rpc\"} 7\nab 9\na 1\n";
        assert_eq!(sum(text, "a", &[("kind", "dns")]), 5.0);
        assert_eq!(sum(text, "a", &[]), 13.0);
        assert_eq!(sum(text, "none", &[]), 0.0);
    }

    #[test]
    fn what_is_missing_is_added() {
        let text = complete("\nnode: { name: a }");
        assert_eq!(text, "version: 1\nnode: { name: a }\nadmin: { bind: \"127.0.0.1:0\" }\n");
        assert_eq!(complete(&text), text);
    }
}
