//! What a living agent tells `beeline status` about itself, as JSON under `/status`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Refused objects kept by name; further ones are only counted by the metrics.
const REFUSED_KEPT: usize = 100;

/// The agent's own view. Fields may be added, never renamed: an older `beeline status` reads it, too.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// Version of the running agent.
    pub version: String,
    /// Process id, as the agent sees it.
    pub pid: u32,
    /// Name of the node it serves.
    pub node_name: String,
    /// Where cluster objects come from, for people.
    pub source: String,
    /// Whether the source can be read at present.
    pub source_connected: bool,
    /// The first complete picture is in the kernel.
    pub ready: bool,
    /// See [`super::Health::set_node_eligible`].
    pub node_eligible: bool,
    /// RFC 3339; the last time everything received was in the kernel.
    pub last_sync: Option<String>,
    /// Device → why it has no packet programs, where one might expect them.
    pub devices_left_out: BTreeMap<String, String>,
    /// Uplink → why it has no XDP program.
    pub without_xdp: BTreeMap<String, String>,
    /// Object → why it, or a part of it, was refused.
    pub refused: BTreeMap<String, String>,
}

impl AgentStatus {
    /// Remembers an object that was refused, until [`AgentStatus::accepted`].
    pub fn refused(&mut self, object: &str, reason: &str) {
        if self.refused.len() < REFUSED_KEPT || self.refused.contains_key(object) {
            self.refused.insert(object.to_owned(), reason.to_owned());
        }
    }

    /// The object is fine now, or gone.
    pub fn accepted(&mut self, object: &str) {
        self.refused.remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_objects_are_bounded_and_follow_the_latest_reason() {
        let mut status = AgentStatus::default();
        for n in 0..2 * REFUSED_KEPT {
            status.refused(&format!("Service default/s{n:04}"), "no address");
        }
        status.refused("Service default/s0000", "loopback address");
        status.accepted("Service default/s0001");
        assert_eq!(status.refused.len(), REFUSED_KEPT - 1);
        assert_eq!(status.refused["Service default/s0000"], "loopback address");
    }

    #[test]
    fn unknown_and_missing_fields_are_no_error() {
        let read: AgentStatus = serde_json::from_str(r#"{"version":"9","novelty":1}"#).unwrap();
        assert_eq!(
            read,
            AgentStatus {
                version: "9".into(),
                ..AgentStatus::default()
            }
        );
    }
}
