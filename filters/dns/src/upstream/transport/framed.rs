//! Many queries on one stream: TCP (RFC 7766) and TLS (RFC 7858). Replies may come in any order.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use super::super::message::{Failure, Randomness};
use crate::wire::{put, u16_at};

/// Queries that wait to be written.
const QUEUE: usize = 256;
/// What is written at once.
const BATCH: usize = 16 << 10;
/// With more queries than this, those that nobody waits for any more are forgotten.
const MANY: usize = 512;

type Reply = oneshot::Sender<Result<Vec<u8>, Failure>>;

/// One query: the message with any id, and where its reply goes.
type Job = (Vec<u8>, Reply);

/// The queries that wait for their replies, by their ids; `None` when the connection has ended.
type Waiting = Arc<Mutex<Option<HashMap<u16, Reply>>>>;

fn lock(waiting: &Waiting) -> MutexGuard<'_, Option<HashMap<u16, Reply>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Our end of a connection. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Framed {
    jobs: mpsc::Sender<Job>,
    task: tokio::task::AbortHandle,
}

impl Drop for Framed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Framed {
    /// Takes over a stream.
    pub(super) fn new<S>(stream: S, random: Arc<Randomness>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let task = tokio::spawn(run(stream, queue, random));
        Self { jobs, task: task.abort_handle() }
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.jobs.is_closed()
    }

    /// Asks. The reply has id 0, whatever id the query had on its way.
    pub(super) async fn exchange(&self, message: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let (reply, replied) = oneshot::channel();
        self.jobs.send((message, reply)).await.map_err(|_| Failure::Closed)?;
        replied.await.unwrap_or(Err(Failure::Closed))
    }
}

async fn run<S: AsyncRead + AsyncWrite>(stream: S, mut queue: mpsc::Receiver<Job>, random: Arc<Randomness>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
    let _ended: io::Result<()> = tokio::select! {
        ended = read(&mut reader, &waiting) => ended,
        ended = write(&mut writer, &mut queue, &waiting, &random) => ended,
    };
    queue.close();
    // Whoever waits for a reply finds its sender gone, and so the connection closed.
    lock(&waiting).take();
}

async fn read(reader: &mut (impl AsyncRead + Unpin), waiting: &Waiting) -> io::Result<()> {
    let mut reader = tokio::io::BufReader::with_capacity(4096, reader);
    loop {
        let length = reader.read_u16().await?;
        let mut message = vec![0; length.into()];
        reader.read_exact(&mut message).await?;
        let id = u16_at(&message, 0).ok_or(io::ErrorKind::InvalidData)?;
        put(&mut message, 0, &[0, 0]);
        // A reply that nobody waits for is one to a query that was given up.
        let reply = lock(waiting).as_mut().and_then(|waiting| waiting.remove(&id));
        if let Some(reply) = reply {
            let _gone = reply.send(Ok(message));
        }
    }
}

async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    queue: &mut mpsc::Receiver<Job>,
    waiting: &Waiting,
    random: &Randomness,
) -> io::Result<()> {
    let mut batch = Vec::new();
    while let Some(job) = queue.recv().await {
        batch.clear();
        let mut next = Some(job);
        while let Some((mut message, reply)) = next {
            // A query has less than 512 bytes.
            let length = message.len() as u16;
            if let Some(id) = enlist(waiting, reply, random) {
                put(&mut message, 0, &id.to_be_bytes());
                batch.extend_from_slice(&length.to_be_bytes());
                batch.extend_from_slice(&message);
            }
            next = if batch.len() < BATCH { queue.try_recv().ok() } else { None };
        }
        writer.write_all(&batch).await?;
        writer.flush().await?;
    }
    Ok(())
}

/// Gives a query an id that no other one has.
fn enlist(waiting: &Waiting, reply: Reply, random: &Randomness) -> Option<u16> {
    let mut waiting = lock(waiting);
    let waiting = waiting.as_mut()?;
    if waiting.len() >= MANY {
        waiting.retain(|_, reply| !reply.is_closed());
    }
    // Far fewer than 65,536 wait, so that one of these is free.
    let id = (0..64).map(|_| random.id()).find(|id| !waiting.contains_key(id))?;
    waiting.insert(id, reply);
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(server: &mut tokio::io::DuplexStream) -> Vec<u8> {
        let length = server.read_u16().await.unwrap();
        let mut message = vec![0; length.into()];
        server.read_exact(&mut message).await.unwrap();
        message
    }

    #[tokio::test]
    async fn queries_share_a_connection_and_replies_find_their_own() {
        let (client, mut server) = tokio::io::duplex(1 << 16);
        let framed = Arc::new(Framed::new(client, Arc::default()));
        let asks: Vec<_> = (0..100_u8)
            .map(|i| {
                let framed = Arc::clone(&framed);
                tokio::spawn(async move { framed.exchange(vec![0, 0, i]).await.unwrap() })
            })
            .collect();
        let mut queries = Vec::new();
        for _ in 0..100 {
            queries.push(next(&mut server).await);
        }
        let ids: std::collections::HashSet<_> = queries.iter().map(|query| query[..2].to_vec()).collect();
        assert_eq!(ids.len(), 100);
        // In another order, and with a reply to nobody among them.
        server.write_all(&[0, 2, 1, 2]).await.unwrap();
        for query in queries.iter().rev() {
            server.write_all(&[&[0, 3], query.as_slice()].concat()).await.unwrap();
        }
        for (i, ask) in asks.into_iter().enumerate() {
            assert_eq!(ask.await.unwrap(), [0, 0, i as u8]);
        }
    }

    #[tokio::test]
    async fn when_the_connection_ends_everybody_learns_it_at_once() {
        for last in [&[][..], &[0, 9, 1], &[0, 1, 1]] {
            let (client, mut server) = tokio::io::duplex(1 << 16);
            let framed = Framed::new(client, Arc::default());
            let (one, two, ()) =
                tokio::join!(framed.exchange(vec![0; 12]), framed.exchange(vec![0; 12]), async {
                    next(&mut server).await;
                    next(&mut server).await;
                    server.write_all(last).await.unwrap();
                    drop(server);
                });
            assert!(matches!((one, two), (Err(Failure::Closed), Err(Failure::Closed))));
            crate::testing::until("it is known", || framed.is_closed()).await;
            assert!(matches!(framed.exchange(vec![0; 12]).await, Err(Failure::Closed)));
        }
    }
}
