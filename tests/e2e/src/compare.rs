//! The same questions, asked directly and through the sidecar, with what may differ taken out by name.

use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
use qudag_kit::http::{Client, Reply};
use qudag_kit::rpc::{self, Server};
use serde_json::{Value, json};

/// What names are asked for.
pub const QUESTIONS: &[(&str, RecordType)] = &[
    ("a.test.", RecordType::A),
    ("A.Test.", RecordType::A),
    ("a.test.", RecordType::AAAA),
    ("two.test.", RecordType::A),
    ("six.test.", RecordType::AAAA),
    ("mail.test.", RecordType::MX),
    ("text.test.", RecordType::TXT),
    ("none.test.", RecordType::A),
    ("test.", RecordType::SOA),
];

/// The answers of a name server to all [`QUESTIONS`], by UDP and TCP, without ids and TTLs.
pub async fn dns_answers(server: std::net::SocketAddr) -> Vec<(String, Vec<u8>)> {
    let mut answers = Vec::new();
    for (name, record_type) in QUESTIONS {
        let question = dns::question(name, *record_type).to_vec().unwrap();
        let udp = dns::exchange_udp(server, &question).await.unwrap();
        let tcp = dns::exchange_tcp(server, &question).await.unwrap();
        answers.push((format!("{name} {record_type} by UDP"), dns::normalised(&udp)));
        answers.push((format!("{name} {record_type} by TCP"), dns::normalised(&tcp)));
    }
    answers
}

/// What is asked over HTTP: method, path, body.
pub const REQUESTS: &[(&str, &str, &str)] = &[
    ("GET", "/health", ""),
    ("GET", "/api/v1/status", ""),
    ("GET", "/metrics", ""),
    ("GET", "/mcp/tools", ""),
    ("GET", "/nothing/here?x=1", ""),
    ("GET", "/large", ""),
    ("POST", "/mcp/rpc", r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#),
];

/// A reply as far as it must be equal: status, content type, body.
pub type Essence = (u16, String, Vec<u8>);

/// The replies to all [`REQUESTS`] over one connection that is kept, opened again only when the server closed it.
pub async fn http_replies(client: &mut Client) -> Vec<(String, Essence)> {
    let mut replies = Vec::new();
    for (method, path, body) in REQUESTS {
        let reply = if *method == "GET" { client.get(path).await } else { client.post(path, body).await };
        replies.push((format!("{method} {path}"), essence(&reply.unwrap())));
    }
    replies
}

/// What must be equal in two replies.
pub fn essence(reply: &Reply) -> Essence {
    let kind = reply.headers.get("content-type").map(|value| value.to_str().unwrap().to_owned());
    (reply.status.as_u16(), kind.unwrap_or_default(), reply.body.to_vec())
}

/// The replies of the node without the sidecar, each on a connection of its own: what the node writes after a body would be
/// read as the next reply.
pub async fn http_replies_direct(server: std::net::SocketAddr) -> Vec<(String, Essence)> {
    let mut replies = Vec::new();
    for (method, path, body) in REQUESTS {
        let mut client = Client::http1(server).await.unwrap();
        let reply = if *method == "GET" { client.get(path).await } else { client.post(path, body).await };
        replies.push((format!("{method} {path}"), essence(&reply.unwrap())));
    }
    replies
}

/// What is called over RPC.
pub const CALLS: &[&str] =
    &["get_status", "list_peers", "get_network_stats", "get_peer_info", "no_such_method"];

/// The replies to all [`CALLS`], without what changes from one second to the next.
pub async fn rpc_replies(server: &Server) -> Vec<(String, Value)> {
    let mut replies = Vec::new();
    for method in CALLS {
        let mut reply = rpc::call(server, method, json!({})).await.unwrap();
        reply["id"] = Value::Null;
        if let Some(uptime) = reply.pointer_mut("/result/uptime") {
            *uptime = Value::Null;
        }
        replies.push(((*method).to_owned(), reply));
    }
    replies
}
