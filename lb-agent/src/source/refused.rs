//! What was refused from the cluster's objects: counted, and told once per object and value.
//!
//! A slice may be reported ten times a second. Its bad address is worth one line, and again only after it was
//! gone. Text from objects is escaped and cut before it gets here or into the log.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use tracing::warn;

use super::address::Unusable;
use crate::snapshot::ObjectName;

/// Lines about one object. A hostile one could ask for thousands.
const LINES: usize = 8;

/// Bytes of a foreign text that go to the log.
const SHOWN: usize = 80;

/// How much was refused since the start; each object and value counts once while it stays.
#[derive(Default, Debug)]
pub struct Refused {
    /// Addresses of services, endpoints and nodes.
    pub addresses: AtomicU64,
    /// Port numbers, and ports whose name is taken.
    pub ports: AtomicU64,
    pub protocols: AtomicU64,
    /// Source ranges, pod CIDRs, service CIDRs.
    pub prefixes: AtomicU64,
    /// Whole objects: their names are none.
    pub objects: AtomicU64,
}

impl Refused {
    /// What was refused and how often.
    pub fn totals(&self) -> [(&'static str, u64); 5] {
        [
            ("address", self.addresses.load(Relaxed)),
            ("port", self.ports.load(Relaxed)),
            ("protocol", self.protocols.load(Relaxed)),
            ("prefix", self.prefixes.load(Relaxed)),
            ("object", self.objects.load(Relaxed)),
        ]
    }
}

/// The kinds of object we read, by their Kubernetes names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum ObjectKind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::Service => "Service",
            ObjectKind::EndpointSlice => "EndpointSlice",
            ObjectKind::Node => "Node",
            ObjectKind::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// Something in an object that is not used. `field` is its path in the object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Finding {
    pub field: &'static str,
    /// Escaped, see [`shown`].
    pub value: String,
    pub fault: Fault,
}

/// What is wrong with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Fault {
    Address(Unusable),
    Port,
    DuplicatePort,
    Protocol,
    /// A port of a protocol that is not translated.
    Untranslated,
    Prefix,
    /// A name that Kubernetes would not accept; the whole object is refused.
    Name,
    /// `healthCheckNodePort` is 0 where it must be set (A23).
    NoHealthCheckPort,
    /// An affinity timeout outside 1..=86400 (A24).
    AffinityTimeout,
}

impl Fault {
    /// What happened, why, and what the operator should do.
    fn explain(self) -> (&'static str, String) {
        let (event, hint) = match self {
            Fault::Address(why) => {
                let hint = format!("it {why}; set an address that other nodes can reach");
                return ("refused an address", hint);
            }
            Fault::Port => ("refused a port", "set a number from 1 to 65535"),
            Fault::DuplicatePort => (
                "refused a port",
                "give each port of a protocol a name of its own",
            ),
            Fault::Protocol => ("refused a port", "set its protocol to TCP, UDP or SCTP"),
            Fault::Untranslated => (
                "does not serve a port",
                "SCTP is not translated: clients can only dial the pods' own addresses, which a headless Service tells them",
            ),
            Fault::Prefix => ("ignored a prefix", "write it as ADDRESS/LENGTH"),
            Fault::Name => (
                "refused an object",
                "names are letters, digits, '-', '.' and '_', at most 63 of them (253 for nodes, slices, ServiceCIDRs)",
            ),
            Fault::NoHealthCheckPort => (
                "no health check for a load balancer",
                "externalTrafficPolicy Local needs spec.healthCheckNodePort; the API server sets it when the type changes",
            ),
            Fault::AffinityTimeout => (
                "adjusted a session affinity timeout",
                "set 1 to 86400 seconds",
            ),
        };
        (event, hint.into())
    }

    fn counter(self, refused: &Refused) -> Option<&AtomicU64> {
        match self {
            Fault::Address(_) => Some(&refused.addresses),
            Fault::Port | Fault::DuplicatePort => Some(&refused.ports),
            Fault::Protocol | Fault::Untranslated => Some(&refused.protocols),
            Fault::Prefix => Some(&refused.prefixes),
            Fault::Name => Some(&refused.objects),
            Fault::NoHealthCheckPort | Fault::AffinityTimeout => None,
        }
    }
}

/// Foreign text fit for a log line: control characters escaped, cut to a length.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        if shown.len() >= SHOWN {
            shown.push('…');
            break;
        }
        if character.is_ascii() {
            shown.extend(character.escape_default());
        } else {
            shown.extend(character.escape_unicode());
        }
    }
    shown
}

/// What was told already about objects that still exist.
pub(super) struct Complaints {
    refused: Arc<Refused>,
    told: HashMap<(ObjectKind, ObjectName), HashSet<u64>>,
    hasher: RandomState,
}

impl Complaints {
    pub(super) fn new(refused: Arc<Refused>) -> Self {
        Self {
            refused,
            told: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// Counts and tells what is new among the findings of an object, and remembers all of them.
    pub(super) fn settle(&mut self, kind: ObjectKind, name: &ObjectName, findings: Vec<Finding>) {
        if findings.is_empty() {
            return self.forget(kind, name);
        }
        let told = self.told.remove(&(kind, name.clone())).unwrap_or_default();
        let mut current = HashSet::new();
        let mut new = 0;
        for finding in &findings {
            let mark = self.hasher.hash_one(finding);
            if !current.insert(mark) || told.contains(&mark) {
                continue;
            }
            if let Some(counter) = finding.fault.counter(&self.refused) {
                counter.fetch_add(1, Relaxed);
            }
            if new < LINES {
                tell(kind, name, finding);
            }
            new += 1;
        }
        if new > LINES {
            warn!(object = %label(kind, name), more = new - LINES, "refused more of this object: see the lines before");
        }
        self.told.insert((kind, name.clone()), current);
    }

    /// The object is gone, or is in order again.
    pub(super) fn forget(&mut self, kind: ObjectKind, name: &ObjectName) {
        if !self.told.is_empty() {
            self.told.remove(&(kind, name.clone()));
        }
    }
}

fn tell(kind: ObjectKind, name: &ObjectName, finding: &Finding) {
    let (event, hint) = finding.fault.explain();
    warn!(object = %label(kind, name), field = finding.field, value = %finding.value, %hint, "{event}");
}

fn label(kind: ObjectKind, name: &ObjectName) -> String {
    if name.namespace.is_empty() {
        format!("{kind} {}", name.name)
    } else {
        format!("{kind} {}/{}", name.namespace, name.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(value: &str) -> Finding {
        Finding {
            field: "endpoints",
            value: value.into(),
            fault: Fault::Address(Unusable::Loopback),
        }
    }

    #[test]
    fn each_object_and_value_counts_once_while_it_stays() {
        let refused = Arc::new(Refused::default());
        let mut complaints = Complaints::new(refused.clone());
        let name = ObjectName {
            namespace: "shop".into(),
            name: "web".into(),
        };
        let mut settle = |values: &[&str]| {
            complaints.settle(
                ObjectKind::EndpointSlice,
                &name,
                values.iter().copied().map(finding).collect(),
            );
            refused.addresses.load(Relaxed)
        };
        assert_eq!(settle(&["127.0.0.1", "127.0.0.1"]), 1);
        assert_eq!(settle(&["127.0.0.1"]), 1);
        assert_eq!(settle(&["127.0.0.1", "127.0.0.2"]), 2);
        assert_eq!(settle(&[]), 2);
        assert_eq!(settle(&["127.0.0.1"]), 3, "it was gone in between");
        assert_eq!(complaints.told.len(), 1);
        complaints.forget(ObjectKind::EndpointSlice, &name);
        assert!(complaints.told.is_empty());
    }

    #[test]
    fn foreign_text_is_escaped_and_cut() {
        assert_eq!(
            shown("a\nb\u{1b}[31m\u{202e}é"),
            "a\\nb\\u{1b}[31m\\u{202e}\\u{e9}"
        );
        assert!(shown(&"x".repeat(100_000)).len() < 100);
    }
}
