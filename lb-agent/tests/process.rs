//! The agent as a process: what it does to the system's settings, and how it ends. Needs root.

mod scratch;

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

fn agent() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
    command.arg("agent").env("NO_COLOR", "1");
    command
}

/// What the kernel lists, as a set: it answers one read with what fits.
fn reserved() -> String {
    let mut list = vec![0; 64 * 1024];
    let length = fs::File::open(RESERVED)
        .and_then(|mut file| file.read(&mut list))
        .expect("read");
    String::from_utf8_lossy(&list[..length]).trim().to_owned()
}

#[test]
fn ports_that_others_reserved_stay_reserved() {
    scratch::run("ports", |_| {
        let others = "1024-1100,2000-2100,3000-3100,4000-4100,30000-32767";
        fs::write(RESERVED, others).expect("written");
        fs::write(EPHEMERAL, "1024 65000").expect("written");
        for _ in 0..2 {
            let done = agent()
                .args(["--init-only", "--conntrack-max-per-core=0"])
                .output()
                .expect("run");
            assert!(done.status.success(), "{done:?}");
            let all = "1024-1100,2000-2100,3000-3100,4000-4100,20000-29999,30000-32767";
            let joined = all.replace("29999,30000-", "");
            assert!(
                [all.to_owned(), joined].contains(&reserved()),
                "{}",
                reserved()
            );
        }
    });
}

/// An agent that cannot follow the cluster says why and ends, so that somebody looks and it is started again.
#[test]
fn an_agent_whose_source_ends_says_why_and_ends() {
    scratch::run("source", |bpffs| {
        let missing = bpffs.with_extension("no-kubeconfig");
        let log = run_out(
            agent()
                .arg("--kubeconfig")
                .arg(&missing)
                .arg("--bpffs")
                .arg(bpffs)
                .args(["--socket-lb=off", "--hostname-override=node1"]),
        );
        assert!(log.contains(&*missing.to_string_lossy()), "{log}");
        assert!(lb_agent::cleanup::cleanup(Path::new(bpffs)).is_complete());
    });
}

/// What a command that fails by itself has to say.
fn run_out(command: &mut Command) -> String {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run");
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.try_wait().expect("waited for") {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().expect("ended");
                panic!("it went on");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    assert!(!status.success());
    let mut log = String::new();
    for mut stream in [
        child
            .stdout
            .take()
            .map(|out| Box::new(out) as Box<dyn std::io::Read>),
        child
            .stderr
            .take()
            .map(|out| Box::new(out) as Box<dyn std::io::Read>),
    ]
    .into_iter()
    .flatten()
    {
        stream.read_to_string(&mut log).expect("read");
    }
    log
}
