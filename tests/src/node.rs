//! A node: a namespace with pods behind it, a cgroup, a bpffs and a directory of manifests of its own.

use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io, ptr};

use anyhow::{Context as _, Result, ensure};
use lb_agent::snapshot::Family;

use crate::agent::{self, Agent, Settings, SocketLb, Source};
use crate::manifests::{Manifests, NodeObject};
use crate::netns::Namespace;
use crate::pod::Pod;
use crate::process::Place;
use crate::scope::Scope;
use crate::traffic::Peer;
use crate::wait::eventually;
use crate::{address, cgroup};

/// Where many agents start at once, the kernel's verifier is what they wait for.
const ATTACHED_WITHIN: Duration = Duration::from_secs(30);

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    number: u8,
    namespace: Namespace,
    pods: Vec<Pod>,
    directory: PathBuf,
    cgroup: Option<PathBuf>,
    manifests: Manifests,
    agent: Option<Mutex<Agent>>,
}

impl Node {
    pub(crate) fn new(scope: &Scope, number: u8, pods: u8) -> Self {
        let name = format!("node{number}");
        let directory = scope.directory().join(&name);
        Self {
            number,
            namespace: Namespace::named(scope.namespace(&name)),
            pods: (1..=pods)
                .map(|index| Pod::new(scope, number, index))
                .collect(),
            manifests: Manifests::new(directory.join("manifests")),
            directory,
            cgroup: None,
            agent: None,
        }
    }

    /// Creates what is not a link: cgroups, the bpffs, the Node object.
    pub(crate) fn prepare(&mut self, scope: &Scope) -> Result<()> {
        let path = scope.cgroup()?.join(self.name());
        cgroup::create(&path, &["pods", "host", "agent"])?;
        for pod in &mut self.pods {
            pod.put_into(path.join("pods"));
        }
        self.cgroup = Some(path);
        fs::create_dir_all(self.manifests.directory())
            .context("creating the directory of manifests")?;
        fs::create_dir_all(self.bpffs()).context("creating the mount point of bpffs")?;
        mount_bpffs(&self.bpffs())?;
        self.manifests.publish(&NodeObject::of(self.number))
    }

    /// `node1` and so on.
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// The node's number, from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The node's address on the LAN.
    pub fn address(&self, family: Family) -> IpAddr {
        address::node(family, self.number)
    }

    /// The node's network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The pods on this node.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The objects this node's agent sees.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Where this node's BPF file system is mounted.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// What is pinned in the node's BPF file system.
    pub fn pins(&self) -> Result<Vec<String>> {
        // The kernel puts these two into every bpffs (bpf_preload).
        let own = ["maps.debug", "progs.debug"];
        let entries = fs::read_dir(self.bpffs()).context("reading the bpffs")?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| !own.contains(&name.as_str())).collect())
    }

    /// The cgroup that holds the node's pods, host processes and agent.
    pub fn cgroup(&self) -> Result<&Path> {
        self.cgroup.as_deref().context("the node has no cgroup yet")
    }

    /// Where host processes run.
    pub fn place(&self) -> Result<Place> {
        Ok(Place {
            namespace: self.namespace.clone(),
            cgroup: self.cgroup()?.join("host"),
        })
    }

    /// Where the node keeps files of its own.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A host process, outside of all pods.
    pub fn peer(&self) -> Result<Peer> {
        let addresses = address::FAMILIES.map(|family| self.address(family));
        Peer::start(&self.name(), &self.place()?, &addresses)
    }

    /// Starts an agent on the node that follows the node's manifests.
    pub fn start_agent(&mut self, socket_lb: SocketLb, arguments: &[String]) -> Result<()> {
        let manifests = Source::Manifests(self.manifests.directory().to_owned());
        self.start_agent_on(manifests, socket_lb, arguments)
    }

    /// Starts an agent on the node.
    pub fn start_agent_on(
        &mut self,
        source: Source,
        socket_lb: SocketLb,
        arguments: &[String],
    ) -> Result<()> {
        let cgroup = self.cgroup()?.to_owned();
        let settings = Settings {
            node: self.name(),
            place: Place {
                namespace: self.namespace.clone(),
                cgroup: cgroup.join("agent"),
            },
            source,
            bpffs: self.bpffs(),
            cgroup,
            log: self.directory.join("agent.log"),
            socket_lb,
            arguments: arguments.to_vec(),
        };
        self.agent = Some(Mutex::new(Agent::start(settings)?));
        Ok(())
    }

    /// The node's agent: a guard, so that it can be killed while traffic is borrowed from the cluster.
    pub fn agent(&self) -> Result<MutexGuard<'_, Agent>> {
        let agent = self
            .agent
            .as_ref()
            .context("no agent was started on this node")?;
        Ok(agent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a health-check port says at the node's own address, for this node's processes.
    pub fn health_check(&self, port: u16) -> Result<String> {
        let to = SocketAddr::new(self.address(Family::V4), port);
        self.namespace.run(|| Ok(agent::get(to, "/")?))
    }

    /// Waits until the agent has its programs on a device that came after it: the first without a link-layer header
    /// may have to wait for the kernel to take them.
    pub fn wait_attached(&self, device: &str) -> Result<()> {
        let told = format!("attached=[\"{device}\"]");
        let what = format!("node {}'s device {device} has programs", self.number);
        eventually(&what, ATTACHED_WITHIN, || {
            Ok(self.agent()?.log_contains(&told).then_some(()))
        })
    }
}

fn mount_bpffs(directory: &Path) -> Result<()> {
    let path = CString::new(directory.as_os_str().as_encoded_bytes())?;
    // SAFETY: all pointers are valid C strings that outlive the call, and bpf takes no data.
    let result = unsafe {
        libc::mount(
            c"bpffs".as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            0,
            ptr::null(),
        )
    };
    ensure!(
        result == 0,
        "mounting bpffs on {}: {}",
        directory.display(),
        io::Error::last_os_error()
    );
    Ok(())
}
