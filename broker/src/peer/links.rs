//! Owns the outgoing links, one for each known broker. Never dials (`link` does). Driven by whoever applies
//! the metadata (`set_peer`, `remove_peer`) and by whoever has something to say to another broker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use postrider_protocol::frame;
use postrider_protocol::message::Message;
use postrider_protocol::types::{Incarnation, NodeId};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::link::{self, Common, Link, Live};
use super::{PeerAddress, PeerError, PeerHandler, PeerLocal, PeerOptions};
use crate::net::BufferPool;

/// Spent read buffers that are kept.
const POOL_BYTES_MAX: usize = 8 << 20;

/// See the module.
pub struct PeerLinks {
    common: Arc<Common>,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    runtime: Handle,
}

impl PeerLinks {
    /// No links yet. Their tasks run on the current runtime.
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn new(local: PeerLocal, handler: Arc<dyn PeerHandler>, options: PeerOptions) -> Self {
        let pool = Arc::new(BufferPool::new(POOL_BYTES_MAX));
        Self {
            common: Arc::new(Common { options, handler, local: Mutex::new(local), pool }),
            links: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            runtime: Handle::current(),
        }
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who this broker is from the next dial on.
    pub fn set_local(&self, local: PeerLocal) {
        *self.common.local.lock().unwrap_or_else(PoisonError::into_inner) = local;
    }

    /// Begins to keep a link to a broker, or moves it to another address.
    pub fn set_peer(&self, node: NodeId, address: PeerAddress) {
        let mut links = self.links();
        if let Some(link) = links.get(&node) {
            link.set_address(address);
            return;
        }
        let link = Arc::new(Link::new(node, address, self.stop.child_token()));
        links.insert(node, Arc::clone(&link));
        self.tasks.spawn_on(link::run(link, Arc::clone(&self.common)), &self.runtime);
    }

    /// Ends the link to a broker; its calls end as `Disconnected`, its handler hears nothing.
    pub fn remove_peer(&self, node: NodeId) {
        if let Some(link) = self.links().remove(&node) {
            link.stop.cancel();
        }
    }

    /// The registration of a broker that is connected.
    #[must_use]
    pub fn connected(&self, node: NodeId) -> Option<Incarnation> {
        self.live(node).ok().map(|live| live.incarnation)
    }

    fn live(&self, node: NodeId) -> Result<Live, PeerError> {
        let link = self.links().get(&node).cloned().ok_or(PeerError::UnknownNode(node))?;
        link.live().ok_or(PeerError::NotConnected(node))
    }

    /// Sends a request and waits for its reply; requests are pipelined and may be answered in any order.
    ///
    /// Cancel-safe: dropped, the reply is ignored. Fails at once when the link is down or full.
    ///
    /// # Errors
    /// See [`PeerError`], which says whether the request was sent.
    pub async fn call<Q: Message, R: Message>(
        &self,
        node: NodeId,
        request: &Q,
        within: Duration,
    ) -> Result<R, PeerError> {
        let live = self.live(node)?;
        let body = live.call(request, self.common.options.calls_max, within).await?;
        R::decode(body).map_err(|_error| PeerError::Malformed)
    }

    /// Sends one request to whoever listens at an address, on a connection of its own: a broker that joins
    /// knows addresses, not brokers.
    ///
    /// Cancel-safe: dropped, the connection ends.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn ask<Q: Message, R: Message>(
        &self,
        address: &PeerAddress,
        request: &Q,
        within: Duration,
    ) -> Result<R, PeerError> {
        let body = link::ask(&self.common, address, request, within).await?;
        R::decode(body).map_err(|_error| PeerError::Malformed)
    }

    /// Sends a one-way message.
    ///
    /// # Errors
    /// Not sent: the link is down or full.
    pub fn send<M: Message>(&self, node: NodeId, message: &M) -> Result<(), PeerError> {
        self.send_parts(node, [frame::event(message)])
    }

    /// Sends a frame that is already encoded, in parts that are not copied.
    ///
    /// # Errors
    /// Not sent: the link is down or full.
    pub fn send_parts(
        &self,
        node: NodeId,
        parts: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), PeerError> {
        self.live(node)?.push(parts.into_iter().collect())
    }

    /// Ends all links and waits for their tasks.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for PeerLinks {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl std::fmt::Debug for PeerLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerLinks").field("nodes", &self.links().keys()).finish_non_exhaustive()
    }
}
