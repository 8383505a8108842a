//! What the admin API must refuse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::time::Duration;

use qudag_kit::program::Start;
use qudag_kit::{TestSidecar, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const YAML: &str =
    "filters:\n  dns:\n    dns_cache: { enabled: true }\nlisteners:\n  dns: { bind: \"127.0.0.1:0\" }\n";

/// Sends bytes as they are; the status of the answer, or 0 when the connection ends without one.
async fn raw(server: SocketAddr, request: &[u8]) -> (u16, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let mut answer = Vec::new();
        // The server may have had enough before everything is sent.
        let _ = stream.write_all(request).await;
        let mut piece = [0; 4096];
        while let Ok(length) = stream.read(&mut piece).await
            && length > 0
        {
            answer.extend_from_slice(&piece[..length]);
            if answer.windows(4).any(|four| four == b"\r\n\r\n") {
                break;
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = within(Duration::from_secs(30), "an answer", exchange).await;
    let status = answer.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, answer)
}

struct Abuse {
    what: &'static str,
    request: String,
    statuses: &'static [u16],
}

fn abuse(what: &'static str, request: String, statuses: &'static [u16]) -> Abuse {
    Abuse { what, request, statuses }
}

/// A well-formed request, with what is abusive about it given by its parts.
fn post(path: &str, host: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn matrix(addr: SocketAddr, token: &str) -> Vec<Abuse> {
    let host = addr.to_string();
    let auth = format!("Authorization: Bearer {token}\r\n");
    let json = "Content-Type: application/json\r\n";
    let fine = format!("{auth}{json}");
    let mut all = Vec::new();
    let changes = [
        "/reload",
        "/bypass",
        "/cache/flush",
        "/cache/rebuild",
        "/filters/dns.dns_cache/disable",
        "/filters/dns.dns_cache/enable",
        "/filters/dns.dns_cache/reset",
        "/dns/lookup",
        "/db/pause",
        "/db/resume",
        "/db/cache/flush",
        "/settings",
        "/settings/reset",
        "/drain",
    ];
    for path in changes {
        all.push(abuse("no token", post(path, &host, json, "{}"), &[401]));
        let wrong = format!("Authorization: Bearer {token}x\r\n{json}");
        all.push(abuse("wrong token", post(path, &host, &wrong, "{}"), &[401]));
        let cut = format!("Authorization: Bearer {}\r\n{json}", &token[..token.len() - 1]);
        all.push(abuse("cut token", post(path, &host, &cut, "{}"), &[401]));
        let basic = format!("Authorization: Basic {token}\r\n{json}");
        all.push(abuse("wrong scheme", post(path, &host, &basic, "{}"), &[401]));
        let twice = format!("{auth}{fine}");
        all.push(abuse("two tokens", post(path, &host, &twice, "{}"), &[400, 401]));
        for name in ["evil.example", "localhost.evil.example", "127.0.0.1", "127.0.0.1:1", "10.0.0.1:80", ""]
        {
            all.push(abuse("wrong Host", post(path, name, &fine, "{}"), &[400, 403]));
        }
        let two_hosts = format!("Host: evil.example\r\n{fine}");
        all.push(abuse("two Hosts", post(path, &host, &two_hosts, "{}"), &[400]));
        for origin in ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", "file://"] {
            let headers = format!("Origin: {origin}\r\n{fine}");
            all.push(abuse("wrong Origin", post(path, &host, &headers, "{}"), &[403]));
        }
        for site in ["cross-site", "same-site"] {
            let headers = format!("Sec-Fetch-Site: {site}\r\n{fine}");
            all.push(abuse("wrong site", post(path, &host, &headers, "{}"), &[403]));
        }
        for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"] {
            // These may be read, too.
            if (path == "/bypass" || path == "/settings") && (method == "GET" || method == "HEAD") {
                continue;
            }
            let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n");
            all.push(abuse("wrong method", request, &[405, 404, 400]));
        }
        for kind in [
            "",
            "Content-Type: text/plain\r\n",
            "Content-Type: application/x-www-form-urlencoded\r\n",
            "Content-Type: multipart/form-data; boundary=x\r\n",
            "Content-Type: text/plain; application/json\r\n",
            "Content-Type: application/jsonx\r\n",
            "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
        ] {
            let headers = format!("{auth}{kind}");
            all.push(abuse("wrong content type", post(path, &host, &headers, "{}"), &[415]));
        }
        for body in ["{\"no_such_key\": 1}", "[1]", "{", "\u{0}", "{}{}", "{\"on\": \"yes\", \"x\": 2}"] {
            all.push(abuse("wrong body", post(path, &host, &fine, body), &[400]));
        }
        let large = format!("{{\"on\": \"{}\"}}", "x".repeat(70_000));
        all.push(abuse("oversized body", post(path, &host, &fine, &large), &[413]));
        let endless =
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{fine}Content-Length: 99999999999\r\n\r\n");
        all.push(abuse("announced oversized body", endless, &[413]));
        let query = format!("{path}?on=true");
        all.push(abuse("a query", post(&query, &host, &fine, "{}"), &[400]));
        for odd in [format!("{path}/"), format!("/{path}"), format!("{path}%2f"), format!("/x/..{path}")] {
            all.push(abuse("another path", post(&odd, &host, &fine, "{}"), &[404]));
        }
        let upper = path.to_uppercase();
        all.push(abuse("upper case path", post(&upper, &host, &fine, "{}"), &[404]));
        let absolute = format!("http://{host}{path}");
        all.push(abuse("absolute form", post(&absolute, &host, &fine, "{}"), &[404, 400]));
    }
    for path in [
        "/status",
        "/config",
        "/filters",
        "/flags/dns.dns_cache",
        "/cache",
        "/bypass",
        "/version",
        "/dns/servers",
        "/peers",
        "/db",
        "/db/cache",
        "/settings",
        "/tap/dns",
    ] {
        let bare = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        all.push(abuse("reading without a token", bare, &[401]));
        let with_body = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Length: 2\r\n\r\n{{}}");
        all.push(abuse("GET with a body", with_body, &[400]));
    }
    for (path, statuses) in [
        ("/tap/dns?name=%61", &[400][..]),
        ("/tap/dns?name=a;b", &[400]),
        ("/tap/dns?x=y", &[400]),
        ("/tap/dns?client=evil.example", &[400]),
        ("/tap/nothing", &[404]),
        ("/tap/../status", &[404]),
        ("/tap/dns/../../status", &[404]),
        ("/status?name=a", &[400]),
        ("/tap?name=a", &[400, 404]),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n");
        all.push(abuse("a tap of what there is not", request, statuses));
    }
    for path in [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/static/../status",
        "/%2e%2e/etc/passwd",
        "/filters/../status",
        "/filters/..%2f..%2fetc/disable",
        "/flags/%00",
        "//evil.example/status",
        "/status\\..\\x",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n");
        all.push(abuse("traversal", request, &[400, 404]));
    }
    let names = ["nothing", "dns.nothing", "nothing.dns_cache", "dns.dns_cache.x", "a".repeat(5000).leak()];
    for name in names {
        let path = format!("/filters/{name}/disable");
        all.push(abuse("unknown filter", post(&path, &host, &fine, "{}"), &[404, 400]));
    }
    let heads = [
        ("long header", format!("GET /status HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "y".repeat(40_000))),
        ("many headers", format!("GET /status HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "X: y\r\n".repeat(4_000))),
        ("long path", format!("GET /{} HTTP/1.1\r\nHost: {host}\r\n\r\n", "z".repeat(40_000))),
    ];
    for (what, request) in heads {
        all.push(abuse(what, request, &[400, 414, 431]));
    }
    let both = format!(
        "POST /bypass HTTP/1.1\r\nHost: {host}\r\n{fine}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{{}}"
    );
    // Hyper follows the chunks, and these are none.
    all.push(abuse("two lengths", both, &[400, 0]));
    all.push(abuse(
        "two lengths",
        post("/bypass", &host, &format!("{fine}Content-Length: 9\r\n"), "{}"),
        &[400],
    ));
    all.push(abuse(
        "no Host",
        format!("POST /bypass HTTP/1.1\r\n{fine}Content-Length: 2\r\n\r\n{{}}"),
        &[400],
    ));
    all.push(abuse("no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), &[400, 0]));
    all.push(abuse("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), &[400, 505, 0]));
    all
}

#[tokio::test]
async fn the_abuse_matrix_is_refused_throughout() {
    let sidecar = TestSidecar::start(YAML).await;
    let before = sidecar.status().await;
    let matrix = matrix(sidecar.admin_addr(), sidecar.token());
    for Abuse { what, request, statuses } in &matrix {
        let (status, answer) = raw(sidecar.admin_addr(), request.as_bytes()).await;
        let start: String = request.chars().take(300).collect();
        assert!(statuses.contains(&status), "{what}: {status} to\n{start}\n{answer}");
    }
    println!("{} abusive requests refused", matrix.len());
    let after = sidecar.status().await;
    for key in ["generation", "bypass", "draining", "filters", "listeners"] {
        assert_eq!(after[key], before[key], "{key} changed");
    }
    assert!(sidecar.metric("qudag_sidecar_admin_requests_total", &[("code", "401")]).await > 0.0);
}

#[tokio::test]
async fn refused_changes_are_in_the_audit_log_without_the_token() {
    let sidecar = TestSidecar::start(YAML).await;
    let host = sidecar.admin_addr().to_string();
    raw(sidecar.admin_addr(), post("/drain", &host, "Content-Type: application/json\r\n", "{}").as_bytes())
        .await;
    sidecar.toggle("dns.dns_cache", false).await;
    let audited = async || {
        let log = sidecar.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("audit")).collect();
        let refused = lines.iter().any(|line| line.contains("refused") && line.contains("/drain"));
        let accepted =
            lines.iter().any(|line| line.contains("accepted") && line.contains("dns_cache/disable"));
        (refused && accepted).then_some(())
    };
    qudag_kit::eventually(Duration::from_secs(10), "both are audited", audited).await;
    assert!(!sidecar.log().contains(sidecar.token()), "the token is in the log");
}

#[tokio::test]
async fn probes_and_metrics_need_no_token_on_loopback() {
    let sidecar = TestSidecar::start(YAML).await;
    let host = sidecar.admin_addr();
    for path in ["/healthz", "/readyz", "/metrics"] {
        let (status, _) = raw(host, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        assert_eq!(status, 200, "{path}");
        let (status, _) =
            raw(host, format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n").as_bytes()).await;
        assert_eq!(status, 403, "{path} under another name");
    }
}

#[tokio::test]
async fn slow_clients_are_cut_off_and_others_served_meanwhile() {
    let sidecar = TestSidecar::start(YAML).await;
    let host = sidecar.admin_addr();
    let mut slow = Vec::new();
    // More than the server lets be open at once.
    for _ in 0..150 {
        let Ok(mut stream) = TcpStream::connect(host).await else { continue };
        let _ = stream.write_all(format!("GET /status HTTP/1.1\r\nHost: {host}\r\nX-").as_bytes()).await;
        slow.push(stream);
    }
    within(Duration::from_secs(5), "an answer in between", sidecar.status()).await;
    let all_cut = async {
        for stream in &mut slow {
            // Until the server has had enough; 408 or nothing comes first.
            while stream.read(&mut [0; 256]).await.unwrap_or(0) > 0 {}
        }
    };
    within(Duration::from_secs(40), "slow clients are cut off", all_cut).await;
    sidecar.status().await;
}

#[tokio::test]
async fn a_slow_body_is_cut_off() {
    let sidecar = TestSidecar::start(YAML).await;
    let host = sidecar.admin_addr();
    let head = format!(
        "POST /bypass HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nContent-Type: \
         application/json\r\nContent-Length: 100\r\n\r\n{{",
        sidecar.token()
    );
    let (status, _) = raw(host, head.as_bytes()).await;
    assert!([408, 0].contains(&status), "{status}");
    assert_eq!(sidecar.status().await["bypass"], false);
}

#[tokio::test]
async fn a_unix_socket_admits_its_own_user_only() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let config = dir.path().join("sidecar.yaml");
    let yaml = format!("version: 1\nadmin: {{ bind: \"unix:{}\" }}\n{YAML}", socket.display());
    std::fs::write(&config, yaml).unwrap();
    let run = Start::new(TestSidecar::binary()).arg("run").arg("--config").arg(&config);
    let mut sidecar = run.arg("--state-dir").arg(dir.path().join("state")).spawn(dir.path());
    let get = |user: Option<&'static str>| {
        let mut curl =
            Start::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket"]);
        curl = curl.arg(&socket).arg("http://localhost/status");
        if let Some(user) = user { curl.as_user(user) } else { curl }.output()
    };
    let ready = async || {
        assert!(sidecar.ended().is_none(), "the sidecar ended");
        (get(None).await.stdout == "200").then_some(())
    };
    qudag_kit::eventually(Duration::from_secs(20), "the socket answers its own user", ready).await;
    if qudag_kit::program::is_root() {
        // Let somebody else past the file's mode: the kernel's word on who is there must be enough.
        for path in [dir.path(), socket.as_path()] {
            Start::new("chmod").arg("a+rwx").arg(path).output().await.ok();
        }
        assert_eq!(get(Some("daemon")).await.stdout, "403");
    }
}
