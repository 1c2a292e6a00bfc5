//! Names, addresses and directories of the cluster.

use std::path::PathBuf;

/// Begins the name of everything the cluster makes outside its own namespaces: network namespaces and cgroups.
pub(crate) const PREFIX: &str = "beeline-";

/// Network of the nodes: `.1` is the router, `.10` the control plane, `.11` the first node.
pub(super) const LAN4: &str = "172.30.0";
pub(super) const LAN6: &str = "fd30:";
/// Pods of node N: `10.244.N.0/24`, `fd44:N::/64`.
pub(super) const PODS4: &str = "10.244";
pub(super) const PODS6: &str = "fd44";
/// Clients outside the cluster: `.1` is the router, `.2` is where the tests run.
pub(super) const OUTSIDE4: &str = "192.168.230";
pub(super) const OUTSIDE6: &str = "fd31:";
/// Addresses of load balancers.
pub(super) const BALANCERS4: &str = "192.168.231";
pub(super) const SERVICES4: &str = "10.96.0.0/16";
pub(super) const SERVICES6: &str = "fd96::/112";
/// ClusterIP of the Service `kubernetes`.
pub(super) const API_SERVICE4: &str = "10.96.0.1";
pub(super) const DNS4: &str = "10.96.0.10";

/// The API server as nodes and tests reach it.
pub(super) fn api_server() -> String {
    format!("https://{LAN4}.10:6443")
}

pub(crate) fn node(number: u8) -> String {
    format!("{PREFIX}node{number}")
}

/// Name of the router's network namespace; the load balancers' routes are there.
pub(super) fn router() -> String {
    format!("{PREFIX}lan")
}

pub(super) fn control_plane() -> String {
    format!("{PREFIX}control")
}

/// Name of the network namespace outside the cluster.
pub(crate) fn outside() -> String {
    format!("{PREFIX}outside")
}

/// Everything built or running is below it.
pub(crate) fn home() -> PathBuf {
    crate::target().join("cluster")
}

pub(crate) fn program(name: &str) -> PathBuf {
    home().join("bin").join(name)
}

/// Gone with the cluster.
pub(crate) fn state() -> PathBuf {
    home().join("state")
}

pub(super) fn log(name: &str) -> PathBuf {
    state().join("log").join(format!("{name}.log"))
}

/// Directory of one node that outlives its reboot.
pub(super) fn disk(number: u8) -> PathBuf {
    state().join(format!("node{number}"))
}

pub(crate) fn kubeconfig() -> PathBuf {
    state().join("admin.kubeconfig")
}

/// Unpacked Debian packages that nodes use: runc and the CNI plugins.
pub(super) fn host_tools() -> PathBuf {
    home().join("root/host")
}
