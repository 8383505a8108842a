//! What operations do to the server when it is to be too much for it: a known piece of work for its processor.

use std::time::Duration;

use super::closed::Crew;
use super::cluster::Cluster;
use super::stand::POOL;
use super::wire::Operation;
use crate::Failure;

/// Operations a second that the server shall be able to do. So many fewer than there are clients that waiting for all of them takes longer
/// than the deadline, as where pools have collapsed.
const CAPACITY: f64 = 400.0;
/// Rows of the first try.
const FIRST: f64 = 30_000.0;

/// A sum over a table that is in memory, with as many rows as one processor adds up in 1 / [`CAPACITY`] seconds.
///
/// # Errors
/// When the server fails.
pub(super) fn calibrated(cluster: &Cluster, time: Duration) -> Result<Operation, Failure> {
    let mut rows = FIRST;
    // What takes long for each operation besides the rows makes the first guess a little wrong.
    for _ in 0..2 {
        let rate = peak(cluster, &summing(cluster, rows)?, time)?;
        rows *= rate / CAPACITY;
    }
    summing(cluster, rows)
}

fn summing(cluster: &Cluster, rows: f64) -> Result<Operation, Failure> {
    let rows = rows.max(1.0) as i64;
    cluster.sql("drop table if exists work")?;
    cluster.sql(&format!("create table work as select 1 as value from generate_series(1, {rows})"))?;
    // Now, rather than during a load.
    cluster.sql("vacuum analyze work")?;
    // A session's first use of a table takes the server longer, and is no part of the work.
    let first = "SELECT sum(value) FROM work HAVING false";
    Ok(Operation::fixed(first, "SELECT sum(value) FROM work", rows))
}

/// Operations a second that the server does for as many clients as a pool has connections: the most in three slices of a time, because what the
/// machine does besides can only take from it.
///
/// # Errors
/// When the server fails.
pub(super) fn peak(cluster: &Cluster, operation: &Operation, time: Duration) -> Result<f64, Failure> {
    let mut crew = Crew::gather(cluster.address(), operation, POOL)?;
    crew.work(time / 4)?;
    let mut most: f64 = 0.0;
    for _ in 0..3 {
        most = most.max(crew.work(time / 3)?.rate());
    }
    Ok(most)
}
