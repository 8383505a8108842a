//! What the sidecar itself says within a pooled session.

use std::io;
use std::task::Poll;
use std::time::Duration;

use metrics::counter;
use qudag_filter_api::FilterError;
use tokio::time::timeout;

use super::conn::poll_write;
use super::session::Session;
use crate::reply::{fatal, refusal};
use crate::wire::build::ErrorResponse;

/// How long last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Session {
    /// Refuses the batch that is there.
    pub(super) fn refuse(&mut self, error: &FilterError) {
        self.tapped.refused(error.label());
        counter!("qudag_sidecar_db_transactions_total", "outcome" => error.label()).increment(1);
        let (sqlstate, message, hint) = refusal(error);
        let error =
            ErrorResponse { fatal: false, sqlstate, message: &message, detail: None, hint: Some(&hint) };
        self.client.refuse(&self.inbox, &mut self.out, &error);
    }

    /// The client has cancelled what waits for a server.
    pub(super) fn cancelled(&mut self) {
        self.tapped.refused("cancelled");
        counter!("qudag_sidecar_db_transactions_total", "outcome" => "cancelled").increment(1);
        let message = "canceling statement due to user request";
        let hint = Some("qudag-sidecar: it was waiting for a server");
        let error = ErrorResponse { fatal: false, sqlstate: "57014", message, detail: None, hint };
        self.client.refuse(&self.inbox, &mut self.out, &error);
    }

    /// Tells a client why its session ends.
    pub(super) fn ended(&mut self, error: &FilterError) {
        fatal(error, &mut self.out);
    }

    /// Sends what is still to be said and closes.
    pub(super) async fn last_words(&mut self) {
        let said = std::future::poll_fn(|cx| -> Poll<io::Result<()>> {
            let pending = self.out.len();
            let written = poll_write(&mut self.stream, cx, &mut self.out);
            self.written += (pending - self.out.len()) as u64;
            written
        });
        let _ = timeout(LAST_WORDS, said).await;
        let _ = timeout(LAST_WORDS, tokio::io::AsyncWriteExt::shutdown(&mut self.stream)).await;
    }
}
