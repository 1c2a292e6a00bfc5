//! A pod: a namespace behind a node's veth, and the place its processes run in.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use lb_agent::snapshot::Family;

use crate::address;
use crate::netns::Namespace;
use crate::process::Place;
use crate::scope::Scope;
use crate::traffic::Peer;

/// A pod of a cluster.
#[derive(Debug)]
pub struct Pod {
    node: u8,
    index: u8,
    namespace: Namespace,
    place: Option<Place>,
}

impl Pod {
    pub(crate) fn new(scope: &Scope, node: u8, index: u8) -> Self {
        let namespace = Namespace::named(scope.namespace(&format!("node{node}-pod{index}")));
        Self {
            node,
            index,
            namespace,
            place: None,
        }
    }

    pub(crate) fn put_into(&mut self, cgroup: PathBuf) {
        self.place = Some(Place {
            namespace: self.namespace.clone(),
            cgroup,
        });
    }

    /// `node1-pod2`: also what servers in the pod call themselves.
    pub fn name(&self) -> String {
        format!("node{}-pod{}", self.node, self.index)
    }

    /// The number of the pod's node.
    pub fn node(&self) -> u8 {
        self.node
    }

    /// The pod's number on its node, from 1.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The pod's address.
    pub fn address(&self, family: Family) -> IpAddr {
        address::pod(family, self.node, self.index)
    }

    /// The pod's address with a port.
    pub fn socket(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// The pod's network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where the pod's processes run.
    pub fn place(&self) -> Result<&Place> {
        self.place.as_ref().context("the pod has no cgroup yet")
    }

    /// A process in the pod.
    pub fn peer(&self) -> Result<Peer> {
        let addresses = address::FAMILIES.map(|family| self.address(family));
        Peer::start(&self.name(), self.place()?, &addresses)
    }

    /// A process in the pod that serves these TCP and UDP ports in both families.
    pub fn serve(&self, tcp: &[u16], udp: &[u16]) -> Result<Peer> {
        let peer = self.peer()?;
        peer.serve(tcp, udp)?;
        Ok(peer)
    }
}
