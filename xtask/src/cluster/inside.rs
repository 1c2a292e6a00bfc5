//! A node from inside: what its first process does, in namespaces that `node` made for it.
//!
//! It sees the machine's files, with `/etc`, `/var` and `/opt` as overlays that keep a node's changes on its disk,
//! and with `/run`, `/sys` and the BPF file system new at each boot.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::cgroups::{self, Hierarchy};
use super::images;
use super::network_policies;
use super::place::{self, DNS4, LAN4, LAN6, PODS4, PODS6};
use super::process::run;
use super::settings::{Cni, Settings};

const RUNTIME_START: Duration = Duration::from_secs(60);

/// kubelet sets these, which belong to the whole machine. It is shown files that hold what it wants.
const MACHINE_SETTINGS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Becomes the node. Returns only if it cannot.
pub(super) fn run_node(number: u8) -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is for the first process of a node: cargo xtask cluster up starts it"
    );
    let settings = Settings::load()?.context("no cluster is up")?;
    let name = place::node(number);
    fs::write("/proc/sys/kernel/hostname", &name)?;
    file_systems(number)?;
    kernel()?;
    pod_network(&settings, number)?;
    if settings.network_policies {
        network_policies::prepare_kernel(number)?;
    }
    start_runtime(&settings)?;
    start_kubelet(&settings, number)?;
    // It collects the processes that end without a parent, as the first one of a namespace must.
    Err(Command::new(place::program("pause")).exec()).context("starting what keeps the node")
}

fn file_systems(number: u8) -> Result<()> {
    let disk = place::disk(number);
    let groups = cgroups::hierarchies()?;
    mount(&["--make-rprivate", "/"])?;
    for top in ["etc", "var", "opt"] {
        let (changes, work) = (disk.join("changes").join(top), disk.join("work").join(top));
        fs::create_dir_all(&changes)?;
        fs::create_dir_all(&work)?;
        let place = format!("/{top}");
        let options = format!(
            "lowerdir={place},upperdir={},workdir={}",
            changes.display(),
            work.display()
        );
        mount(&["-t", "overlay", "-o", &options, "node", &place])?;
    }
    // An overlay cannot be laid over an overlay, which is what images are unpacked to.
    for service in ["kubelet", "containerd"] {
        let (real, seen) = (disk.join(service), Path::new("/var/lib").join(service));
        fs::create_dir_all(&real)?;
        fs::create_dir_all(&seen)?;
        mount(&["--bind", text(&real)?, text(&seen)?])?;
    }
    for gone in ["/etc/cni", "/var/log/pods", "/var/log/containers"] {
        let _ = fs::remove_dir_all(gone);
    }
    for directory in [
        "/etc/cni/net.d",
        "/etc/containerd",
        "/opt/cni",
        "/var/log/pods",
        "/var/log/containers",
    ] {
        fs::create_dir_all(directory)?;
    }
    let _ = fs::remove_file("/opt/cni/bin");
    symlink(place::host_tools().join("usr/lib/cni"), "/opt/cni/bin")?;
    mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
    fs::create_dir_all("/run/lock")?;

    mount(&["-t", "sysfs", "sysfs", "/sys"])?;
    mount(&["-t", "bpf", "bpf", "/sys/fs/bpf"])?;
    mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/sys/fs/cgroup"])?;
    for group in groups {
        mount_group(&group)?;
    }
    // Containers may ask to see later mounts, or to show theirs.
    mount(&["--make-rshared", "/"])
}

/// Mounts a hierarchy again: in a cgroup namespace it shows the node's own group as its root.
fn mount_group(group: &Hierarchy) -> Result<()> {
    let place = text(&group.place)?;
    fs::create_dir_all(place)?;
    if group.second_version {
        return mount(&["-t", "cgroup2", "cgroup2", place]);
    }
    mount(&[
        "-t",
        "cgroup",
        "-o",
        &controllers(&group.options),
        "cgroup",
        place,
    ])
}

/// The options that choose a hierarchy of the first version.
fn controllers(options: &str) -> String {
    let general = [
        "rw",
        "ro",
        "relatime",
        "noatime",
        "nosuid",
        "nodev",
        "noexec",
        "clone_children",
        "xattr",
    ];
    let chosen: Vec<&str> = options
        .split(',')
        .filter(|option| !general.contains(option) && !option.starts_with("release_agent="))
        .collect();
    match chosen.as_slice() {
        [name] if name.starts_with("name=") => format!("none,{name}"),
        _ => chosen.join(","),
    }
}

fn kernel() -> Result<()> {
    let shown = Path::new("/run/machine-settings");
    fs::create_dir_all(shown)?;
    for (setting, value) in MACHINE_SETTINGS {
        let real = Path::new("/proc/sys").join(setting);
        if real.exists() {
            let file = shown.join(setting.replace('/', "."));
            fs::write(&file, format!("{value}\n"))?;
            mount(&["--bind", text(&file)?, text(&real)?])?;
        }
    }
    for setting in [
        "net/ipv4/ip_forward=1",
        "net/ipv6/conf/all/forwarding=1",
        "net/ipv4/conf/all/rp_filter=0",
        "net/ipv4/conf/default/rp_filter=0",
    ] {
        run(Command::new("sysctl").args(["-qw", setting]))?;
    }
    // Absent where the bridge module does not filter.
    for family in ["iptables", "ip6tables"] {
        let _ = fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), "1");
    }
    // There is no name server beyond the cluster's.
    let servers = format!("nameserver {LAN4}.1\n");
    fs::write("/run/resolv.conf", &servers)?;
    let _ = fs::remove_file("/etc/resolv.conf");
    fs::write("/etc/resolv.conf", servers).context("writing the node's resolv.conf")
}

fn pod_network(settings: &Settings, number: u8) -> Result<()> {
    let ranges = settings.both(
        &format!(r#"[{{"subnet": "{PODS4}.{number}.0/24"}}]"#),
        &format!(r#"[{{"subnet": "{PODS6}:{number}::/64"}}]"#),
    );
    let routes = settings.both(r#"{"dst": "0.0.0.0/0"}"#, r#"{"dst": "::/0"}"#);
    let addresses = format!(
        r#""ipam": {{"type": "host-local", "dataDir": "/run/cni-addresses", "routes": [{routes}], "ranges": [{ranges}]}}"#
    );
    let connection = match settings.cni {
        Cni::Ptp => format!(r#"{{"type": "ptp", "mtu": 1500, {addresses}}}"#),
        Cni::Bridge => format!(
            r#"{{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, {addresses}}}"#
        ),
    };
    let list = format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{connection}, {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#
    );
    fs::write("/etc/cni/net.d/10-pods.conflist", list)
        .context("writing the pod network's configuration")
}

fn start_runtime(settings: &Settings) -> Result<()> {
    // Tells a policy engine a pod's addresses before the API server does.
    let plugins = if settings.network_policies {
        ""
    } else {
        "'io.containerd.nri.v1.nri', "
    };
    let runc = place::host_tools().join("usr/sbin/runc");
    let configuration = format!(
        "version = 3
disabled_plugins = [{plugins}'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.blockfile']
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{}'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/opt/cni/bin']
conf_dir = '/etc/cni/net.d'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '{}'
SystemdCgroup = false
",
        images::PAUSE,
        runc.display()
    );
    fs::write("/etc/containerd/config.toml", configuration)?;
    background("containerd", &["--log-level=info"])?;
    let begun = Instant::now();
    while run(Command::new("ctr").arg("version")).is_err() {
        if begun.elapsed() > RUNTIME_START {
            bail!("containerd does not answer");
        }
        sleep(Duration::from_millis(100));
    }
    // Once for each set of images; the disk keeps them.
    let mark = Path::new("/var/lib/containerd/images-imported");
    let made = fs::metadata(images::archive())?.modified()?;
    if fs::metadata(mark)
        .and_then(|mark| mark.modified())
        .is_ok_and(|then| then >= made)
    {
        return Ok(());
    }
    run(Command::new("ctr")
        .args(["--namespace=k8s.io", "images", "import", "--local"])
        .arg(images::archive()))?;
    fs::write(mark, "").context("noting that the images are there")
}

fn start_kubelet(settings: &Settings, number: u8) -> Result<()> {
    let configuration = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
clusterDNS: [{DNS4}]
clusterDomain: cluster.local
resolvConf: /run/resolv.conf
# Images cannot be fetched again, and the disk is the machine's.
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 1Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}}
maxPods: 200
nodeStatusUpdateFrequency: 5s
syncFrequency: 30s
"
    );
    let file = "/var/lib/kubelet/config.yaml";
    fs::write(file, configuration)?;
    let host = 10 + number;
    let addresses = settings.both(&format!("{LAN4}.{host}"), &format!("{LAN6}:{host}"));
    background(
        "kubelet",
        &[
            &format!("--config={file}"),
            &format!("--kubeconfig={}", place::kubeconfig().display()),
            &format!("--hostname-override={}", place::node(number)),
            &format!("--node-ip={addresses}"),
            // Two nodes share a zone; six are three zones.
            &format!(
                "--node-labels=topology.kubernetes.io/zone=zone-{}",
                (number - 1) / 2
            ),
            "--v=2",
        ],
    )
}

/// Starts a program beside us. It becomes a child of what we become.
fn background(name: &str, flags: &[&str]) -> Result<()> {
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let log = place::log(&format!("{}.{name}", hostname.trim()));
    let output = fs::File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(place::program(name));
    command.args(flags).stdin(Stdio::null());
    command.stdout(output.try_clone()?).stderr(output);
    command
        .spawn()
        .with_context(|| format!("starting {name}"))
        .map(drop)
}

fn mount(arguments: &[&str]) -> Result<()> {
    run(Command::new("mount").args(arguments)).map(drop)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_chosen_by_their_controllers() {
        assert_eq!(controllers("rw,relatime,cpu,cpuacct"), "cpu,cpuacct");
        assert_eq!(
            controllers("rw,nosuid,xattr,release_agent=/x,name=systemd"),
            "none,name=systemd"
        );
    }
}
