//! How this node's pods are told from other sources (`--detect-local-mode`, spec E6-E10).

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Refused;
use crate::snapshot::Cidr;
use crate::source::address::parse_cidr;

/// What makes a packet one of a local pod.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LocalPods {
    /// It came in by a device that leads to a pod. What kube-proxy's modes approximate.
    #[default]
    Devices,
    /// Its source is in one of these (E6). A family without one has no local pods (E10).
    ClusterCidr(PodCidrs),
    /// Its source is in one of the Node object's `podCIDRs` (E7).
    NodeCidr,
    /// It came in by a port of this bridge (E8).
    Bridge(String),
    /// It came in by a device whose name begins so (E9).
    Prefix(String),
}

/// Address prefixes of pods.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PodCidrs(pub Vec<Cidr>);

/// kube-proxy's names of the modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DetectLocalMode {
    ClusterCidr,
    NodeCidr,
    BridgeInterface,
    InterfaceNamePrefix,
}

impl FromStr for DetectLocalMode {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        match text {
            "ClusterCIDR" => Ok(Self::ClusterCidr),
            "NodeCIDR" => Ok(Self::NodeCidr),
            "BridgeInterface" => Ok(Self::BridgeInterface),
            "InterfaceNamePrefix" => Ok(Self::InterfaceNamePrefix),
            _ => Err(Refused(
                "expected ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix".into(),
            )),
        }
    }
}

impl FromStr for PodCidrs {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let words = text.split(',').map(str::trim).filter(|w| !w.is_empty());
        let cidrs = words.map(|word| {
            parse_cidr(word).filter(|cidr| cidr.length > 0).ok_or_else(|| {
                Refused(format!(
                    "{word:?} is no address prefix; expected one like 10.244.0.0/16, or one of each family \
                     with a comma between"
                ))
            })
        });
        Ok(Self(cidrs.collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for PodCidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, cidr) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{cidr}")?;
        }
        Ok(())
    }
}

impl Serialize for PodCidrs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What the flags say together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Detection {
    pub mode: Option<DetectLocalMode>,
    pub cluster_cidr: Option<PodCidrs>,
    pub bridge: Option<String>,
    pub prefix: Option<String>,
}

impl Detection {
    /// The way meant. Without a mode, a cluster CIDR alone means kube-proxy's default mode.
    pub fn resolve(self) -> Result<LocalPods, Refused> {
        let missing = |flag: &str| Refused(format!("this --detect-local-mode needs {flag}"));
        match (self.mode, self.cluster_cidr) {
            (None, None) => Ok(LocalPods::Devices),
            (None | Some(DetectLocalMode::ClusterCidr), Some(cidrs)) => {
                Ok(LocalPods::ClusterCidr(cidrs))
            }
            (Some(DetectLocalMode::ClusterCidr), None) => {
                Ok(LocalPods::ClusterCidr(PodCidrs::default()))
            }
            (Some(DetectLocalMode::NodeCidr), _) => Ok(LocalPods::NodeCidr),
            (Some(DetectLocalMode::BridgeInterface), _) => {
                let bridge = self.bridge.filter(|name| !name.is_empty());
                bridge
                    .map(LocalPods::Bridge)
                    .ok_or_else(|| missing("--pod-bridge-interface"))
            }
            (Some(DetectLocalMode::InterfaceNamePrefix), _) => {
                let prefix = self.prefix.filter(|name| !name.is_empty());
                prefix
                    .map(LocalPods::Prefix)
                    .ok_or_else(|| missing("--pod-interface-name-prefix"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_flags_devices_tell() {
        assert_eq!(Detection::default().resolve(), Ok(LocalPods::Devices));
    }

    /// Spec E6.
    #[test]
    fn a_cluster_cidr_alone_is_kube_proxys_default_mode() {
        let cidrs: PodCidrs = "10.244.0.0/16, fd44::/32".parse().unwrap();
        let detection = Detection {
            cluster_cidr: Some(cidrs.clone()),
            ..Detection::default()
        };
        assert_eq!(detection.resolve(), Ok(LocalPods::ClusterCidr(cidrs)));
    }

    /// Spec E8, E9.
    #[test]
    fn modes_by_device_need_their_name() {
        for mode in ["BridgeInterface", "InterfaceNamePrefix"] {
            let detection = Detection {
                mode: Some(mode.parse().unwrap()),
                ..Detection::default()
            };
            assert!(detection.resolve().is_err(), "{mode}");
        }
        let detection = Detection {
            mode: Some(DetectLocalMode::InterfaceNamePrefix),
            prefix: Some("cali".into()),
            ..Detection::default()
        };
        assert_eq!(detection.resolve(), Ok(LocalPods::Prefix("cali".into())));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!("clustercidr".parse::<DetectLocalMode>().is_err());
        for wrong in ["10.0.0.0/0", "10.0.0.0", "::/129"] {
            assert!(wrong.parse::<PodCidrs>().is_err(), "{wrong}");
        }
    }
}
