//! Clients that send the next operation when the last one was answered: how much there can be.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use super::connection::{Broken, Connection, Reply};
use super::wire::Operation;
use crate::Failure;
use crate::measure::nanos;

/// Connections that are opened at the same time.
const OPENING: usize = 16;
/// How long all of them may take, and one operation when nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens so many sessions.
///
/// # Errors
/// When one is not let in.
pub async fn open_all(
    to: SocketAddr,
    operation: &Operation,
    count: usize,
    seed: u64,
) -> Result<Vec<Connection>, Failure> {
    let (places, operation) = (Rc::new(Semaphore::new(OPENING)), Rc::new(operation.clone()));
    let mut opening = JoinSet::new();
    for number in 0..count {
        let (places, operation) = (Rc::clone(&places), Rc::clone(&operation));
        opening.spawn_local(async move {
            let _place = places.acquire().await;
            Connection::open_before(to, &operation, seed.wrapping_add(number as u64)).await
        });
    }
    let all = async {
        let mut open = Vec::with_capacity(count);
        while let Some(opened) = opening.join_next().await {
            open.push(opened?.map_err(|why| format!("connection {}: {why}", open.len() + 1))?);
        }
        Ok::<_, Failure>(open)
    };
    timeout(PATIENCE, all).await.map_err(|_| format!("{count} connections take too long"))?
}

/// What clients did.
pub struct Done {
    /// Operations.
    pub count: u64,
    /// In this time.
    pub elapsed: Duration,
    /// How long each took, ns.
    pub took: Histogram<u64>,
}

impl Done {
    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }
}

/// Clients whose connections are open.
pub struct Crew {
    runtime: Runtime,
    local: LocalSet,
    open: Vec<Connection>,
}

impl Crew {
    /// Opens so many connections.
    ///
    /// # Errors
    /// When one is not let in.
    pub fn gather(to: SocketAddr, operation: &Operation, clients: usize) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        let open = local.block_on(&runtime, open_all(to, operation, clients, 1))?;
        Ok(Self { runtime, local, open })
    }

    /// Lets all of them work for a while.
    ///
    /// # Errors
    /// When a connection ends or an answer is not the right one.
    pub fn work(&mut self, time: Duration) -> Result<Done, Failure> {
        let took = Rc::new(RefCell::new(Histogram::new_with_bounds(1, 60_000_000_000, 3)?));
        let connections = std::mem::take(&mut self.open);
        let (start, shared) = (Instant::now(), Rc::clone(&took));
        let work = async move {
            let mut clients = JoinSet::new();
            for connection in connections {
                clients.spawn_local(work_until(connection, start + time, Rc::clone(&shared)));
            }
            let mut back = Vec::with_capacity(clients.len());
            while let Some(client) = clients.join_next().await {
                back.push(client??);
            }
            Ok::<_, Failure>(back)
        };
        // A timer needs the runtime to be there.
        let work = async move { timeout(time + PATIENCE, work).await };
        self.open = self.local.block_on(&self.runtime, work).map_err(|_| "no answer comes any more")??;
        let elapsed = start.elapsed();
        let took = Rc::into_inner(took).ok_or("a client goes on")?.into_inner();
        Ok(Done { count: took.len(), elapsed, took })
    }
}

async fn work_until(
    mut connection: Connection,
    end: Instant,
    took: Rc<RefCell<Histogram<u64>>>,
) -> Result<Connection, Broken> {
    let mut now = Instant::now();
    while now < end {
        if let Reply::Refused(refusal) = connection.operate().await? {
            return Err(Broken::Ended(Some(refusal)));
        }
        let after = Instant::now();
        took.borrow_mut().saturating_record(nanos(after - now));
        now = after;
    }
    Ok(connection)
}
