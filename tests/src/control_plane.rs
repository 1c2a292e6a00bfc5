//! A real control plane for tests: etcd and kube-apiserver, built from upstream (`tests/kubernetes`).
//!
//! No kubelet and no scheduler run, and controllers only where a test starts them (`controllers`): a test writes
//! Services, EndpointSlices and Nodes itself.
//! Everything listens on one address of the calling thread's network namespace and lives in one directory.
//! It ends with the value, or with the *thread* that started it, however that ends: keep that thread alive.

pub mod batch;
pub mod client;
pub mod controllers;
pub mod manifests;
pub mod objects;
mod process;
pub mod rig;
pub mod sandbox;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use self::client::Client;
use self::process::Process;

/// Where the API server may say it is when it listens on loopback, which the Service `kubernetes` must not
/// name. Reserved for documentation (RFC 5737), so nothing answers there.
const ADVERTISED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Service prefixes the API server allocates from.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd96::/112";

const START_TIME: Duration = Duration::from_secs(90);

/// A running etcd and API server.
pub struct ControlPlane {
    directory: PathBuf,
    address: IpAddr,
    api_port: u16,
    etcd_port: u16,
    api_server: Option<Process>,
    /// Further arguments of the API server.
    arguments: Vec<String>,
    _etcd: Process,
}

impl ControlPlane {
    /// Starts both on `address` and waits until the API server is ready. `directory` must be empty or absent.
    pub fn start(address: IpAddr, directory: &Path) -> Result<Self> {
        Self::start_with(address, directory, &[])
    }

    /// The same, with further arguments for the API server.
    pub fn start_with(address: IpAddr, directory: &Path, arguments: &[&str]) -> Result<Self> {
        build(&["etcd", "kube-apiserver"])?;
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let [api_port, etcd_port, etcd_peer_port] = free_ports(address)?;
        make_key(&directory.join("service-account.key"))?;
        // Token, user, uid, groups.
        fs::write(
            directory.join("tokens.csv"),
            "admin,admin,admin,system:masters\n",
        )?;

        let etcd_url = format!("http://{}", SocketAddr::new(address, etcd_port));
        let peer_url = format!("http://{}", SocketAddr::new(address, etcd_peer_port));
        let etcd = Process::start(
            directory,
            Command::new(program("etcd"))
                .arg("--data-dir")
                .arg(directory.join("etcd"))
                .args([
                    "--listen-client-urls",
                    &etcd_url,
                    "--advertise-client-urls",
                    &etcd_url,
                ])
                .args([
                    "--listen-peer-urls",
                    &peer_url,
                    "--initial-advertise-peer-urls",
                    &peer_url,
                ])
                .args(["--initial-cluster", &format!("default={peer_url}")])
                // The data need not outlive the machine, only the API server.
                .args(["--unsafe-no-fsync", "--log-level", "warn"]),
        )?;
        let mut plane = Self {
            directory: directory.into(),
            address,
            api_port,
            etcd_port,
            api_server: None,
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            _etcd: etcd,
        };
        plane.start_api_server()?;
        Ok(plane)
    }

    /// Starts the API server on the port and data it had and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        let advertised = if self.address.is_loopback() {
            ADVERTISED.into()
        } else {
            self.address
        };
        let key = self.directory.join("service-account.key");
        let server = Process::start(
            &self.directory,
            Command::new(program("kube-apiserver"))
                .args([
                    "--etcd-servers",
                    &format!("http://{}", SocketAddr::new(self.address, self.etcd_port)),
                ])
                .args([
                    "--bind-address",
                    &self.address.to_string(),
                    "--secure-port",
                    &self.api_port.to_string(),
                ])
                .args(["--advertise-address", &advertised.to_string()])
                // A certificate it makes and signs itself, and finds again after a restart.
                .arg("--cert-dir")
                .arg(self.directory.join("certificates"))
                .arg("--token-auth-file")
                .arg(self.directory.join("tokens.csv"))
                .args(["--authorization-mode", "RBAC"])
                .args(["--service-cluster-ip-range", SERVICE_CIDRS])
                .args(["--service-account-issuer", "https://kubernetes.default.svc"])
                .arg("--service-account-key-file")
                .arg(&key)
                .arg("--service-account-signing-key-file")
                .arg(&key)
                .args(&self.arguments),
        )?;
        self.api_server = Some(server);
        self.wait_ready()
    }

    /// Kills the API server, as a crash would; etcd stays.
    pub fn kill_api_server(&mut self) {
        self.api_server = None;
    }

    /// Where the API server listens.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.api_port)
    }

    /// Where etcd serves clients, in plain HTTP.
    pub fn etcd(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.etcd_port)
    }

    /// `https://address:port` of the API server.
    pub fn url(&self) -> String {
        format!("https://{}", self.socket())
    }

    /// A client that may do everything.
    pub fn admin(&self) -> Client {
        self.client("admin")
    }

    /// A client that shows `token`.
    pub fn client(&self, token: &str) -> Client {
        Client::new(self.url(), self.certificate(), token.into())
    }

    /// A new token of a ServiceAccount, as a kubelet would ask for one.
    pub fn service_account_token(&self, namespace: &str, name: &str) -> Result<String> {
        let answer = self.admin().post(
            &format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"),
            &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}),
        )?;
        let token = answer["status"]["token"]
            .as_str()
            .context("the TokenRequest's answer has no token")?;
        Ok(token.into())
    }

    /// Writes a kubeconfig for `token` and returns its path.
    pub fn kubeconfig(&self, file_name: &str, token: &str) -> Result<PathBuf> {
        let path = self.directory.join(file_name);
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {
                "server": self.url(), "certificate-authority": self.certificate(),
            }}],
            "users": [{"name": "tests", "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        });
        fs::write(&path, config.to_string())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Holds the server's certificate and that of the authority it made.
    fn certificate(&self) -> PathBuf {
        self.directory.join("certificates/apiserver.crt")
    }

    fn wait_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        let client = self.admin();
        loop {
            // The Service `kubernetes` appears after readiness; waiting for it leaves nothing to race with.
            let ready = client.request("GET", "/readyz", None).is_ok()
                && client
                    .get("/api/v1/namespaces/default/services/kubernetes")
                    .is_ok();
            if ready {
                return Ok(());
            }
            if let Some(server) = &mut self.api_server {
                server.check_alive()?;
                ensure!(
                    started.elapsed() < START_TIME,
                    "the API server was not ready within {START_TIME:?}; its log ends:\n{}",
                    server.log_end()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Builds upstream programs, unless they are newer than the module that describes them.
pub(crate) fn build(programs: &[&str]) -> Result<()> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes");
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let described = changed(&module.join("go.sum")).context("tests/kubernetes/go.sum")?;
    let current = |name: &&str| changed(&program(name)).is_ok_and(|built| built >= described);
    if programs.iter().all(current) {
        return Ok(());
    }
    eprintln!(
        "building {}: minutes the first time",
        programs.join(" and ")
    );
    let output = Command::new(module.join("build"))
        .args(programs)
        .stdin(Stdio::null())
        .output();
    let output = output.context("run tests/kubernetes/build")?;
    ensure!(
        output.status.success(),
        "tests/kubernetes/build failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Where an upstream program is built to.
pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/kubernetes")
        .join(name)
}

/// Makes the key the API server signs ServiceAccount tokens with.
fn make_key(path: &Path) -> Result<()> {
    let output = Command::new("openssl")
        .args(["genrsa", "-out"])
        .arg(path)
        .arg("2048")
        .output();
    let output =
        output.context("openssl is missing: install it (Debian: apt-get install openssl)")?;
    if !output.status.success() {
        bail!(
            "openssl genrsa failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Distinct ports nobody listens on. Held together until all are known, so that none comes twice.
fn free_ports<const N: usize>(address: IpAddr) -> Result<[u16; N]> {
    let mut listeners = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener =
            TcpListener::bind((address, 0)).with_context(|| format!("listen on {address}"))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}
