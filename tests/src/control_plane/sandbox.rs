//! One node without a network: where the agent follows a real API server and a real `connect` is judged.
//!
//! A test's body runs on a thread of its own in a new network and mount namespace, so every port is free,
//! no device of the machine is touched, and all of it is gone with the thread. The agent's hooks sit on a
//! cgroup made for the test; clients are processes in it. Pods, links and the packet path are others' tests.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::process::Process;
use crate::{agent, cgroup};

/// Where the control plane of a sandbox listens, and the API server says it is.
pub const API_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The node's name everywhere in a sandbox.
pub const NODE: &str = "node-a";

const PREFIX: &str = "beeline-control-";
const START_TIME: Duration = Duration::from_secs(30);
const CONNECT_SECONDS: &str = "5";
const HEALTH: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10256);
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10249);

/// The namespaces, directories and cgroup of one test.
pub struct Sandbox {
    directory: PathBuf,
    cgroup: PathBuf,
}

/// A running agent.
pub struct Agent {
    process: Process,
}

/// What a client met.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// Connected, and this is what the server said.
    Answer(String),
    Refused,
    TimedOut,
    /// Any other error, in the client's words.
    Failed(String),
}

/// Runs `test` in a sandbox of its own; an error or panic in it fails the caller.
pub fn run(test: impl FnOnce(&Sandbox) -> Result<()> + Send + 'static) {
    let thread = thread::Builder::new().name(thread::current().name().unwrap_or("sandbox").into());
    let thread = thread.spawn(move || {
        let sandbox = Sandbox::enter().expect("make a sandbox (needs root)");
        if let Err(error) = test(&sandbox) {
            panic!("{error:?}");
        }
    });
    if let Err(cause) = thread.expect("spawn a thread").join() {
        panic::resume_unwind(cause);
    }
}

/// Waits until `check` holds; its last error is part of the failure.
pub fn eventually(
    what: &str,
    within: Duration,
    mut check: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    loop {
        let last = check();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if started.elapsed() > within {
            bail!("not within {within:?}: {what} (last: {last:?})");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl Sandbox {
    fn enter() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroups = cgroup::root()?;
        sweep(&cgroups);
        sweep(&std::env::temp_dir());

        let sandbox = Self {
            directory: std::env::temp_dir().join(&name),
            cgroup: cgroups.join(&name),
        };
        fs::create_dir_all(sandbox.bpffs())
            .with_context(|| format!("create {}", sandbox.directory.display()))?;
        fs::create_dir(&sandbox.cgroup)
            .with_context(|| format!("create {}", sandbox.cgroup.display()))?;
        new_namespaces(&sandbox.bpffs())?;
        ip(&["link", "set", "lo", "up"])?;
        sandbox.add_address(API_ADDRESS.into())?;
        Ok(sandbox)
    }

    /// A directory of the test's own.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The bpffs of this node.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Gives the node an address.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        // Duplicate address detection would keep an IPv6 address from use for a moment.
        let options: &[&str] = if address.is_ipv4() { &[] } else { &["nodad"] };
        let address = address.to_string();
        ip(&[&["address", "add", &address, "dev", "lo"], options].concat())
    }

    /// Gives the node `address` and starts a server there that tells every client `address:port`.
    pub fn serve(&self, address: &str, port: u16) -> Result<()> {
        let address: IpAddr = address.parse()?;
        // It may have it already.
        let _ = self.add_address(address);
        let listener =
            TcpListener::bind((address, port)).with_context(|| format!("listen on {address}"))?;
        // Ends with the test's process; nobody else can reach it.
        thread::spawn(move || {
            let name = SocketAddr::new(address, port).to_string();
            for client in listener.incoming().flatten() {
                let mut client = client;
                // A client that left is no concern of the server's.
                let _ = client.write_all(name.as_bytes());
            }
        });
        Ok(())
    }

    /// Connects from a process in the node's cgroup.
    pub fn connect(&self, address: &str, port: u16) -> Result<Outcome> {
        let mut command = Command::new("bash");
        command
            .arg("-c")
            .arg(format!("exec 3<>/dev/tcp/{address}/{port} && cat <&3"));
        let output = self.in_cgroup(timeout(&command))?;
        let error = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => Ok(Outcome::Answer(String::from_utf8(output.stdout)?)),
            // timeout(1) says so.
            Some(124) => Ok(Outcome::TimedOut),
            _ if error.contains("Connection refused") => Ok(Outcome::Refused),
            _ => Ok(Outcome::Failed(error.trim().into())),
        }
    }

    /// Runs a command as a process of the node and returns its output.
    pub fn in_cgroup(&self, mut command: Command) -> Result<std::process::Output> {
        let procs = std::ffi::CString::new(
            self.cgroup
                .join("cgroup.procs")
                .into_os_string()
                .into_encoded_bytes(),
        )?;
        // SAFETY: open, write and close are async-signal-safe; the path was made before the fork.
        unsafe {
            command.pre_exec(move || {
                let file = libc::open(procs.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                // "0" is the writing process itself.
                if file < 0 || libc::write(file, c"0".as_ptr().cast(), 1) != 1 {
                    return Err(std::io::Error::last_os_error());
                }
                libc::close(file);
                Ok(())
            });
        }
        command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {:?}", command.get_program()))
    }

    /// Starts the agent with what `kubeconfig` allows.
    pub fn start_agent(&self, kubeconfig: &Path) -> Result<Agent> {
        self.start_agent_with(&["--kubeconfig".as_ref(), kubeconfig.as_os_str()])
    }

    /// Starts the agent of this node with further arguments, a source among them.
    pub fn start_agent_with(&self, arguments: &[&OsStr]) -> Result<Agent> {
        let process = Process::start(
            &self.directory,
            Command::new(agent::binary()?)
                .arg("agent")
                .args(["--node-name", NODE, "--devices", "auto"])
                .arg("--bpffs")
                .arg(self.bpffs())
                .arg("--cgroup")
                .arg(&self.cgroup)
                .args(arguments),
        )?;
        Ok(Agent { process })
    }

    /// Starts the agent and waits until it answers 200 at `probe` of its health server.
    pub fn start_agent_until(&self, probe: &str, kubeconfig: &Path) -> Result<Agent> {
        let mut agent = self.start_agent(kubeconfig)?;
        let answered = eventually(&format!("the agent's {probe} is 200"), START_TIME, || {
            agent.check_alive()?;
            Ok(http_status(HEALTH.into(), probe)? == 200)
        });
        answered.with_context(|| format!("its log ends:\n{}", agent.log_end()))?;
        Ok(agent)
    }

    /// Runs `beeline <arguments> -o json` on this node's tables.
    pub fn beeline_json(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(agent::binary()?);
        command
            .args(arguments)
            .args(["-o", "json", "--bpffs"])
            .arg(self.bpffs());
        let output = command.output().context("run beeline")?;
        ensure!(
            output.status.success(),
            "beeline {arguments:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("beeline {arguments:?} printed no JSON"))
    }

    /// What the agent tells of itself.
    pub fn status(&self) -> Result<Value> {
        let answer = http_get(METRICS.into(), "/status")?;
        let (_, body) = answer
            .split_once("\r\n\r\n")
            .context("no body in the agent's answer")?;
        let mut told: Value =
            serde_json::from_str(body).with_context(|| format!("the status is no JSON: {body}"))?;
        Ok(told["status"].take())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The agent and its clients are gone by now; whatever a test left is ended with the cgroup.
        let _ = cgroup::kill_all(&self.cgroup);
        let _ = cgroup::remove_tree(&self.cgroup);
        // The mount below it is this thread's and ends with it.
        let _ = Command::new("umount").arg(self.bpffs()).output();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Agent {
    /// Fails with the end of the log if the agent has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        self.process.check_alive()
    }

    /// The agent's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The last lines the agent logged.
    pub fn log_end(&self) -> String {
        self.process.log_end()
    }

    /// Everything the agent logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Asks the agent to end.
    pub fn terminate(self) -> Result<ExitStatus> {
        self.process.terminate()
    }
}

fn timeout(command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited
        .arg(CONNECT_SECONDS)
        .arg(command.get_program())
        .args(command.get_args());
    limited
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.context("ip is missing: install it (Debian: apt-get install iproute2)")?;
    ensure!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn http_status(address: SocketAddr, path: &str) -> Result<u16> {
    let answer = http_get(address, path)?;
    let status = answer.split(' ').nth(1).context("no HTTP status")?;
    Ok(status.parse()?)
}

fn http_get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Moves the calling thread to a new network and mount namespace, with a bpffs at `bpffs`.
fn new_namespaces(bpffs: &Path) -> Result<()> {
    let target = std::ffi::CString::new(bpffs.as_os_str().as_encoded_bytes())?;
    // SAFETY: the strings outlive the calls. Unsharing the mount namespace also unshares the thread's
    // working directory and umask, which nothing here relies on.
    let failed = unsafe {
        libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) != 0
            // Else the mounts below would show up in the machine's own namespace.
            || libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) != 0
            || libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) != 0
    };
    if failed {
        return Err(std::io::Error::last_os_error()).context("make namespaces and mount bpffs");
    }
    Ok(())
}

/// Removes what a killed test left in `directory`. Names end in the process id and a count.
fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            // A cgroup's files go with it; only the directory itself can be removed.
            let _ = fs::remove_dir(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
        }
    }
}
