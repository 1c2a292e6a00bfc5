//! Flags that say where the API server is.

use std::path::PathBuf;

use clap::Args;

use crate::config::{ApiServer, ServerAddress};

/// kube-proxy's own place, where the DaemonSet mounts kube-proxy's ConfigMap, and kubelet's.
const KUBECONFIGS: &str = "/var/lib/kube-proxy/kubeconfig.conf,/etc/kubernetes/kubelet.conf";

/// Flags of `beeline agent` for following an API server with a service account.
#[derive(Args, Clone, Debug)]
pub(super) struct ApiServerArgs {
    /// Address of the API server, HOST or HOST:PORT, that is no ClusterIP [default: found]
    #[arg(long, env = "BEELINE_API_SERVER", value_name = "ADDRESS")]
    api_server: Option<String>,
    /// Kubeconfig files that name the API server; those that are not there are passed over
    #[arg(long, env = "BEELINE_API_SERVER_FROM", value_name = "FILES", value_delimiter = ',', default_value = KUBECONFIGS)]
    api_server_from: Vec<PathBuf>,
    /// Directory that outlives a reboot: keeps the API server's last known addresses
    #[arg(
        long,
        env = "BEELINE_STATE",
        value_name = "DIR",
        default_value = "/var/lib/beeline"
    )]
    state_dir: PathBuf,
}

impl ApiServerArgs {
    /// The settings these flags mean. A variable that is set to nothing does not count.
    pub(super) fn config(&self) -> Result<ApiServer, crate::config::Refused> {
        let given = self
            .api_server
            .as_deref()
            .map(str::trim)
            .filter(|text| !text.is_empty());
        Ok(ApiServer {
            given: given.map(str::parse::<ServerAddress>).transpose()?,
            kubeconfigs: self
                .api_server_from
                .iter()
                .filter(|file| !file.as_os_str().is_empty())
                .cloned()
                .collect(),
            state: self.state_dir.clone(),
        })
    }
}
