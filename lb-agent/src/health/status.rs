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
    /// These objects are refused, and no others.
    pub fn set_refused(&mut self, refused: BTreeMap<String, String>) {
        self.refused = refused.into_iter().take(REFUSED_KEPT).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_objects_are_bounded() {
        let mut status = AgentStatus::default();
        let object = |n| (format!("Service default/s{n:04}"), "no address".to_owned());
        status.set_refused((0..2 * REFUSED_KEPT).map(object).collect());
        assert_eq!(
            status.refused,
            (0..REFUSED_KEPT).map(object).collect::<BTreeMap<_, _>>()
        );
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
