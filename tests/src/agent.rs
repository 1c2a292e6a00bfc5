//! The agent under test: a child process on a node.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;
use std::{env, io};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{Place, output};
use crate::wait::eventually;

/// Where the agent tells that it has loaded everything.
const HEALTH: ([u8; 4], u16) = ([127, 0, 0, 1], 10256);

const METRICS_PORT: u16 = 10249;

/// Which sockets the hooks translate (`--socket-lb`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketLb {
    All,
    Host,
    Off,
}

impl SocketLb {
    fn flag(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Host => "host",
            Self::Off => "off",
        }
    }
}

/// Where an agent learns of the cluster's objects.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server that a kubeconfig names.
    Kubeconfig(PathBuf),
}

/// How to start an agent.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: String,
    pub place: Place,
    pub source: Source,
    pub bpffs: PathBuf,
    /// The cgroup that gets the socket hooks.
    pub cgroup: PathBuf,
    pub log: PathBuf,
    pub socket_lb: SocketLb,
    /// Further arguments of `beeline agent`.
    pub arguments: Vec<String>,
}

/// An agent, running or not. Dropping it ends the process.
#[derive(Debug)]
pub struct Agent {
    settings: Settings,
    process: Option<Child>,
}

impl Agent {
    /// Starts `beeline agent`.
    pub fn start(settings: Settings) -> Result<Self> {
        let mut agent = Self {
            settings,
            process: None,
        };
        agent.launch()?;
        Ok(agent)
    }

    /// Waits until the agent says that it is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        let namespace = self.settings.place.namespace.clone();
        let outcome = eventually(
            "the agent answers 200 on /healthz",
            Duration::from_secs(60),
            || {
                if let Some(status) = self.exit_status()? {
                    bail!("the agent ended ({status})");
                }
                Ok(namespace.run(|| Ok(healthy()))?.then_some(()))
            },
        );
        outcome.with_context(|| {
            format!(
                "log of the agent on {}:\n{}",
                self.settings.node,
                self.log()
            )
        })
    }

    /// Whether `/healthz` answers 200 now.
    pub fn is_healthy(&self) -> Result<bool> {
        self.settings.place.namespace.run(|| Ok(healthy()))
    }

    /// Ends the agent in the hardest way.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().context("killing the agent")?;
            process.wait().context("waiting for the killed agent")?;
        }
        Ok(())
    }

    /// Asks the agent to end (SIGTERM) and checks that it ends well.
    pub fn stop(&mut self) -> Result<()> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let pid = libc::pid_t::try_from(process.id())?;
        // SAFETY: kill takes two numbers; the process is our child and not yet waited for, so its id is not reused.
        let sent = unsafe { libc::kill(pid, libc::SIGTERM) };
        ensure!(
            sent == 0,
            "asking the agent to end: {}",
            io::Error::last_os_error()
        );
        let status = eventually(
            "the agent ends after SIGTERM",
            // The kernel lets go of watched files after a grace period, which takes seconds on a starved machine.
            Duration::from_secs(60),
            || self.exit_status(),
        )?;
        self.process = None;
        ensure!(
            status.success(),
            "the agent ended with {status} after SIGTERM; its log:\n{}",
            self.log()
        );
        Ok(())
    }

    /// Starts the agent again, with the same settings, and waits until it is ready. Ends it first if it runs.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()?;
        self.wait_ready()
    }

    /// Like [`Self::restart`], with another choice of sockets to translate.
    pub fn restart_as(&mut self, socket_lb: SocketLb) -> Result<()> {
        self.settings.socket_lb = socket_lb;
        self.restart()
    }

    /// Like [`Self::restart`], with other further arguments.
    pub fn restart_with(&mut self, arguments: &[&str]) -> Result<()> {
        self.settings.arguments = arguments.iter().map(|&argument| argument.into()).collect();
        self.restart()
    }

    /// Its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// What the agent has printed so far, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.settings.log).unwrap_or_default()
    }

    /// Whether the agent has printed `text`.
    pub fn log_contains(&self, text: &str) -> bool {
        self.log().contains(text)
    }

    /// Runs another `beeline` command, e.g. `cleanup`, on the agent's node and returns what it printed.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.settings.place.command(binary()?)?;
        output(
            command
                .args(arguments)
                .arg("--bpffs")
                .arg(&self.settings.bpffs),
        )
    }

    /// The sum of a counter over all its labels, from the agent's metrics.
    pub fn counter(&self, name: &str) -> Result<f64> {
        let page = self.get(METRICS_PORT, "/metrics")?;
        let samples = page.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let values = samples.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>());
        values
            .sum::<Result<f64, _>>()
            .with_context(|| format!("reading {name} in:\n{page}"))
    }

    /// A page of the agent's HTTP endpoints, e.g. port 10249, `/metrics`.
    pub fn get(&self, port: u16, path: &str) -> Result<String> {
        self.settings
            .place
            .namespace
            .run(|| get(SocketAddr::from((HEALTH.0, port)), path).context("asking the agent"))
    }

    fn launch(&mut self) -> Result<()> {
        let Settings {
            node,
            place,
            source,
            bpffs,
            cgroup,
            log,
            socket_lb,
            arguments,
        } = &self.settings;
        let mut output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .context("opening the agent's log")?;
        writeln!(output, "--- {node}: agent starts ---")?;
        let mut command = place.command(binary()?)?;
        command.arg("agent").args(["--node-name", node]);
        match source {
            Source::Manifests(directory) => command.arg("--manifests").arg(directory),
            Source::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
        };
        command
            .arg("--bpffs")
            .arg(bpffs)
            .arg("--cgroup")
            .arg(cgroup);
        command
            .args(["--socket-lb", socket_lb.flag(), "--devices", "auto"])
            .args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        self.process = Some(
            command
                .spawn()
                .with_context(|| format!("starting {command:?}"))?,
        );
        Ok(())
    }

    fn exit_status(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.process
            .as_mut()
            .context("the agent does not run")?
            .try_wait()
            .context("looking after the agent")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Nothing can be done about an error here; the scope's removal kills what is left.
        let _ = self.kill9();
    }
}

/// The `beeline` binary: `$BEELINE`, else the one built last.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("BEELINE").filter(|path| *path != OsString::new()) {
        return Ok(path.into());
    }
    let target = env::current_exe().context("looking for this program")?;
    let target = target
        .ancestors()
        .find(|path| path.ends_with("target"))
        .unwrap_or(Path::new("target"))
        .to_owned();
    let built = ["release", "debug"].map(|profile| target.join(profile).join("beeline"));
    let newest = built
        .into_iter()
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .max();
    let hint = "there is no `beeline` binary: run `cargo xtask build`, or name one in the variable BEELINE";
    Ok(newest.context(hint)?.1)
}

/// Whether `/healthz` answers 200 in the calling thread's namespace; kube-proxy has it at the same place.
pub(crate) fn healthy() -> bool {
    get(SocketAddr::from(HEALTH), "/healthz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

pub(crate) fn get(from: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&from, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
