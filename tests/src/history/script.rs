//! A history, as it is made up and kept in a file.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_agent::snapshot;
use serde::{Deserialize, Serialize};

/// The name our node goes by.
pub const OWN_NODE: &str = "node-a";

/// What happens to a cluster and to the agent that follows it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Script {
    pub steps: Vec<Step>,
}

/// One thing that happens. No watch is connected at first: a list connects it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Step {
    /// The server stores an object.
    Put(Object),
    /// The server drops one.
    Remove(Key),
    /// A watch ends; what happens from here on is not told.
    Disconnect(Watch),
    /// A complete list, in an order of the seed. If it breaks, the first attempt ends half-way.
    List {
        watch: Watch,
        seed: u64,
        breaks: bool,
    },
    /// The watch goes back by some events, and tells them again.
    Replay { watch: Watch, events: usize },
    /// The agent writes what is due, Services in an order of the seed.
    Write { seed: u64 },
    /// It tries to, and one write fails, as of a full table.
    Fail { seed: u64, at: usize },
    /// It dies after some writes, and another one starts.
    Crash { seed: u64, after: usize },
    /// The grace period of all that was retired is over.
    Release,
    /// Seconds pass, and the agent ends what has outlived its time.
    Wait(u32),
}

/// A kind of object, and the watch that tells of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Watch {
    Services,
    Slices,
    Node,
}

/// Identity of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Key {
    pub watch: Watch,
    pub namespace: String,
    pub name: String,
}

/// An object as the server has it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Object {
    Service(Box<core::Service>),
    Slice(Box<discovery::EndpointSlice>),
    Node(Box<core::Node>),
}

impl Watch {
    pub const ALL: [Self; 3] = [Self::Services, Self::Slices, Self::Node];

    /// In the agent's words.
    pub fn kind(self) -> snapshot::Kind {
        match self {
            Self::Services => snapshot::Kind::Services,
            Self::Slices => snapshot::Kind::Slices,
            Self::Node => snapshot::Kind::Node,
        }
    }
}

impl Object {
    pub fn watch(&self) -> Watch {
        match self {
            Self::Service(_) => Watch::Services,
            Self::Slice(_) => Watch::Slices,
            Self::Node(_) => Watch::Node,
        }
    }

    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(service) => &service.metadata,
            Self::Slice(slice) => &slice.metadata,
            Self::Node(node) => &node.metadata,
        }
    }

    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        Key {
            watch: self.watch(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// A kept script.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Fixture {
    /// What went wrong, or what must hold.
    pub about: Vec<String>,
    pub script: Script,
}

impl Fixture {
    pub fn read(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("reading a kept history")
    }

    pub fn text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}
