//! The end of the chain: one connection to the node for one call.

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use qudag_core::rpc::Codec;
use qudag_filter_api::FilterError;
use qudag_filter_common::connect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::{RpcCall, RpcReply, RpcSettings};

/// Calls the node.
///
/// # Errors
/// [`FilterError::Connect`], [`FilterError::Resolve`], [`FilterError::Timeout`], and [`FilterError::Upstream`] when the node
/// closes without a reply, as it does with clients over its own rate limit, or its reply is no frame.
pub(crate) async fn send(call: RpcCall, settings: Arc<RpcSettings>) -> Result<RpcReply, FilterError> {
    let limit = settings.listener.request_timeout.0;
    timeout(limit, exchange(call, &settings)).await.unwrap_or(Err(FilterError::Timeout { after: limit }))
}

async fn exchange(call: RpcCall, settings: &RpcSettings) -> Result<RpcReply, FilterError> {
    let length = u32::try_from(call.body.len())
        .map_err(|_| FilterError::Malformed("the request is longer than a frame".into()))?;
    let mut stream = connect(&settings.node, &*settings.resolve, settings.listener.connect_timeout.0).await?;
    let length = length.to_be_bytes();
    let mut request = Buf::chain(&length[..], call.body);
    stream.write_all_buf(&mut request).await.map_err(|why| failed("while it was sent the request", &why))?;
    let codec = Codec::default();
    let mut received = BytesMut::new();
    loop {
        if let Some(body) =
            codec.decode(&mut received).map_err(|why| FilterError::Upstream(why.to_string().into()))?
        {
            return Ok(RpcReply { body });
        }
        let read = stream
            .read_buf(&mut received)
            .await
            .map_err(|why| failed("before its reply was complete", &why))?;
        if read == 0 {
            return Err(match codec.end(&received) {
                Ok(()) => FilterError::Upstream("closed without an answer".into()),
                Err(why) => FilterError::Upstream(why.to_string().into()),
            });
        }
    }
}

fn failed(when: &str, why: &std::io::Error) -> FilterError {
    FilterError::Upstream(format!("broke off {when}: {why}").into())
}
