//! A sidecar with nothing but DNS, servers that misbehave on request, and a client that knows DNS from another library.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use qudag_filter_api::{Address, Chain, ChainSpec, Chains, Env, Lease, Svc};
use qudag_filter_common::testing::{self, Names};
use qudag_filter_common::{Drain, ListenerSpec};
use qudag_filter_dns::{Dns, DnsFilters, DnsListener, DnsSettings, DnsStates, ServerStatus, UpstreamState};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(10);

/// What a server does with a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Does {
    /// Answers with so many addresses.
    Answer(u8),
    /// Says that the name does not exist, with an SOA record.
    NxDomain,
    /// Answers with an error.
    Code(ResponseCode),
    /// Says nothing.
    Nothing,
    /// Says nothing the first time and then answers.
    NothingOnce,
    /// Answers another query.
    WrongId,
    /// Answers another question.
    WrongName,
    /// Answers over TCP only, with so many addresses.
    Truncated(u8),
    /// Truncates over TCP as well.
    TruncatedAlways,
    /// Answers late.
    Late(Duration),
    /// Answers so many of a hundred queries over UDP.
    Lossy(u8),
    /// Answers with the name in lower case, over UDP.
    LowerCase,
    /// Sends a forged answer, with another address, before its own.
    Forged,
    /// Answers for a while and then is silent for as long, again and again.
    Flapping(Duration),
    /// Closes the connection in the middle of the reply; over UDP the reply is truncated.
    HalfReply,
}

/// A DNS server on loopback, UDP and TCP on one port.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    shared: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

pub(crate) struct Seen {
    pub(crate) does: Does,
    pub(crate) start: Instant,
    pub(crate) udp: Vec<Message>,
    pub(crate) tcp: Vec<Message>,
    pub(crate) connections: usize,
    /// Of these, how many are open.
    pub(crate) open: usize,
}

impl Seen {
    pub(crate) fn new(does: Does) -> Arc<Mutex<Self>> {
        let start = Instant::now();
        Arc::new(Mutex::new(Self { does, start, udp: Vec::new(), tcp: Vec::new(), connections: 0, open: 0 }))
    }

    /// What is to be done with the next query.
    fn next(&mut self) -> Does {
        match self.does {
            Does::NothingOnce => {
                self.does = Does::Answer(1);
                Does::NothingOnce
            }
            Does::Flapping(time) if (self.start.elapsed().as_millis() / time.as_millis()) % 2 == 1 => {
                Does::Nothing
            }
            Does::Flapping(_) => Does::Answer(1),
            Does::Lossy(answers) => {
                // The same at each run, and without a pattern.
                let mut share = (self.udp.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                share = (share ^ (share >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                share = (share ^ (share >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                let lost = (share ^ (share >> 31)) % 100 >= answers.into();
                if lost { Does::Nothing } else { Does::Answer(1) }
            }
            does => does,
        }
    }
}

impl Server {
    pub(crate) async fn start(does: Does) -> Self {
        Self::on("127.0.0.1", does).await
    }

    pub(crate) async fn on(ip: &str, does: Does) -> Self {
        let ip: IpAddr = ip.parse().unwrap();
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((ip, 0)).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (Arc::new(udp), tcp);
            }
        };
        let addr = udp.local_addr().unwrap();
        let shared = Seen::new(does);
        let mut tasks = JoinSet::new();
        let state = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut buffer = vec![0; 4096];
            let mut replies = JoinSet::new();
            loop {
                let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let does = {
                    let mut seen = state.lock().unwrap();
                    seen.udp.push(query.clone());
                    seen.next()
                };
                let udp = Arc::clone(&udp);
                replies.spawn(async move {
                    if let Does::Late(by) = does {
                        tokio::time::sleep(by).await;
                    }
                    if does == Does::Forged {
                        let mut forged = reply(&query, Does::Answer(9), false).unwrap();
                        forged[0] ^= 0x55;
                        let _ = udp.send_to(&forged, client).await;
                    }
                    if let Some(reply) = reply(&query, does, false) {
                        let _ = udp.send_to(&reply, client).await;
                    }
                });
                while replies.try_join_next().is_some() {}
            }
        });
        let state = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = tcp.accept().await.unwrap();
                connections.spawn(serve_stream(stream, Arc::clone(&state)));
            }
        });
        Self { addr, shared, _tasks: tasks }
    }

    pub(crate) fn now(&self, does: Does) {
        self.shared.lock().unwrap().does = does;
    }

    /// How many queries came over UDP and TCP.
    pub(crate) fn asked(&self) -> (usize, usize) {
        let seen = self.shared.lock().unwrap();
        (seen.udp.len(), seen.tcp.len())
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.shared.lock().unwrap().connections
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.shared.lock().unwrap().open
    }

    /// The names asked for over UDP, as they came.
    pub(crate) fn names(&self) -> Vec<String> {
        let seen = self.shared.lock().unwrap();
        seen.udp.iter().map(|query| query.queries[0].name().to_string()).collect()
    }

    /// The ids of the queries that came over UDP.
    pub(crate) fn ids(&self) -> Vec<u16> {
        self.shared.lock().unwrap().udp.iter().map(|query| query.metadata.id).collect()
    }

    pub(crate) fn last(&self) -> Message {
        self.shared.lock().unwrap().udp.last().unwrap().clone()
    }
}

/// Answers the queries on a stream, in the order in which the answers are ready.
pub(crate) async fn serve_stream<S>(stream: S, state: Arc<Mutex<Seen>>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    {
        let mut seen = state.lock().unwrap();
        (seen.connections, seen.open) = (seen.connections + 1, seen.open + 1);
    }
    let ended = queries(stream, &state).await;
    state.lock().unwrap().open -= 1;
    ended
}

async fn queries<S>(stream: S, state: &Mutex<Seen>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, writer) = tokio::io::split(stream);
    let writer = Arc::new(tokio::sync::Mutex::new(writer));
    // Dropped with the connection.
    let mut replies = JoinSet::new();
    loop {
        let length = tokio::select! {
            length = reader.read_u16() => length?,
            Some(Ok(Err(why))) = replies.join_next(), if !replies.is_empty() => return Err(why),
        };
        let mut query = vec![0; length.into()];
        reader.read_exact(&mut query).await?;
        let query = Message::from_vec(&query).unwrap();
        let does = {
            let mut seen = state.lock().unwrap();
            seen.tcp.push(query.clone());
            seen.next()
        };
        let writer = Arc::clone(&writer);
        replies.spawn(async move {
            if let Does::Late(by) = does {
                tokio::time::sleep(by).await;
            }
            let Some(reply) = reply(&query, does, true) else { return Ok(()) };
            let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
            framed.extend(&reply);
            let mut writer = writer.lock().await;
            if does == Does::HalfReply {
                writer.write_all(&framed[..framed.len() / 2]).await?;
                writer.flush().await?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            writer.write_all(&framed).await?;
            writer.flush().await
        });
    }
}

/// What a server replies.
pub(crate) fn reply(query: &Message, does: Does, tcp: bool) -> Option<Vec<u8>> {
    let question = query.queries[0].clone();
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    // Cookies are between two neighbours; nobody may keep or pass on this one.
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    edns.options_mut().insert(EdnsOption::Unknown(10, b"cookie--cookie--".to_vec()));
    reply.set_edns(edns);
    let address = |number: u8| match question.query_type() {
        RecordType::AAAA => RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())),
        _ => RData::A(A::new(192, 0, 2, number)),
    };
    let answers = |reply: &mut Message, count| {
        for number in 1..=count {
            reply.add_answer(Record::from_rdata(question.name().clone(), 60, address(number)));
        }
    };
    match does {
        Does::Nothing | Does::NothingOnce => return None,
        Does::Answer(count) => answers(&mut reply, count),
        Does::Late(_) | Does::Lossy(_) | Does::Forged | Does::Flapping(_) => answers(&mut reply, 1),
        Does::LowerCase => {
            if !tcp {
                reply.queries[0].set_name(question.name().to_lowercase());
            }
            answers(&mut reply, 1);
        }
        Does::HalfReply if tcp => answers(&mut reply, 1),
        Does::Truncated(count) if tcp => answers(&mut reply, count),
        Does::Truncated(_) | Does::TruncatedAlways | Does::HalfReply => reply.metadata.truncation = true,
        Does::NxDomain => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            let zone = Name::from_ascii("example.").unwrap();
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86400, 20);
            reply.add_authority(Record::from_rdata(zone, 3600, RData::SOA(soa)));
        }
        Does::Code(code) => reply.metadata.response_code = code,
        Does::WrongId => {
            reply.metadata.id ^= 1;
            answers(&mut reply, 1);
        }
        Does::WrongName => {
            reply.queries = vec![Query::query(Name::from_ascii("wrong.example.").unwrap(), RecordType::A)];
            answers(&mut reply, 1);
        }
    }
    Some(reply.to_vec().unwrap())
}

/// A resolver that knows `localhost` only.
pub(crate) fn env() -> Env {
    let names = Names::default();
    names.set("localhost", &["127.0.0.1"]);
    Env { resolve: Arc::new(names), ..testing::env() }
}

struct Generation {
    chain: Chain<Dns>,
    settings: Arc<DnsSettings>,
    states: DnsStates,
    upstream: Arc<UpstreamState>,
}

/// A listener and its chain, which can be replaced.
pub(crate) struct Sidecar {
    pub(crate) addr: SocketAddr,
    pub(crate) drain: Drain,
    generation: Arc<Mutex<Option<Generation>>>,
}

impl Sidecar {
    pub(crate) async fn start(listener: &str, filters: &str) -> Self {
        let listener: DnsListener = serde_json::from_str(listener).unwrap();
        let generation: Arc<Mutex<Option<Generation>>> = Arc::default();
        let current = Arc::clone(&generation);
        let chains: Chains<Dns> = Arc::new(move || {
            current.lock().unwrap().as_ref().map(|generation| Lease {
                chain: generation.chain.clone(),
                settings: Arc::clone(&generation.settings),
                generation: 1,
                hold: Arc::new(()),
            })
        });
        let (name, address) = listener.binds().remove(0);
        let front = DnsListener::bind(name, address, chains, env()).await.unwrap();
        let Address::Tcp(address) = front.address() else { panic!("not an address") };
        let drain = Drain::new();
        drain.spawn(front.serve(drain.clone()));
        let sidecar = Self { addr: address.socket_addr().unwrap(), drain, generation };
        sidecar.reload(&listener, filters);
        sidecar
    }

    /// With the filters in JSON and a listener on any port.
    pub(crate) async fn with(filters: &str) -> Self {
        Self::start(r#"{"bind": "127.0.0.1:0"}"#, filters).await
    }

    /// Pure pass-through to some servers.
    pub(crate) async fn to(servers: &[&Server]) -> Self {
        Self::with(&upstream_settings(servers)).await
    }

    pub(crate) fn reload(&self, listener: &DnsListener, filters: &str) {
        let filters: DnsFilters = serde_json::from_str(filters).unwrap();
        assert_eq!(filters.check(&Default::default()), []);
        let mut current = self.generation.lock().unwrap();
        let settings = Arc::new(listener.settings(&env()));
        let previous = current.as_ref().map(|generation| &generation.upstream);
        let (terminal, upstream) = listener.terminal(&filters, &settings, &env(), previous).unwrap();
        let states = current.as_ref().map(|generation| generation.states.clone()).unwrap_or_default();
        let (chain, states) = filters.build(&env(), &(), &states, terminal).unwrap();
        *current = Some(Generation { chain, settings, states, upstream });
    }

    pub(crate) fn refilter(&self, filters: &str) {
        self.reload(&DnsListener::default(), filters);
    }

    pub(crate) fn stop_serving(&self) {
        *self.generation.lock().unwrap() = None;
    }

    pub(crate) fn chain(&self) -> Svc<Dns> {
        self.generation.lock().unwrap().as_ref().unwrap().chain.service()
    }

    /// What is known of the servers.
    pub(crate) fn servers(&self) -> Vec<ServerStatus> {
        self.generation.lock().unwrap().as_ref().unwrap().upstream.servers()
    }

    pub(crate) fn states(&self) -> DnsStates {
        self.generation.lock().unwrap().as_ref().unwrap().states.clone()
    }

    pub(crate) async fn udp(&self, query: &Message) -> Message {
        Message::from_vec(&self.udp_bytes(&query.to_vec().unwrap()).await).unwrap()
    }

    pub(crate) async fn udp_bytes(&self, query: &[u8]) -> Vec<u8> {
        exchange(self.addr, query).await
    }

    pub(crate) async fn tcp(&self, query: &Message) -> Message {
        let mut client = TcpClient::connect(self.addr).await;
        client.send(&query.to_vec().unwrap()).await;
        Message::from_vec(&client.receive().await.unwrap()).unwrap()
    }
}

/// The settings of pass-through to some servers, in JSON.
pub(crate) fn upstream_settings(servers: &[&Server]) -> String {
    format!("{{{}}}", upstream_key(servers))
}

/// As [`upstream_settings`], for servers that are silent.
pub(crate) fn impatient_settings(servers: &[&Server]) -> String {
    upstream_settings(servers).replace("8s", "1500ms").replace("2s", "200ms").replace("1s", "50ms")
}

/// Patient enough for a machine that is busy with other things, and without probes.
pub(crate) fn upstream_key(servers: &[&Server]) -> String {
    let servers: Vec<_> = servers.iter().map(|server| server.addr.to_string()).collect();
    patient_key(&servers)
}

/// As [`upstream_key`], with servers as the configuration names them.
pub(crate) fn patient_key(servers: &[String]) -> String {
    format!(
        r#""dns_upstream": {{"servers": {servers:?}, "timeout": "8s", "attempt_timeout": "2s",
            "hedge": {{"min": "1s", "max": "1s"}}, "probe": {{"interval": "1h"}}}}"#
    )
}

/// Asks once over UDP. The socket is connected: a reply from another address is not seen.
pub(crate) async fn exchange(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let client = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).await.unwrap();
    client.connect(server).await.unwrap();
    client.send(query).await.unwrap();
    let mut reply = vec![0; 65_535];
    let received = tokio::time::timeout(PATIENCE, client.recv(&mut reply)).await;
    let length = received.expect("no reply").unwrap();
    reply.truncate(length);
    reply
}

/// A client's connection.
pub(crate) struct TcpClient(pub(crate) TcpStream);

impl TcpClient {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self(TcpStream::connect(to).await.unwrap())
    }

    pub(crate) async fn send(&mut self, message: &[u8]) {
        let framed = [&(message.len() as u16).to_be_bytes(), message].concat();
        self.0.write_all(&framed).await.unwrap();
    }

    /// The next reply; `None` when the connection was closed.
    pub(crate) async fn receive(&mut self) -> Option<Vec<u8>> {
        let receive = async {
            let length = self.0.read_u16().await?;
            let mut reply = vec![0; length.into()];
            self.0.read_exact(&mut reply).await?;
            io::Result::Ok(reply)
        };
        tokio::time::timeout(PATIENCE, receive).await.expect("neither a reply nor the end").ok()
    }
}

/// A query with an id of its own.
pub(crate) fn query(name: &str, rtype: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    query
}

pub(crate) fn with_edns(mut query: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    query.set_edns(edns);
    query
}

/// The addresses in a reply.
pub(crate) fn addresses(reply: &Message) -> Vec<IpAddr> {
    reply.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// The code of the extended error in a reply.
pub(crate) fn extended_error(reply: &Message) -> Option<u16> {
    let options: HashMap<u16, Vec<u8>> = reply
        .edns
        .as_ref()?
        .options()
        .as_ref()
        .iter()
        .filter_map(|(code, option)| Some((u16::from(*code), Vec::try_from(option).ok()?)))
        .collect();
    let option = options.get(&15)?;
    Some(u16::from_be_bytes([option[0], option[1]]))
}

/// Waits for a condition; fails with its description after ten seconds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
