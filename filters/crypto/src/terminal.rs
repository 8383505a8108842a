//! The end of the chain: every operation by itself, with nothing kept from one to the next.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;

use qudag_filter_api::{FilterError, Svc, service_fn};
use qudag_mldsa::Scratch;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::work::{Cost, Meters, NoKeys, hash, verify};
use crate::{Crypto, CryptoCall, CryptoReply, CryptoStatus, Operations};

/// What may be done on a thread that has connections to serve.
const AT_ONCE: Cost = Cost::micros(100);
/// Without a cache, every key that is sent along is expanded.
const ALL_FRESH: u8 = u8::MAX;

/// Why no key is registered here.
const NO_KEYS: &str = "keys are kept by crypto_offload, which is off for this program";

/// What the terminal service keeps: memory to work in, and how many requests may work at a time.
pub struct Alone {
    scratches: Mutex<Vec<Scratch>>,
    threads: Semaphore,
    meters: Meters,
}

impl Alone {
    pub(crate) fn new() -> Self {
        let threads = available_parallelism().map_or(1, NonZeroUsize::get);
        Self { scratches: Mutex::default(), threads: Semaphore::new(threads), meters: Meters::new() }
    }

    fn perform(&self, call: &CryptoCall) -> Result<CryptoReply, FilterError> {
        match &*call.operations {
            operations @ (Operations::Signatures(_) | Operations::Fingerprints(_)) => {
                let mut scratch = self.lock().pop().unwrap_or_default();
                let one = |place| [(operations, place)];
                let verdicts: Vec<_> = (0..operations.len())
                    .flat_map(|place| {
                        verify(call.backend, call.independent, &NoKeys, &mut scratch, &one(place))
                    })
                    .collect();
                self.lock().push(scratch);
                // What is done a second time is not done for a program.
                if !call.independent {
                    self.meters.verdicts(operations, &verdicts);
                }
                Ok(CryptoReply::Verdicts(verdicts))
            }
            Operations::Hashes(data) => {
                self.meters.hashes(data.len());
                Ok(CryptoReply::Hashes(data.iter().map(|(data, length)| hash(data, *length)).collect()))
            }
            Operations::Keys(_) => Err(FilterError::Refused(NO_KEYS.into())),
            Operations::Status => {
                let backend = call.backend.name();
                let status =
                    CryptoStatus { backend, simd_crypto: None, hardware_routing: None, crypto_offload: None };
                Ok(CryptoReply::Status(Box::new(status)))
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Scratch>> {
        self.scratches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The terminal service.
pub(crate) fn service(alone: Arc<Alone>) -> Svc<Crypto> {
    service_fn::<Crypto, _, _>(move |call: CryptoCall| {
        let alone = Arc::clone(&alone);
        async move {
            if Cost::all(&call.operations, call.backend, ALL_FRESH) <= AT_ONCE {
                return alone.perform(&call);
            }
            let _permit = alone.threads.acquire().await;
            let worker = Arc::clone(&alone);
            let reply = spawn_blocking(move || worker.perform(&call)).await;
            reply.map_err(|why| FilterError::Internal(format!("a thread has failed: {why}").into()))?
        }
    })
}
