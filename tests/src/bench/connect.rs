//! What a connection costs a client, by what `getpeername()` tells of it (`--socket-lb-peer`).
//!
//! Lanes are interleaved and compared within a round, as clocks and neighbours drift.

use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Output, Stdio};
use std::time::Instant;
use std::{env, fs, ptr, thread};

use anyhow::{Context as _, Result, bail, ensure};

use super::report::{Report, at};
use super::{Options, clean_up, start, workload};
use crate::control_plane::sandbox::{API_ADDRESS, Sandbox};

/// First argument of this program as a client: protocol, address and count follow.
pub const CLIENT_ARGUMENT: &str = "connect-client";

const PART: &str = "connections";
const ROUNDS: usize = 5;
const CONNECTIONS: usize = 5_000;
const PORT: u16 = 8080;

/// The lanes: who dials what.
const LANES: [(&str, bool, bool); 3] = [
    ("direct, no hook", false, false),
    ("direct, hook (no service)", true, false),
    ("through a Service", true, true),
];

pub(super) fn measure(sandbox: &Sandbox, _: &Options, report: &mut Report) -> Result<()> {
    let endpoint = SocketAddrV4::new(API_ADDRESS, PORT);
    let listener = TcpListener::bind(endpoint).context("listen")?;
    // Ends with this process. What it accepts it closes; the client has reset it by then.
    thread::spawn(move || listener.incoming().for_each(drop));
    let directory = sandbox.directory().join("connect");
    fs::create_dir_all(&directory)?;
    let mut slice = workload::slice(0, 0);
    slice["endpoints"] =
        serde_json::json!([{"addresses": [endpoint.ip()], "conditions": {"ready": true}}]);
    fs::write(
        directory.join("service.yaml"),
        format!("{}\n---\n{slice}\n", workload::service(0)),
    )?;
    let service = SocketAddrV4::new(workload::address(0), 80);

    let modes = ["service", "endpoint"];
    let mut costs: Vec<Vec<f64>> = vec![Vec::new(); modes.len() * LANES.len()];
    for _ in 0..ROUNDS {
        for (mode, told) in modes.iter().enumerate() {
            let arguments = [
                "--manifests".as_ref(),
                directory.as_os_str(),
                "--socket-lb-peer".as_ref(),
                OsStr::new(told),
            ];
            let agent = start(sandbox, &arguments)?.agent;
            for (lane, &(_, hooked, translated)) in LANES.iter().enumerate() {
                let address = if translated { service } else { endpoint };
                costs[mode * LANES.len() + lane].push(one_lane(sandbox, hooked, address)?);
            }
            ensure!(agent.terminate()?.success(), "the agent did not end well");
        }
    }
    clean_up(sandbox)?;
    for (mode, told) in modes.iter().enumerate() {
        let direct = costs[mode * LANES.len()].clone();
        for (lane, (name, ..)) in LANES.iter().enumerate() {
            let own = &costs[mode * LANES.len() + lane];
            let mut ratios: Vec<f64> = own
                .iter()
                .zip(&direct)
                .map(|(own, direct)| own / direct)
                .collect();
            ratios.sort_by(f64::total_cmp);
            let mut own = own.clone();
            own.sort_by(f64::total_cmp);
            report.add(
                PART,
                format!("--socket-lb-peer {told}: {name}, TCP connect()"),
                at(&own, 0.5) / 1e3,
                "µs",
            );
            if lane > 0 {
                report.add(
                    PART,
                    format!("--socket-lb-peer {told}: {name}, ratio to direct"),
                    at(&ratios, 0.5),
                    "×",
                );
            }
        }
    }
    Ok(())
}

/// Nanoseconds per connection, the median, by a process in the hooked cgroup or outside.
fn one_lane(sandbox: &Sandbox, hooked: bool, address: SocketAddrV4) -> Result<f64> {
    let mut command = Command::new(env::current_exe()?);
    command.args([
        CLIENT_ARGUMENT,
        "tcp",
        &address.to_string(),
        &CONNECTIONS.to_string(),
    ]);
    let Output {
        status,
        stdout,
        stderr,
    } = if hooked {
        sandbox.in_cgroup(command)?
    } else {
        command
            .stdin(Stdio::null())
            .output()
            .context("run the client")?
    };
    ensure!(
        status.success(),
        "connecting to {address}: {}",
        String::from_utf8_lossy(&stderr).trim()
    );
    String::from_utf8(stdout)?
        .trim()
        .parse()
        .context("the client's answer")
}

/// The client: connects and prints what the median connection cost in nanoseconds.
pub fn client(arguments: &[String]) -> Result<()> {
    let [protocol, address, count] = arguments else {
        bail!("{CLIENT_ARGUMENT} needs a protocol, an address and a count");
    };
    let (address, count): (SocketAddr, usize) = (address.parse()?, count.parse()?);
    let mut costs = Vec::with_capacity(count);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for _ in 0..count {
        let begin = Instant::now();
        if protocol == "tcp" {
            let stream = TcpStream::connect(address)?;
            costs.push(begin.elapsed().as_nanos() as f64);
            reset(&stream)?;
        } else {
            socket.connect(address)?;
            costs.push(begin.elapsed().as_nanos() as f64);
        }
    }
    costs.sort_by(f64::total_cmp);
    println!("{}", at(&costs, 0.5));
    Ok(())
}

/// Closing will send a reset: thousands of sockets in TIME_WAIT would use up the ports.
fn reset(stream: &TcpStream) -> io::Result<()> {
    let now = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the option takes a `linger` of that size, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            ptr::from_ref(&now).cast(),
            size_of_val(&now) as u32,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
