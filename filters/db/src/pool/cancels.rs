//! The cancel keys of pooled sessions, by which a CancelRequest finds its session.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::session::Order;
use crate::session::CancelKeys;

/// Lengths of the secret of a cancel key: of protocol 3.0, and later.
const SECRET: usize = 4;
const LONG_SECRET: usize = 32;

/// The cancel keys of the sessions of a listener.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancels(Arc<Mutex<CancelKeys<mpsc::UnboundedSender<Order>>>>);

impl Cancels {
    /// Cancels what the session does that a key belongs to; `false` when there is none.
    pub(crate) fn cancel(&self, process: u32, secret: &[u8]) -> bool {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.find(process, secret).is_some_and(|session| session.send(Order::Cancel).is_ok())
    }

    /// A key for a session, which is void when the seat is dropped; none where there is no randomness. `long`: for protocol 3.2 and later.
    pub(super) fn add(
        &self,
        long: bool,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Option<(CancelSeat, Vec<u8>)> {
        let mut secret = vec![0; if long { LONG_SECRET } else { SECRET }];
        aws_lc_rs::rand::fill(&mut secret).ok()?;
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut process = [0; 4];
            aws_lc_rs::rand::fill(&mut process).ok()?;
            // Positive, as the numbers of processes are.
            let process = u32::from_be_bytes(process) & 0x7fff_ffff;
            if process != 0 && keys.insert(process, &secret, orders.clone()).is_ok() {
                return Some((CancelSeat { home: self.clone(), process }, secret));
            }
        }
    }
}

/// A cancel key, which is void when this is dropped.
pub(super) struct CancelSeat {
    home: Cancels,
    pub(super) process: u32,
}

impl Drop for CancelSeat {
    fn drop(&mut self) {
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).remove(self.process);
    }
}
