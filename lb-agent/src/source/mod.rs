//! Where cluster objects come from: a Kubernetes watch, or a directory of manifests.
//!
//! Both hand API objects to one [`convert::Converter`], so they mean the same whatever way they came.

use tokio::sync::mpsc;

use crate::snapshot::Event;

pub mod address;
mod api_server;
mod catalog;
mod connection;
pub mod convert;
mod credentials;
pub mod directory;
pub mod intern;
pub mod kubernetes;
mod manifest;
mod outage;
pub mod refused;

pub use convert::Options;
pub use directory::DirectorySource;
pub use kubernetes::KubernetesSource;
pub use refused::Refused;

/// A source of cluster objects.
///
/// `run` reports a complete list of every kind first (see [`Event`]), then changes, for as long as the
/// receiver lives. Outages are the source's own business: it retries for ever and never reports an object
/// gone because it could not be read (spec J3).
pub trait Source {
    /// Reports events until the receiver is dropped.
    fn run(self, events: mpsc::Sender<Event>) -> impl Future<Output = anyhow::Result<()>>;
}
