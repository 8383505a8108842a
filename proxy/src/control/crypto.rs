//! What an operator sees of cryptography.

use std::sync::Arc;

use qudag_filter_crypto::{Backend, CryptoStatus};

use super::{Control, ControlError};

impl Control {
    /// Which implementation verifies signatures, and what is held for that.
    ///
    /// # Errors
    /// When cryptography is not served.
    pub fn crypto(&self) -> Result<CryptoStatus, ControlError> {
        let generation = self.generation();
        let line = generation.kinds.crypto.as_ref().ok_or_else(|| {
            ControlError::NotFound("cryptography is not served: there is no listeners.crypto".to_owned())
        })?;
        let simd = line.states.simd_crypto.as_ref().filter(|_| line.has("simd_crypto"));
        let routing = line.states.hardware_routing.as_ref().filter(|_| line.has("hardware_routing"));
        let offload = line.states.crypto_offload.as_ref().filter(|_| line.has("crypto_offload"));
        let simd_crypto = simd.map(|held| held.state.status());
        Ok(CryptoStatus {
            backend: simd_crypto.as_ref().map_or(Backend::Portable.name(), |simd| simd.best),
            simd_crypto,
            hardware_routing: routing.map(|held| held.state.status()),
            crypto_offload: offload.map(|held| held.state.status()),
        })
    }

    /// Tests the implementations, or one of them, and returns what [`Control::crypto`] does then. Waits for the tests.
    ///
    /// # Errors
    /// When cryptography is not served, or `simd_crypto` is off.
    pub async fn crypto_selftest(&self, backend: Option<Backend>) -> Result<CryptoStatus, ControlError> {
        if self.crypto()?.simd_crypto.is_none() {
            let why = "the portable implementation is in use: crypto.simd_crypto is off";
            return Err(ControlError::NotFound(why.to_owned()));
        }
        let generation = self.generation();
        let held = generation.kinds.crypto.as_ref().and_then(|line| line.states.simd_crypto.as_ref());
        if let Some(held) = held {
            Arc::clone(&held.state).test(held.settings.self_test_timeout.0, backend).await;
        }
        self.crypto()
    }
}
