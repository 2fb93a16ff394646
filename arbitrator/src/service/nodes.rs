//! Node records: who owns a node, and where its witness dials it.

use contracts::envelope::Envelope;
use contracts::ids::NodeId;
use contracts::node_record::NodeRecord;

use super::{Error, Result, Service};
use crate::metrics::Metrics;
use crate::store::{Changes, EventBody, NodeRow};

impl Service {
    /// Registers a record signed by node and owner, unless a newer one is there. The same record again changes nothing.
    ///
    /// # Errors
    /// [`Error::Statement`], [`Error::PathMismatch`], [`Error::StaleRecord`], [`Error::OwnerChange`], [`Error::TooManyNodes`].
    pub async fn register_node(&self, id: NodeId, envelope: Envelope) -> Result<NodeRow> {
        let _guard = self.write.lock().await;
        let verified = NodeRecord::verify(&envelope)?;
        if verified.statement.node != id {
            return Err(Error::PathMismatch { field: "node" });
        }
        let row = NodeRow { record: verified.statement, envelope };
        if self.is_news(&row).await? {
            let events = vec![EventBody::NodeRegistered { node: id }];
            self.commit(Changes { at: self.now(), nodes: vec![row.clone()], events, ..Changes::default() }).await?;
            Metrics::count(&self.metrics.statements, "node-record");
        }
        Ok(row)
    }

    /// Whether a verified record is to be stored; false for the same again.
    pub(super) async fn is_news(&self, row: &NodeRow) -> Result<bool> {
        let Some(known) = self.store.node(row.record.node).await? else {
            let room = self.store.node_count().await? < self.nodes_max;
            return if room { Ok(true) } else { Err(Error::TooManyNodes) };
        };
        if known.record == row.record {
            return Ok(false);
        }
        if known.record.owner != row.record.owner {
            return Err(Error::OwnerChange);
        }
        if known.record.record_epoch >= row.record.record_epoch {
            return Err(Error::StaleRecord { known: known.record.record_epoch });
        }
        Ok(true)
    }

    /// # Errors
    /// [`Error::NotFound`].
    pub async fn get_node(&self, id: NodeId) -> Result<NodeRow> {
        self.store.node(id).await?.ok_or(Error::NotFound("node"))
    }
}
