//! An API server and an agent that follows it, with the rights of `manifests/base` and no others.
//!
//! What a test asks is always the same: does a client of the node, dialling an address that the API server
//! gave out, meet what the objects say?

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::client::Client;
use super::objects::{node, node_path, service_path};
use super::sandbox::{API_ADDRESS, Agent, NODE, Outcome, Sandbox, eventually};
use super::{ControlPlane, manifests};

/// How long a change may take to reach the kernel. The promise is a fraction of this; a busy machine is not
/// what these tests are about.
const SOON: Duration = Duration::from_secs(20);

/// Connections made to see every endpoint: with three of them, one is missed once in 10^16 times.
const CONNECTIONS: usize = 90;

/// Connections made to see that there is one endpoint alone: with another beside it, that is missed once in 10^7 times.
const CONNECTIONS_TO_ONE: usize = 24;

pub struct Rig<'a> {
    pub sandbox: &'a Sandbox,
    pub plane: ControlPlane,
    /// May do everything.
    pub admin: Client,
    pub agent: Agent,
}

/// ClusterIPs of a Service.
#[derive(Clone, Debug)]
pub struct Vips {
    pub v4: String,
    pub v6: String,
}

impl<'a> Rig<'a> {
    /// Starts both and waits until the agent is healthy.
    pub fn start(sandbox: &'a Sandbox) -> Result<Self> {
        let plane = ControlPlane::start(API_ADDRESS.into(), &sandbox.directory().join("plane"))?;
        let admin = plane.admin();
        create_node(&admin)?;
        Self::resume(sandbox, plane)
    }

    /// Starts an agent on a control plane that is there already.
    pub fn resume(sandbox: &'a Sandbox, plane: ControlPlane) -> Result<Self> {
        let kubeconfig = manifests::install(&plane)?;
        let agent = sandbox.start_agent_until("/healthz", &kubeconfig)?;
        Ok(Self {
            sandbox,
            admin: plane.admin(),
            plane,
            agent,
        })
    }

    /// ClusterIPs the API server gave a dual-stack Service.
    pub fn vips(&self, service: &str) -> Result<Vips> {
        let service = self.admin.get(&service_path(service))?;
        let addresses = service["spec"]["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten();
        let of_family = |is_v6: bool| {
            let mut addresses = addresses.clone().filter_map(|address| address.as_str());
            addresses
                .find(|address| address.contains(':') == is_v6)
                .map(String::from)
        };
        Ok(Vips {
            v4: of_family(false).context("no IPv4 ClusterIP")?,
            v6: of_family(true).context("no IPv6 ClusterIP")?,
        })
    }

    /// Soon, exactly these endpoints answer on port 80 of `address`.
    pub fn expect_answers(&self, address: &str, endpoints: &[&str]) -> Result<()> {
        let expected: BTreeSet<Outcome> = endpoints
            .iter()
            .map(|&name| Outcome::Answer(name.into()))
            .collect();
        self.expect(&format!("{address} is answered by {endpoints:?}"), || {
            let mut met = BTreeSet::new();
            let connections = if endpoints.len() > 1 {
                CONNECTIONS
            } else {
                CONNECTIONS_TO_ONE
            };
            for _ in 0..connections {
                met.insert(self.connect(address)?);
                // One stranger tells as much as many.
                ensure!(met.is_subset(&expected), "met {met:?}");
            }
            ensure!(met == expected, "met {met:?}");
            Ok(true)
        })
    }

    /// Soon, connections to port 80 of `address` are refused.
    pub fn expect_refused(&self, address: &str) -> Result<()> {
        self.expect(&format!("{address} refuses"), || {
            let met = self.connect(address)?;
            ensure!(met == Outcome::Refused, "met {met:?}");
            Ok(true)
        })
    }

    /// Soon, nobody answers at `address`. How the attempt fails is the network's business: the address is no
    /// Service's any more.
    pub fn expect_unserved(&self, address: &str) -> Result<()> {
        self.expect(&format!("{address} is not served"), || {
            let met = self.connect(address)?;
            ensure!(!matches!(met, Outcome::Answer(_)), "met {met:?}");
            Ok(true)
        })
    }

    /// One connection to port 80 of `address`.
    pub fn connect(&self, address: &str) -> Result<Outcome> {
        self.sandbox.connect(address, 80)
    }

    fn expect(&self, what: &str, check: impl FnMut() -> Result<bool>) -> Result<()> {
        eventually(what, SOON, check)
            .with_context(|| format!("the agent's log ends:\n{}", self.agent.log_end()))
    }
}

/// Registers the sandbox's node, as its kubelet would.
pub fn create_node(admin: &Client) -> Result<()> {
    admin.create(&node(NODE))?;
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": API_ADDRESS.to_string()}]}});
    admin.patch(&format!("{}/status", node_path(NODE)), &status)?;
    Ok(())
}
