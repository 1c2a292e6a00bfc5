//! Where cluster objects come from: a Kubernetes watch, or a directory of manifests.

use tokio::sync::mpsc;

use crate::snapshot::Event;

/// A source of cluster objects.
///
/// `run` reports a complete list of every kind first (see [`Event`]), then changes, for as long as the
/// receiver lives. Outages are the source's own business: it retries for ever and never reports an object
/// gone because it could not be read (spec J3).
pub trait Source {
    /// Reports events until the receiver is dropped.
    fn run(self, events: mpsc::Sender<Event>) -> impl Future<Output = anyhow::Result<()>>;
}
