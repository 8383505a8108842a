//! A client that puts messages together by hand and sees every reply: thousands of queries a second also in a debug build.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::login::{Login, Scram};

/// How long a reply may take before the connection counts as hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An ErrorResponse or a NoticeResponse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// ERROR, FATAL, PANIC, WARNING, NOTICE and so on.
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    /// What it says.
    pub message: String,
    /// The hint, if there is one.
    pub hint: String,
}

impl Fault {
    fn read(body: &[u8]) -> Self {
        let mut fault = Self::default();
        for field in body.split(|byte| *byte == 0).filter(|field| !field.is_empty()) {
            let text = String::from_utf8_lossy(&field[1..]).into_owned();
            match field[0] {
                b'V' => fault.severity = text,
                b'S' if fault.severity.is_empty() => fault.severity = text,
                b'C' => fault.code = text,
                b'M' => fault.message = text,
                b'H' => fault.hint = text,
                _ => {}
            }
        }
        fault
    }

    /// Whether the sidecar said it: nothing of the batch was carried out.
    pub fn refused(&self) -> bool {
        self.retry_after().is_some()
    }

    /// How long the sidecar wants the client to wait.
    fn retry_after(&self) -> Option<Duration> {
        let time = self.hint.strip_prefix("qudag-sidecar: retry after ")?;
        time.strip_suffix(" ms")?.parse().ok().map(Duration::from_millis)
    }
}

/// The connection is of no use any more.
#[derive(Clone, Debug)]
pub struct Lost(pub String);

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Everything up to ReadyForQuery.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// DataRows, and lines of COPY as rows of one column.
    pub rows: Vec<Vec<Option<Bytes>>>,
    /// CommandComplete.
    pub tags: Vec<String>,
    /// ErrorResponses.
    pub errors: Vec<Fault>,
    /// NoticeResponses.
    pub notices: Vec<Fault>,
    /// The transaction status of ReadyForQuery: `I`, `T` or `E`.
    pub status: u8,
    /// What other messages came, by their letters: `1` ParseComplete and so on.
    pub others: Vec<u8>,
}

impl Batch {
    /// How long the sidecar wants the client to wait, if it refused the batch.
    pub fn retry_after(&self) -> Option<Duration> {
        self.errors.iter().find_map(Fault::retry_after)
    }
}

/// A connection after its login.
pub struct Link {
    stream: TcpStream,
    got: BytesMut,
    /// What is to be sent next.
    pub out: BytesMut,
    door: SocketAddr,
    /// The body of BackendKeyData.
    key: Bytes,
}

impl Link {
    /// Logs in as the kit's user.
    ///
    /// # Errors
    /// When there is no session.
    pub async fn to(door: SocketAddr) -> Result<Self, Lost> {
        Self::log_in(door, &Login::default()).await
    }

    /// Logs in.
    ///
    /// # Errors
    /// When there is no session.
    pub async fn log_in(door: SocketAddr, login: &Login) -> Result<Self, Lost> {
        let connected = timeout(PATIENCE, TcpStream::connect(door)).await;
        let stream = connected.map_err(|_| Lost("connecting hangs".into()))??;
        stream.set_nodelay(true)?;
        let (got, out) = (BytesMut::with_capacity(16 << 10), login.startup());
        let mut link = Self { stream, got, out, door, key: Bytes::new() };
        link.send().await?;
        let mut scram = Scram::new();
        loop {
            let (kind, mut body) = link.message().await?;
            match kind {
                b'R' => match body.get_u32() {
                    0 => {}
                    3 => link.put(b'p', |out| string(out, &login.password)),
                    10 => link.put(b'p', |out| out.put_slice(&scram.first())),
                    11 => {
                        let last = scram.last(&login.password, &String::from_utf8_lossy(&body));
                        link.put(b'p', |out| out.put_slice(&last));
                    }
                    12 if scram.proven(&String::from_utf8_lossy(&body)) => {}
                    other => return Err(Lost(format!("authentication {other}"))),
                },
                b'K' => link.key = body,
                b'Z' => return Ok(link),
                b'E' => return Err(Lost(format!("{:?}", Fault::read(&body)))),
                _ => {}
            }
            link.send().await?;
        }
    }

    /// Where it leads.
    pub fn door(&self) -> SocketAddr {
        self.door
    }

    /// One message.
    fn put(&mut self, kind: u8, body: impl FnOnce(&mut BytesMut)) {
        self.out.put_u8(kind);
        let at = self.out.len();
        self.out.put_u32(0);
        body(&mut self.out);
        let length = (self.out.len() - at) as u32;
        self.out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Query.
    pub fn query(&mut self, sql: &str) {
        self.put(b'Q', |out| string(out, sql));
    }

    /// Parse, with the types left to the server.
    pub fn parse(&mut self, name: &str, sql: &str) {
        self.put(b'P', |out| {
            string(out, name);
            string(out, sql);
            out.put_u16(0);
        });
    }

    /// Bind of texts; results are text too.
    pub fn bind(&mut self, portal: &str, name: &str, values: &[&str]) {
        self.put(b'B', |out| {
            string(out, portal);
            string(out, name);
            out.put_u16(0);
            out.put_u16(values.len() as u16);
            for value in values {
                out.put_u32(value.len() as u32);
                out.put_slice(value.as_bytes());
            }
            out.put_u16(0);
        });
    }

    /// Execute, of at most `most` rows; 0 is all.
    pub fn execute(&mut self, portal: &str, most: u32) {
        self.put(b'E', |out| {
            string(out, portal);
            out.put_u32(most);
        });
    }

    /// Close of a statement.
    pub fn close(&mut self, name: &str) {
        self.put(b'C', |out| {
            out.put_u8(b'S');
            string(out, name);
        });
    }

    /// Parse, Bind and Execute of the unnamed statement.
    pub fn extended(&mut self, sql: &str, values: &[&str]) {
        self.parse("", sql);
        self.bind("", "", values);
        self.execute("", 0);
    }

    /// Sync.
    pub fn sync(&mut self) {
        self.put(b'S', |_| {});
    }

    /// Flush.
    pub fn flush(&mut self) {
        self.put(b'H', |_| {});
    }

    /// CopyData.
    pub fn copy_data(&mut self, lines: &str) {
        self.put(b'd', |out| out.put_slice(lines.as_bytes()));
    }

    /// CopyDone.
    pub fn copy_done(&mut self) {
        self.put(b'c', |_| {});
    }

    /// Sends what was put together.
    ///
    /// # Errors
    /// When the connection is gone, or the other side does not read.
    pub async fn send(&mut self) -> Result<(), Lost> {
        let written = timeout(PATIENCE, self.stream.write_all(&self.out)).await;
        self.out.clear();
        Ok(written.map_err(|_| Lost("sending hangs".into()))??)
    }

    /// The next message: its letter and its body.
    ///
    /// # Errors
    /// When the connection is gone, or nothing comes for a minute.
    pub async fn message(&mut self) -> Result<(u8, Bytes), Lost> {
        loop {
            if let Some(head) = self.got.first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if self.got.len() > length {
                    let mut message = self.got.split_to(length + 1).freeze();
                    let kind = message.get_u8();
                    message.advance(4);
                    return Ok((kind, message));
                }
                self.got.reserve(length + 1 - self.got.len());
            }
            self.more().await?;
        }
    }

    /// Waits for more bytes.
    ///
    /// # Errors
    /// As [`message`](Self::message).
    pub async fn more(&mut self) -> Result<(), Lost> {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.got)).await;
        match read.map_err(|_| Lost("no reply for a minute".into()))?? {
            0 => Err(Lost("closed".into())),
            _ => Ok(()),
        }
    }

    /// Sends what was put together and reads on through ReadyForQuery.
    ///
    /// # Errors
    /// As [`message`](Self::message); a FATAL error is named.
    pub async fn ask(&mut self) -> Result<Batch, Lost> {
        self.send().await?;
        self.batch().await
    }

    /// Everything through the next ReadyForQuery.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn batch(&mut self) -> Result<Batch, Lost> {
        self.replies(b'Z').await
    }

    /// Everything through the next message of a kind, an error, or ReadyForQuery.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn replies(&mut self, last: u8) -> Result<Batch, Lost> {
        let mut batch = Batch::default();
        loop {
            let (kind, body) = self.message().await?;
            match kind {
                b'D' => batch.rows.push(columns(body)),
                b'd' => batch.rows.push(vec![Some(body)]),
                b'C' => batch.tags.push(text(&body)),
                b'E' => {
                    let fault = Fault::read(&body);
                    if fault.severity != "ERROR" {
                        return Err(self.end(&fault).await);
                    }
                    batch.errors.push(fault);
                }
                b'N' => batch.notices.push(Fault::read(&body)),
                b'Z' => batch.status = body.first().copied().unwrap_or(0),
                // What may come at any time.
                b'S' | b'A' => {}
                other => batch.others.push(other),
            }
            let error = last != b'Z' && kind == b'E';
            if kind == last || kind == b'Z' || error {
                return Ok(batch);
            }
        }
    }

    /// The end that FATAL announces. A session that went on would give the error to whatever is asked next.
    async fn end(&mut self, fault: &Fault) -> Lost {
        match self.message().await {
            Ok((kind, _)) => panic!("a message {:?} after {fault:?}", char::from(kind)),
            Err(lost) => Lost(format!("{}: {fault:?}", lost.0)),
        }
    }

    /// Sends a CancelRequest for this session, on a connection of its own, and waits for its end: then it was carried out.
    ///
    /// # Errors
    /// When it could not be sent, or the other side does not close.
    pub async fn cancel(&self) -> Result<(), Lost> {
        let mut packet = BytesMut::new();
        packet.put_u32(8 + self.key.len() as u32);
        packet.put_u32(80_877_102);
        packet.put_slice(&self.key);
        let sent = async {
            let mut stream = TcpStream::connect(self.door).await?;
            stream.write_all(&packet).await?;
            stream.read(&mut [0]).await
        };
        match timeout(PATIENCE, sent).await {
            // A reset is an end too.
            Ok(Ok(0)) => Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Ok(Ok(_)) => Err(Lost("an answer to CancelRequest".into())),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Lost("a cancel hangs".into())),
        }
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }
}

fn string(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body.strip_suffix(&[0]).unwrap_or(body)).into_owned()
}

fn columns(mut body: Bytes) -> Vec<Option<Bytes>> {
    let count = body.get_u16();
    let column = |_| {
        let length = body.get_i32();
        usize::try_from(length).ok().map(|length| body.split_to(length))
    };
    (0..count).map(column).collect()
}
