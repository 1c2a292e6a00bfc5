//! What a cluster is started with; kept beside it, as later commands and the nodes themselves need it.

use std::fmt;
use std::fs;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::place;

/// How the cluster is made.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    /// Nodes; three and six enable tests of topology and distribution, which skip themselves with two.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) nodes: u8,
    /// How pods are connected: a veth each (ptp), or all of a node on one bridge.
    #[arg(long, value_enum, default_value_t = Cni::Ptp)]
    pub(crate) cni: Cni,
    /// Address families of pods and Services.
    #[arg(long, value_enum, default_value_t = Families::Dual)]
    pub(crate) family: Families,
    /// Who serves Services.
    #[arg(long, value_enum, default_value_t = Proxy::Beeline)]
    pub(crate) proxy: Proxy,
    /// A further flag of the agent, like --agent=--socket-lb=off; may be repeated.
    #[arg(long = "agent", value_name = "FLAG", allow_hyphen_values = true)]
    pub(crate) agent: Vec<String>,
    /// Enforce NetworkPolicy objects, with upstream's kube-network-policies.
    #[arg(long)]
    pub(crate) network_policies: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Cni {
    Ptp,
    Bridge,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Families {
    Dual,
    Ipv4,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Proxy {
    /// The DaemonSet of `manifests/`.
    Beeline,
    /// kube-proxy in its nftables mode, to make a baseline.
    #[value(name = "kube-proxy")]
    Upstream,
    None,
}

impl Settings {
    /// A value of IPv4, with one of IPv6 after a comma where there are both.
    pub(super) fn both(&self, v4: &str, v6: &str) -> String {
        match self.family {
            Families::Dual => format!("{v4},{v6}"),
            Families::Ipv4 => v4.to_owned(),
        }
    }

    pub(crate) fn has_one_family(&self) -> bool {
        self.family != Families::Dual
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.nodes
    }

    pub(super) fn save(&self) -> Result<()> {
        let mut text = format!(
            "nodes {}\ncni {}\nfamily {}\nproxy {}\n",
            self.nodes,
            name(self.cni),
            name(self.family),
            name(self.proxy)
        );
        for flag in &self.agent {
            text.push_str(&format!("agent {flag}\n"));
        }
        if self.network_policies {
            text.push_str("network-policies enforced\n");
        }
        fs::write(place::state().join("settings"), text).context("keeping the cluster's settings")
    }

    /// Those of the cluster that is up.
    pub(crate) fn load() -> Result<Option<Self>> {
        match fs::read_to_string(place::state().join("settings")) {
            Ok(text) => Self::read(&text)
                .context("target/cluster/state/settings is not ours: cargo xtask cluster down")
                .map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("reading the cluster's settings"),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let all = |key: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            let values = lines.filter(|(name, _)| *name == key);
            values
                .map(|(_, value)| value.to_owned())
                .collect::<Vec<_>>()
        };
        let one = |key: &str| all(key).into_iter().next();
        Some(Self {
            nodes: one("nodes")?.parse().ok()?,
            cni: Cni::from_str(&one("cni")?, false).ok()?,
            family: Families::from_str(&one("family")?, false).ok()?,
            proxy: Proxy::from_str(&one("proxy")?, false).ok()?,
            agent: all("agent"),
            network_policies: one("network-policies").is_some(),
        })
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cni, family, proxy) = (name(self.cni), name(self.family), name(self.proxy));
        write!(f, "{} nodes, {cni}, {family}, {proxy}", self.nodes)?;
        if self.network_policies {
            f.write_str(", network policies")?;
        }
        self.agent.iter().try_for_each(|flag| write!(f, " {flag}"))
    }
}

/// As it is written on the command line.
fn name(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_were_written() {
        let text = "nodes 3\ncni bridge\nfamily ipv4\nproxy kube-proxy\nagent --socket-lb=off\nagent -x y\n\
                    network-policies enforced\n";
        let settings = Settings {
            nodes: 3,
            cni: Cni::Bridge,
            family: Families::Ipv4,
            proxy: Proxy::Upstream,
            agent: vec!["--socket-lb=off".into(), "-x y".into()],
            network_policies: true,
        };
        assert_eq!(Settings::read(text), Some(settings.clone()));
        assert_eq!(
            settings.to_string(),
            "3 nodes, bridge, ipv4, kube-proxy, network policies --socket-lb=off -x y"
        );
        let without = text.replace("network-policies enforced\n", "");
        assert_eq!(
            Settings::read(&without).map(|settings| settings.network_policies),
            Some(false)
        );
        assert_eq!(Settings::read("nodes 3\n"), None);
    }
}
