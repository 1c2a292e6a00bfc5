//! What a source reports.

use std::sync::Arc;

use super::{Cidr, Node, ObjectName, Service, Slice};

/// A change of the cluster, as a source reports it.
///
/// A source first reports everything that exists between `Begin` and `Complete`. A later `Begin` … `Complete`
/// is a new complete list: what it does not name is gone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    Begin(Kind),
    Complete(Kind),
    /// Changes of this kind cannot be followed at present.
    Lost(Kind),
    /// They can again.
    Found(Kind),
    Service(Box<Service>),
    /// The Service is gone or is no longer ours (headless, ExternalName, hidden by label).
    ServiceGone(ObjectName),
    Slice(Box<Slice>),
    SliceGone(ObjectName),
    Node(Box<Node>),
    NodeGone,
    /// Prefixes of one ServiceCIDR object, replacing its earlier ones.
    ServiceCidr(Arc<str>, Vec<Cidr>),
    ServiceCidrGone(Arc<str>),
}

impl Event {
    /// The kind of the one object that it is about; `None` where it is about a list or a connection.
    pub fn changes(&self) -> Option<Kind> {
        match self {
            Self::Service(_) | Self::ServiceGone(_) => Some(Kind::Services),
            Self::Slice(_) | Self::SliceGone(_) => Some(Kind::Slices),
            Self::Node(_) | Self::NodeGone => Some(Kind::Node),
            Self::ServiceCidr(..) | Self::ServiceCidrGone(_) => Some(Kind::ServiceCidrs),
            Self::Begin(_) | Self::Complete(_) | Self::Lost(_) | Self::Found(_) => None,
        }
    }
}

/// A kind of object a source lists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Services,
    Slices,
    Node,
    ServiceCidrs,
}
