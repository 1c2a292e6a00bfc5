//! What a run of the fuzzer does: tables, then steps. Nothing in it depends on what the programs choose, so it can be
//! repeated, shortened and kept.

use serde::{Deserialize, Serialize};

use crate::oracle::packet::Hook;
use crate::oracle::packet::tables::Tables;

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Script {
    pub tables: Tables,
    /// Whether frames from outside meet XDP first.
    #[serde(default)]
    pub xdp: bool,
    pub steps: Vec<Step>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Step {
    /// A frame meets a program.
    Frame {
        hook: Hook,
        from: From,
        edits: Vec<Edit>,
    },
    /// Everything that has a time gets older.
    Wait(i64),
    Change(Change),
}

/// Where a frame comes from. Steps are counted from 0, changes and waits included; what came out of a step that
/// dropped its frame is nothing, and a step that needs it is left out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum From {
    Bytes(#[serde(with = "hexadecimal")] Vec<u8>),
    /// What came out of a step, as it is.
    Onward(usize),
    /// The other side's answer to what came out of a step.
    Reply(usize, Speech),
    /// More from the sender of a step, as it was sent.
    Again(usize, Speech),
    /// An ICMP error about what came out of a step, by its receiver or by a router.
    Complaint(usize, Complaint),
}

/// What a further packet of a conversation says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Speech {
    /// TCP flags.
    pub flags: u8,
    #[serde(with = "hexadecimal")]
    pub data: Vec<u8>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Complaint {
    pub kind: u8,
    pub code: u8,
    /// A router's address stands as the source, not the receiver's.
    pub by_router: bool,
    /// Bytes of the packet that are quoted.
    pub quoted: usize,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Edit {
    /// Changes bits of one byte.
    Flip(usize, u8),
    /// Ends the frame there.
    Cut(usize),
    /// Makes all checksums right again.
    Seal,
}

/// What happens to a Service; numbers are places in the tables' lists.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// The endpoint is gone.
    EndpointGone(usize, usize),
    /// The endpoint serves on, but new conversations go elsewhere.
    EndpointLeaves(usize, usize),
    /// It is back in the cluster set.
    EndpointBack(usize, usize),
    /// The Service is deleted; its addresses linger.
    ServiceGone(usize),
}

impl Change {
    /// Carries the change out, as the agent would.
    pub fn apply(self, tables: &mut Tables) {
        let service = match self {
            Self::EndpointGone(s, _)
            | Self::EndpointLeaves(s, _)
            | Self::EndpointBack(s, _)
            | Self::ServiceGone(s) => s,
        };
        let Some(service) = tables.services.get_mut(service) else {
            return;
        };
        match self {
            Self::EndpointGone(_, e) => {
                if let Some(endpoint) = service.endpoints.get_mut(e) {
                    (endpoint.in_cluster, endpoint.in_local) = (false, false);
                    endpoint.serving = false;
                    endpoint.generation += 1;
                }
            }
            Self::EndpointLeaves(_, e) => {
                if let Some(endpoint) = service.endpoints.get_mut(e) {
                    (endpoint.in_cluster, endpoint.in_local) = (false, false);
                }
            }
            Self::EndpointBack(_, e) => {
                if let Some(endpoint) = service.endpoints.get_mut(e) {
                    (endpoint.in_cluster, endpoint.serving) = (true, true);
                    endpoint.in_local = endpoint.local;
                }
            }
            Self::ServiceGone(_) => {
                for endpoint in &mut service.endpoints {
                    (endpoint.in_cluster, endpoint.in_local) = (false, false);
                    endpoint.serving = false;
                    endpoint.generation += 1;
                }
                let gone = service.frontends.iter().filter_map(|f| f.address);
                tables.lingering.extend(gone);
                service.frontends.clear();
            }
        }
    }
}

/// Bytes as two digits each, so that fixtures can be read and pasted.
mod hexadecimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&crate::oracle::packet::hex(bytes))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        (0..text.len() / 2)
            .map(|at| {
                let digits = text.get(2 * at..2 * at + 2).unwrap_or("?");
                u8::from_str_radix(digits, 16).map_err(D::Error::custom)
            })
            .collect()
    }
}
