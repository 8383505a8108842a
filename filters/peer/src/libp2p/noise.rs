//! The handshake with a node.

use std::io;

use snow::params::NoiseParams;
use snow::{Builder, HandshakeState, TransportState};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::PeerId;
use super::channel::{MOST, Messages, more};
use super::crypto::{AwsLc, static_key};
use super::identity::{Identity, NotAnIdentity, read_identity};
use super::lines::{Line, Lines, hello};

const PATTERN: &str = "Noise_XX_25519_ChaChaPoly_SHA256";
const NOISE: &str = "/noise";

/// Why a node could not be asked who it is.
#[derive(Debug, thiserror::Error)]
pub enum NodeFailure {
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// It did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// Something else than a libp2p node answers, or one without Noise.
    #[error("it does not speak Noise as libp2p nodes do")]
    Protocol,
    /// What it says of itself is not believed.
    #[error(transparent)]
    Identity(#[from] NotAnIdentity),
    /// Something of our own failed.
    #[error("no random numbers")]
    Internal,
}

impl NodeFailure {
    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "connect",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Identity(_) => "identity",
            Self::Internal => "internal",
        }
    }
}

impl From<snow::Error> for NodeFailure {
    fn from(_: snow::Error) -> Self {
        Self::Protocol
    }
}

/// A handshake of which two of three messages have passed: the node has said who it is, and we have not.
pub(super) struct Half<S> {
    messages: Messages<S>,
    state: HandshakeState,
    /// Our static key.
    own: [u8; 32],
    /// Who the node is.
    pub(super) node: PeerId,
}

/// Asks the node at the other end who it is. The handshake is left before it is complete, so that the node sees no peer.
///
/// # Errors
/// When it does not tell.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Result<PeerId, NodeFailure> {
    Ok(Half::begin(stream).await?.node)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Half<S> {
    pub(super) async fn begin(mut stream: S) -> Result<Self, NodeFailure> {
        stream.write_all(&hello(NOISE)).await?;
        let mut lines = Lines::default();
        for expected in [Line::Hello, Line::Protocol(NOISE.to_owned())] {
            let line = loop {
                if let Some(line) = lines.next().map_err(|_| NodeFailure::Protocol)? {
                    break line;
                }
                let mut come = Vec::new();
                more(&mut stream, &mut come).await?;
                lines.push(&come);
            };
            if line != expected {
                return Err(NodeFailure::Protocol);
            }
        }
        let mut messages = Messages::new(stream, lines.rest());
        let (private, own) = static_key().ok_or(NodeFailure::Internal)?;
        let parameters: NoiseParams = PATTERN.parse()?;
        let mut state = Builder::with_resolver(parameters, Box::new(AwsLc))
            .local_private_key(&private)?
            .build_initiator()?;
        let mut out = vec![0; MOST];
        let length = state.write_message(&[], &mut out)?;
        messages.send(out.get(..length).unwrap_or_default()).await?;
        let answer = messages.receive().await?;
        let length = state.read_message(&answer, &mut out)?;
        let payload = out.get(..length).unwrap_or_default();
        let node = read_identity(payload, state.get_remote_static().unwrap_or_default())?;
        Ok(Self { messages, state, own, node })
    }

    /// Says who we are.
    pub(super) async fn finish(mut self, identity: &Identity) -> Result<Secret<S>, NodeFailure> {
        let mut out = vec![0; MOST];
        let length = self.state.write_message(&identity.payload(&self.own), &mut out)?;
        self.messages.send(out.get(..length).unwrap_or_default()).await?;
        Ok(Secret { messages: self.messages, state: self.state.into_transport_mode()? })
    }
}

/// The encrypted connection after a handshake.
pub(super) struct Secret<S> {
    messages: Messages<S>,
    state: TransportState,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Secret<S> {
    /// Sends bytes, [`MOST`] less 16 at most.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), NodeFailure> {
        let mut out = vec![0; bytes.len() + 16];
        let length = self.state.write_message(bytes, &mut out)?;
        Ok(self.messages.send(out.get(..length).unwrap_or_default()).await?)
    }

    /// Some bytes of the other side.
    pub(super) async fn receive(&mut self) -> Result<Vec<u8>, NodeFailure> {
        let message = self.messages.receive().await?;
        let mut out = vec![0; message.len()];
        let length = self.state.read_message(&message, &mut out)?;
        out.truncate(length);
        Ok(out)
    }
}

#[cfg(test)]
#[path = "noise_tests.rs"]
mod tests;
