//! A peer as a source of blocks: the routes `/peer/v1/content/{cid}` over authenticated streams.

use async_trait::async_trait;
use axum::body::Bytes;
use contracts::ids::NodeId;
use futures_util::TryStreamExt as _;
use storage::{BLOCK_BYTES_MAX, BlockSource, CarStream, Cid, SourceError};

use crate::edge2edge::client::{Client, Error};

/// One peer.
#[derive(Debug, Clone)]
pub struct PeerSource {
    client: Client,
    peer: NodeId,
}

impl PeerSource {
    #[must_use]
    pub const fn new(client: Client, peer: NodeId) -> Self {
        Self { client, peer }
    }
}

fn failed(error: Error) -> SourceError {
    match error {
        Error::Refused(problem) if problem.status == 404 => SourceError::NotFound,
        other => SourceError::Failed(Box::new(other)),
    }
}

#[async_trait]
impl BlockSource for PeerSource {
    async fn block(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        let body = self.client.stream(self.peer, &format!("/peer/v1/content/{cid}?format=raw")).await.map_err(failed)?;
        axum::body::to_bytes(body, BLOCK_BYTES_MAX).await.map_err(|e| SourceError::Failed(Box::new(e)))
    }

    async fn car(&self, root: &Cid) -> Result<CarStream, SourceError> {
        let body = self.client.stream(self.peer, &format!("/peer/v1/content/{root}?format=car")).await.map_err(failed)?;
        Ok(Box::pin(body.into_data_stream().map_err(|e| storage::Error::Stream(std::io::Error::other(e)))))
    }
}
