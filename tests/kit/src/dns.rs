//! A DNS client that hides nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

pub use hickory_proto;

/// How long a client waits for an answer.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// A question with recursion desired and a random id.
pub fn question(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_utf8(name).unwrap(), record_type));
    message.metadata.recursion_desired = true;
    message
}

/// Sends bytes by UDP and returns the bytes of the answer.
///
/// # Errors
/// When no answer comes in time.
pub async fn exchange_udp(server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, String> {
    let any: IpAddr =
        if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let exchange = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        socket.send(query).await?;
        let mut answer = vec![0; 65_535];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| "no answer".to_owned())?;
    answer.map_err(|error| error.to_string())
}

/// Sends bytes by TCP, on a connection of its own, and returns the bytes of the answer.
///
/// # Errors
/// When no answer comes in time.
pub async fn exchange_tcp(server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| "no answer".to_owned())?;
    answer.map_err(|error| error.to_string())
}

/// Asks by UDP.
///
/// # Errors
/// When no answer comes, or it does not belong to the question.
pub async fn ask(server: SocketAddr, name: &str, record_type: RecordType) -> Result<Message, String> {
    let question = question(name, record_type);
    let answer = exchange_udp(server, &question.to_vec().unwrap()).await?;
    matching(&question, &answer)
}

/// Asks by TCP.
///
/// # Errors
/// When no answer comes, or it does not belong to the question.
pub async fn ask_tcp(server: SocketAddr, name: &str, record_type: RecordType) -> Result<Message, String> {
    let question = question(name, record_type);
    let answer = exchange_tcp(server, &question.to_vec().unwrap()).await?;
    matching(&question, &answer)
}

fn matching(question: &Message, answer: &[u8]) -> Result<Message, String> {
    let answer = Message::from_vec(answer).map_err(|error| error.to_string())?;
    if answer.metadata.id != question.metadata.id || answer.queries != question.queries {
        return Err(format!("an answer to another question: {answer:?}"));
    }
    Ok(answer)
}

/// The addresses in an answer.
pub fn addresses(answer: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| address(&record.data)).collect()
}

/// The bytes of an answer with id and TTLs zeroed, without AA (who passes an answer on is no authority) and with the records of each
/// section in a fixed order, so that answers to the same question can be compared.
pub fn normalised(answer: &[u8]) -> Vec<u8> {
    let mut message = Message::from_vec(answer).unwrap();
    message.metadata.id = 0;
    message.metadata.authoritative = false;
    for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
        for record in section.iter_mut() {
            record.ttl = 0;
        }
        section.sort_by_key(ToString::to_string);
    }
    message.to_vec().unwrap()
}
