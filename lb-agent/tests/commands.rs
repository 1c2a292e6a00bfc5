//! The commands that look, against real tables in a BPF file system of their own. Needs root.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use clap::Parser as _;
use lb_agent::cli::{self, Cli, CommandError, Exit};
use lb_agent::datapath::engine::{Config, Datapath};
use lb_agent::datapath::object::{self, Definitions};
use lb_agent::datapath::pins::Pins;
use lb_agent::datapath::tables::Tables;
use lb_agent::sys::cgroup;
use lb_ebpf::abi::endpoint::{Endpoint, EndpointState, LOCAL, SERVING};
use lb_ebpf::abi::frontend::{CLUSTER_IP, Frontend, FrontendKey, HAS_ENDPOINTS, key_check};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::settings::{SOCKETS_ALL, Settings};

/// A BPF file system that is unmounted, with all pins in it, when this is dropped.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount() -> Self {
        let path = std::env::temp_dir().join(format!("beeline-commands-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        let mounted = Command::new("mount")
            .args(["-t", "bpf", "beeline-commands"])
            .arg(&path)
            .status();
        assert!(
            mounted.expect("mount runs").success(),
            "mounting a BPF file system needs root"
        );
        Bpffs(path)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A cgroup without processes, so that hooks on it concern nobody.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create() -> Self {
        let root = cgroup::root().expect("a cgroup v2 hierarchy");
        let path = root.join(format!("beeline-commands-{}", std::process::id()));
        std::fs::create_dir(&path).expect("making a cgroup needs root");
        Cgroup(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn say(line: &str, bpffs: &Path) -> Result<cli::Printed, CommandError> {
    let words = format!("beeline {line} --bpffs {}", bpffs.display());
    let cli = Cli::try_parse_from(words.split(' ')).expect(line);
    cli::answer(&cli.command)
}

fn text(line: &str, bpffs: &Path) -> String {
    say(line, bpffs)
        .unwrap_or_else(|error| panic!("{line}: {error}"))
        .text
}

fn field(text: &str) -> [u8; 64] {
    let mut field = [0; 64];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

/// One service at 10.96.0.10:80 with endpoints 10.244.0.1 (here) and 10.244.1.1.
fn publish(tables: &mut Tables) {
    let name = ServiceName {
        namespace: field("shop"),
        name: field("web"),
        port: field("http"),
        family: 4,
        protocol: lb_ebpf::abi::TCP,
        zero: [0; 2],
    };
    tables.names.put(&7, &name).unwrap();
    let records = [
        (Ipv4Addr::new(10, 244, 0, 1), LOCAL, 1),
        (Ipv4Addr::new(10, 244, 1, 1), 0, 2),
    ]
    .map(|(address, flags, id)| Endpoint {
        address: address.into(),
        port: 8080,
        flags,
        id,
        service: 7,
    });
    tables.endpoints4.write(5000, &records).unwrap();
    tables
        .endpoint_state
        .write(
            1,
            &[EndpointState {
                generation: 1,
                flags: SERVING,
            }; 2],
        )
        .unwrap();
    let key = FrontendKey {
        address: Ipv4Addr::new(10, 96, 0, 10).into(),
        port: 80,
        protocol: lb_ebpf::abi::TCP,
        zero: 0,
    };
    let frontend = Frontend {
        generation: 3,
        generation_end: 3,
        check: key_check(&key),
        service: 7,
        block: 5000,
        local_count: 1,
        cluster_first: 0,
        cluster_count: 2,
        flags: CLUSTER_IP | HAS_ENDPOINTS,
        ..Frontend::default()
    };
    tables.frontends4.put(&key, &frontend).unwrap();
}

#[test]
fn commands_read_live_tables_without_an_agent() {
    let bpffs = Bpffs::mount();
    let missing = say("service list", &bpffs.0).expect_err("there are no tables yet");
    assert!(
        missing.what.contains("no Beeline tables") && missing.next.contains("beeline agent"),
        "{missing}"
    );

    let pins = Pins::new(&bpffs.0);
    pins.create_directories().unwrap();
    let definitions = Arc::new(Definitions::of(object::embedded().unwrap()).unwrap());
    let mut tables = Tables::open(&pins, &definitions).unwrap();
    assert_eq!(
        text("service list", &bpffs.0).lines().count(),
        1,
        "a header alone"
    );
    publish(&mut tables);
    // Whoever reads later has the pins alone, as after a crash of the agent.
    drop(tables);

    assert_eq!(
        text("service list", &bpffs.0).lines().nth(1),
        Some("shop/web:http\tTCP\tClusterIP\t10.96.0.10:80\tCluster\t-\t1\t2\ttranslate")
    );
    assert_eq!(
        text("endpoint list shop/web:80", &bpffs.0)
            .lines()
            .skip(1)
            .collect::<Vec<_>>(),
        [
            "shop/web:http\tTCP\t10.244.0.1:8080\tlocal\tlocal,cluster\tyes",
            "shop/web:http\tTCP\t10.244.1.1:8080\tremote\tcluster\tyes",
        ]
    );
    assert!(
        text("service get web -n shop -o json", &bpffs.0).contains("\"kind\": \"ServiceList\"")
    );
    let unknown = say("service get other/web", &bpffs.0).expect_err("another namespace");
    assert!(
        unknown.cause.contains("there is shop/web:http"),
        "{unknown}"
    );

    // Port 9 answers nobody here, so the agent counts as dead whatever runs on this machine.
    let status = say(
        "status --healthz 127.0.0.1:9 --metrics 127.0.0.1:9",
        &bpffs.0,
    )
    .unwrap();
    assert_eq!(status.exit, Exit::Problems);
    for line in [
        "PROBLEM   the agent does not answer",
        "Services  1 service ports, 1 frontends",
        "frontends4\t1\t",
    ] {
        assert!(
            status.text.contains(line),
            "no {line:?} in\n{}",
            status.text
        );
    }

    // With programs attached, and the agent gone again.
    let cgroup = Cgroup::create();
    let config = Config {
        bpffs: bpffs.0.clone(),
        packet_hook: None,
    };
    let mut datapath = Datapath::open(&config).unwrap();
    datapath
        .set_settings(&Settings {
            flags: SOCKETS_ALL,
            ..Settings::default()
        })
        .unwrap();
    assert_eq!(datapath.attach_sockets(&cgroup.0).unwrap(), 9);
    drop(datapath);
    let status = text(
        "status --healthz 127.0.0.1:9 --metrics 127.0.0.1:9",
        &bpffs.0,
    );
    let line = "Sockets   of every network namespace; attached: connect4 connect6 peername4 peername6 recvmsg4 recvmsg6 \
                released sendmsg4 sendmsg6\n";
    assert!(status.contains(line), "no {line:?} in\n{status}");
    assert_eq!(status.matches("PROBLEM").count(), 1, "{status}");
}
