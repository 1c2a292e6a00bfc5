//! The real kube-controller-manager, with those of its controllers that a test names.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::client::Client;
use super::process::Process;
use super::{ControlPlane, build, program};

const PROGRAM: &str = "kube-controller-manager";

/// Arguments of an API server that takes pods without a ServiceAccount, as no controller makes one here.
pub const FOR_PODS: &[&str] = &["--disable-admission-plugins=ServiceAccount"];

/// Makes EndpointSlices from pods.
pub const SLICES: &str = "endpointslice-controller";
/// Makes EndpointSlices from Endpoints that somebody wrote by hand.
pub const MIRROR: &str = "endpointslice-mirroring-controller";
/// Takes new ServiceCIDRs into use.
pub const RANGES: &str = "service-cidr-controller";

/// Running controllers. They end with the value.
pub struct Controllers {
    process: Process,
}

impl Controllers {
    /// Starts some for a control plane; `directory` is for their log.
    pub fn start(plane: &ControlPlane, directory: &Path, names: &[&str]) -> Result<Self> {
        build(&[PROGRAM])?;
        let kubeconfig = plane.kubeconfig("controllers.kubeconfig", "admin")?;
        let process = Process::start(
            directory,
            Command::new(program(PROGRAM))
                .arg("--kubeconfig")
                .arg(kubeconfig)
                .arg(format!("--controllers={}", names.join(",")))
                .args([
                    "--leader-elect=false",
                    // Nobody asks them anything.
                    "--secure-port=0",
                    // Else changes of pods are gathered for as long as they keep coming.
                    "--endpointslice-updates-batch-period=0s",
                ]),
        )?;
        Ok(Self { process })
    }

    /// Fails with the end of their log if they have ended.
    pub fn check_alive(&mut self) -> Result<()> {
        self.process.check_alive()
    }
}

/// A pod as a test writes it, in a kubelet's place.
#[derive(Clone, Copy, Debug)]
pub struct RunningPod<'a> {
    pub name: &'a str,
    pub node: &'a str,
    pub addresses: &'a [&'a str],
    /// Number of its container port `http`.
    pub port: u16,
}

impl RunningPod<'_> {
    /// Creates it, labelled `app`, running and ready.
    pub fn create(&self, admin: &Client, app: &str) -> Result<()> {
        admin.create(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": "default", "labels": {"app": app},
                // Keeps a deleted pod there, terminating, until the test is done with it.
                "finalizers": ["beeline.test/held"]},
            "spec": {"nodeName": self.node, "containers": [{
                "name": "server", "image": "none",
                "ports": [{"name": "http", "containerPort": self.port}],
            }]},
        }))?;
        let addresses: Vec<Value> = self.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        self.set_status(
            admin,
            &json!({
                "phase": "Running",
                "podIP": self.addresses[0], "podIPs": addresses,
                "conditions": [{"type": "Ready", "status": "True"}],
            }),
        )
    }

    /// Evicts it.
    pub fn fail(&self, admin: &Client) -> Result<()> {
        // A pod that failed is not ready: of its phase alone the controller takes no notice.
        self.set_status(
            admin,
            &json!({
                "phase": "Failed", "reason": "Evicted",
                "conditions": [{"type": "Ready", "status": "False"}],
            }),
        )
    }

    /// Fails its readiness probe from now on.
    pub fn become_unready(&self, admin: &Client) -> Result<()> {
        let conditions = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        self.set_status(admin, &conditions)
    }

    /// Changes its status, as its kubelet would.
    fn set_status(&self, admin: &Client, status: &Value) -> Result<()> {
        admin.patch(
            &format!("{}/status", self.path()),
            &json!({"status": status}),
        )?;
        Ok(())
    }

    /// Asks for its end; it terminates from now on.
    pub fn terminate(&self, admin: &Client) -> Result<()> {
        admin.delete(&self.path())?;
        Ok(())
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/default/pods/{}", self.name)
    }
}
