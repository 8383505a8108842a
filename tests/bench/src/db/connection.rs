//! A client's connection: a message out, the answer in, nothing kept.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::schedule::Random;
use super::wire::{Operation, ROWS, Reader, Refusal, Said, startup};

/// The user of every connection, and its database.
pub const USER: &str = "qudag";

/// Room for what comes at once.
const ROOM: usize = 4096;

/// How one operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// With the right rows.
    Right,
    /// With an error; the connection can be used again.
    Refused(Refusal),
}

/// Why a connection is of no use any more.
#[derive(Debug)]
pub enum Broken {
    /// It ended, perhaps with an error before.
    Ended(Option<Refusal>),
    /// What came is wrong: other rows, no messages. That ends the benchmark.
    Wrong(String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(None) => f.write_str("the connection ended"),
            Self::Ended(Some(refusal)) => write!(f, "SQLSTATE {}", refusal.code()),
            Self::Wrong(what) => write!(f, "a wrong answer: {what}"),
        }
    }
}

impl std::error::Error for Broken {}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Ended(None)
    }
}

/// An open session.
pub struct Connection {
    stream: TcpStream,
    reader: Reader,
    room: Box<[u8; ROOM]>,
    /// Bytes in `room` that were read and not looked at.
    unread: std::ops::Range<usize>,
    operation: Operation,
    random: Random,
}

impl Connection {
    /// Opens a session and prepares what the operation needs.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn open(to: SocketAddr, operation: &Operation, seed: u64) -> Result<Self, Broken> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self {
            stream,
            reader: Reader::default(),
            room: Box::new([0; ROOM]),
            unread: 0..0,
            operation: operation.clone(),
            random: Random::new(seed),
        };
        connection.say(&startup(USER, USER)).await?;
        connection.say(&operation.prepare).await?;
        Ok(connection)
    }

    /// The same for a load that has not begun.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn open_before(to: SocketAddr, operation: &Operation, seed: u64) -> Result<Self, Broken> {
        let mut connection = Self::open(to, operation, seed).await?;
        connection.say(&operation.warm_up).await?;
        Ok(connection)
    }

    /// Sends something, unless it is nothing, that must succeed without giving a row.
    async fn say(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.stream.write_all(bytes).await?;
        match self.until_ready(None).await? {
            Reply::Right => Ok(()),
            Reply::Refused(refusal) => Err(Broken::Ended(Some(refusal))),
        }
    }

    /// One operation. Whoever drops this before its end must drop the connection too.
    ///
    /// # Errors
    /// When the connection ends or the answer is wrong.
    pub async fn operate(&mut self) -> Result<Reply, Broken> {
        let number = self.random.up_to(ROWS);
        let (message, answer) = self.operation.about(number);
        self.stream.write_all(message).await?;
        self.until_ready(Some(answer)).await
    }

    /// Waits while nothing is under way, until the peer ends the connection.
    pub async fn until_it_ends(&mut self) -> Broken {
        loop {
            match self.said().await {
                // A parameter has changed, for instance.
                Ok(Said::Other) => {}
                Ok(Said::Error(refusal)) if refusal.fatal => return Broken::Ended(Some(refusal)),
                Ok(said) => return Broken::Wrong(format!("{said:?} to nothing")),
                Err(broken) => return broken,
            }
        }
    }

    /// Reads up to ReadyForQuery. An operation must give one row with one value; nothing else may give one.
    async fn until_ready(&mut self, answer: Option<i64>) -> Result<Reply, Broken> {
        let (mut rows, mut refused) = (0, None);
        loop {
            match self.said().await {
                Ok(Said::Row(value)) => {
                    if answer.is_none() || value != answer {
                        return Err(Broken::Wrong(format!("{value:?} instead of {answer:?}")));
                    }
                    rows += 1;
                }
                Ok(Said::Error(refusal)) => refused = Some(refusal),
                Ok(Said::AsksForPassword) => return Err(Broken::Wrong("it asks for a password".into())),
                Ok(Said::Ready) => break,
                Ok(Said::LetIn | Said::Other) => {}
                Err(Broken::Ended(None)) => return Err(Broken::Ended(refused)),
                Err(broken) => return Err(broken),
            }
        }
        match refused {
            Some(refusal) => Ok(Reply::Refused(refusal)),
            None if rows == i32::from(answer.is_some()) => Ok(Reply::Right),
            None => Err(Broken::Wrong(format!("{rows} rows"))),
        }
    }

    /// The next message. When this is dropped, nothing is lost.
    async fn said(&mut self) -> Result<Said, Broken> {
        loop {
            let mut bytes = self.room.get(self.unread.clone()).unwrap_or_default();
            let said = self.reader.next(&mut bytes).map_err(|why| Broken::Wrong(why.to_string()))?;
            self.unread.start = self.unread.end - bytes.len();
            if let Some(said) = said {
                return Ok(said);
            }
            let length = self.stream.read(&mut self.room[..]).await?;
            if length == 0 {
                return Err(Broken::Ended(None));
            }
            self.unread = 0..length;
        }
    }
}
