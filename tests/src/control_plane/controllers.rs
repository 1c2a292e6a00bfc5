//! The real kube-controller-manager, with the one controller that makes EndpointSlices from pods.

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

/// A running controller. It ends with the value.
pub struct Controllers {
    process: Process,
}

impl Controllers {
    /// Starts it for a control plane; `directory` is for its log.
    pub fn start(plane: &ControlPlane, directory: &Path) -> Result<Self> {
        build(&[PROGRAM])?;
        let kubeconfig = plane.kubeconfig("controllers.kubeconfig", "admin")?;
        let process = Process::start(
            directory,
            Command::new(program(PROGRAM))
                .arg("--kubeconfig")
                .arg(kubeconfig)
                .args([
                    "--controllers=endpointslice-controller",
                    "--leader-elect=false",
                    // It serves nobody.
                    "--secure-port=0",
                    // Else changes of pods are gathered for as long as they keep coming.
                    "--endpointslice-updates-batch-period=0s",
                ]),
        )?;
        Ok(Self { process })
    }

    /// Fails with the end of its log if it has ended.
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
        // A pod that failed is not ready: of its phase alone the controller does not hear.
        self.set_status(
            admin,
            &json!({
                "phase": "Failed", "reason": "Evicted",
                "conditions": [{"type": "Ready", "status": "False"}],
            }),
        )
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
