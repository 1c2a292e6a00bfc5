//! etcd, API server, controller manager, scheduler, and the cloud with its load balancer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::place::{
    self, API_SERVICE4, BALANCERS4, LAN4, LAN6, PODS4, PODS6, SERVICES4, SERVICES6,
};
use super::process::{in_network, run, start, stop, wait_for};
use super::settings::Settings;

const READY: Duration = Duration::from_secs(120);

/// In the order they start.
pub(super) const PARTS: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "cloud",
];

/// `kubectl` of the administrator.
pub(crate) fn kubectl() -> Command {
    let mut command = in_network(&place::control_plane(), place::program("kubectl"));
    command.arg("--kubeconfig").arg(place::kubeconfig());
    command
}

/// Starts everything; the API server is ready then.
pub(super) fn create(settings: &Settings, keys: &Keys) -> Result<()> {
    let etcd = "http://127.0.0.1:2379";
    let data = place::state().join("etcd");
    let mut command = part("etcd");
    command.arg("--data-dir").arg(data).args([
        "--log-level=warn",
        &format!("--listen-client-urls={etcd}"),
        &format!("--advertise-client-urls={etcd}"),
        "--listen-peer-urls=http://127.0.0.1:2380",
    ]);
    // The data need not outlive the machine.
    command.env("ETCD_UNSAFE_NO_FSYNC", "true");
    start("etcd", &mut command)?;
    api_server(settings, keys, etcd)?;

    let mut command = part("kube-controller-manager");
    as_admin(&mut command);
    command.args([
        "--use-service-account-credentials=true",
        &keys.flag("--root-ca-file", "ca.crt"),
        &keys.flag("--service-account-private-key-file", "accounts.key"),
        &keys.flag("--cluster-signing-cert-file", "ca.crt"),
        &keys.flag("--cluster-signing-key-file", "ca.key"),
        // `cluster up` writes each node's prefix itself, as the routes to it are fixed.
        "--allocate-node-cidrs=false",
        &format!("--cluster-cidr={}", pods(settings)),
        &format!("--service-cluster-ip-range={}", services(settings)),
        "--node-monitor-period=2s",
    ]);
    start("kube-controller-manager", &mut command)?;
    let mut command = part("kube-scheduler");
    as_admin(&mut command);
    start("kube-scheduler", &mut command)?;
    let mut command = in_network(&place::router(), place::program("cloud"));
    start("cloud", command.arg(place::kubeconfig()).arg(BALANCERS4))
}

pub(super) fn remove() -> Result<()> {
    PARTS.iter().rev().try_for_each(|name| stop(name))
}

/// Prefixes of all pods.
pub(super) fn pods(settings: &Settings) -> String {
    settings.both(&format!("{PODS4}.0.0/16"), &format!("{PODS6}::/16"))
}

fn services(settings: &Settings) -> String {
    settings.both(SERVICES4, SERVICES6)
}

fn part(name: &str) -> Command {
    in_network(&place::control_plane(), place::program(name))
}

fn as_admin(command: &mut Command) {
    command.arg("--kubeconfig").arg(place::kubeconfig());
    // There is one of each.
    command.arg("--leader-elect=false");
}

fn api_server(settings: &Settings, keys: &Keys, etcd: &str) -> Result<()> {
    let mut command = part("kube-apiserver");
    command.args([
        &format!("--etcd-servers={etcd}"),
        &format!("--advertise-address={LAN4}.10"),
        "--bind-address=::",
        "--secure-port=6443",
        &format!("--service-cluster-ip-range={}", services(settings)),
        "--authorization-mode=RBAC",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        "--runtime-config=api/all=true",
        // Six test processes are one user.
        "--enable-priority-and-fairness=false",
        "--max-requests-inflight=0",
        "--max-mutating-requests-inflight=0",
        &keys.flag("--tls-cert-file", "server.crt"),
        &keys.flag("--tls-private-key-file", "server.key"),
        &keys.flag("--client-ca-file", "ca.crt"),
        &keys.flag("--token-auth-file", "tokens.csv"),
        &keys.flag("--service-account-key-file", "accounts.pub"),
        &keys.flag("--service-account-signing-key-file", "accounts.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
    ]);
    // Servers behind this one (tests install one) know it by this certificate.
    command.args([
        &keys.flag("--proxy-client-cert-file", "front.crt"),
        &keys.flag("--proxy-client-key-file", "front.key"),
        &keys.flag("--requestheader-client-ca-file", "ca.crt"),
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
    ]);
    start("kube-apiserver", &mut command)?;
    wait_for(
        "the API server is ready",
        &place::log("kube-apiserver"),
        READY,
        || run(kubectl().args(["get", "--raw", "/readyz"])).is_ok(),
    )
}

/// Certificates and keys of one cluster.
pub(super) struct Keys {
    directory: PathBuf,
}

/// P-256 for everything but service accounts' tokens, whose issuer the tests expect to use RSA.
const KEY: &[&str] = &[
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];
const DAYS: &str = "30";

impl Keys {
    /// Makes them, and the administrator's kubeconfig.
    pub(super) fn make() -> Result<Self> {
        let directory = place::state().join("keys");
        fs::create_dir_all(&directory)?;
        let keys = Self { directory };
        keys.openssl(
            "req -x509 -subj /CN=cluster -keyout ca.key -out ca.crt -days",
            &[&[DAYS], KEY].concat(),
        )?;
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        .map(|name| format!("DNS:{name}"))
        .join(",");
        let addresses = format!("IP:{LAN4}.10,IP:{LAN6}:10,IP:{API_SERVICE4}");
        keys.certificate("server", "kube-apiserver", &format!("{names},{addresses}"))?;
        keys.certificate("front", "front-proxy", "DNS:front-proxy")?;
        keys.openssl("genrsa -out accounts.key 2048", &[])?;
        keys.openssl("rsa -in accounts.key -pubout -out accounts.pub", &[])?;
        let random = run(Command::new("openssl").args(["rand", "-hex", "16"]))?;
        // Token, user, number, group.
        let line = format!("{},admin,admin,system:masters\n", random.trim());
        fs::write(keys.path("tokens.csv"), line)?;
        let user = format!("token: {}", random.trim());
        write_kubeconfig(&place::kubeconfig(), &keys.path("ca.crt"), &user)?;
        Ok(keys)
    }

    fn certificate(&self, name: &str, subject: &str, names: &str) -> Result<()> {
        let extensions = format!("{name}.ext");
        fs::write(self.path(&extensions), format!("subjectAltName={names}\n"))?;
        self.openssl(
            &format!("req -subj /CN={subject} -keyout {name}.key -out {name}.csr"),
            KEY,
        )?;
        self.openssl(
            &format!(
                "x509 -req -in {name}.csr -out {name}.crt -CA ca.crt -CAkey ca.key -CAcreateserial \
                 -extfile {extensions} -days {DAYS}"
            ),
            &[],
        )
    }

    fn openssl(&self, words: &str, further: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        command
            .current_dir(&self.directory)
            .args(words.split_whitespace());
        run(command.args(further)).map(drop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn flag(&self, flag: &str, name: &str) -> String {
        format!("{flag}={}", self.path(name).display())
    }
}

fn write_kubeconfig(file: &Path, authority: &Path, user: &str) -> Result<()> {
    let text = format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: cluster, cluster: {{server: '{}', certificate-authority: {}}}}}]
users: [{{name: user, user: {{{user}}}}}]
contexts: [{{name: cluster, context: {{cluster: cluster, user: user}}}}]
current-context: cluster
",
        place::api_server(),
        authority.display()
    );
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// As kubeadm leaves it in its ConfigMap `kube-proxy`: where the API server is, with each pod's own credentials.
pub(super) fn kubeconfig_of_kube_proxy() -> Result<String> {
    let file = place::state().join("kubeconfig.conf");
    let account = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
    let user = format!("tokenFile: {}", account.join("token").display());
    write_kubeconfig(&file, &account.join("ca.crt"), &user)?;
    fs::read_to_string(file).context("reading back kube-proxy's kubeconfig")
}
