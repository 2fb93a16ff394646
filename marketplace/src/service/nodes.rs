//! The registry: signed records that turn a node's key into addresses.

use contracts::envelope::Envelope;
use contracts::ids::NodeId;
use contracts::node_record::NodeRecord;

use super::{Error, Put, Service, page};
use crate::resource::{Node, Page};
use crate::store::{NodeFilter, Window};

impl Service {
    /// Registers a node or replaces its record by one with a higher epoch; the record must be signed by node and owner.
    ///
    /// # Errors
    /// [`Error::Statement`], [`Error::PathMismatch`], [`Error::StaleRecord`], [`Error::OwnerChange`], [`Error::TooMany`].
    pub async fn register_node(&self, path: NodeId, envelope: Envelope) -> Result<Put<Node>, Error> {
        let record = NodeRecord::verify(&envelope)?;
        let id = record.id;
        let NodeRecord { node, owner, name, role, record_epoch, .. } = record.statement;
        if path != node {
            return Err(Error::PathMismatch { path: path.to_string(), statement: node.to_string() });
        }
        let _one_at_a_time = self.writes.lock().await;
        let counts = self.store.count_nodes(owner).await?;
        match self.store.get_node(node).await? {
            Some(known) if known.record.id() == id => return Ok(Put { value: known, created: false }),
            Some(known) if known.record_epoch >= record_epoch => return Err(Error::StaleRecord { known: known.record_epoch }),
            Some(known) if known.owner != owner && self.store.count_listings(node, known.owner).await?.of_node > 0 => {
                return Err(Error::OwnerChange);
            }
            Some(_) => {}
            None if counts.all >= self.limits.nodes_max => {
                return Err(Error::TooMany { what: "registered nodes", max: self.limits.nodes_max });
            }
            None if counts.of_owner >= self.limits.nodes_per_owner_max => {
                return Err(Error::TooMany { what: "registered nodes of one owner", max: self.limits.nodes_per_owner_max });
            }
            None => {}
        }
        let value = Node { id: node, owner, name, role, record_epoch, registered_at: self.clock.wall(), record: envelope };
        self.store.register_node(&value).await?;
        self.metrics.count_statement("node_record");
        Ok(Put { value, created: true })
    }

    /// # Errors
    /// [`Error::NotFound`].
    pub async fn get_node(&self, id: NodeId) -> Result<Node, Error> {
        self.store.get_node(id).await?.ok_or_else(|| Error::NotFound(format!("no node {id} is registered")))
    }

    /// # Errors
    /// [`Error::Store`].
    pub async fn list_nodes(&self, filter: NodeFilter, window: Window) -> Result<Page<Node>, Error> {
        Ok(page(self.store.list_nodes(filter, window).await?, window.limit))
    }
}
