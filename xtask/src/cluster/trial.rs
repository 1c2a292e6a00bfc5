//! `cargo xtask cluster trial`: what operators do to a cluster, done under traffic, and what the traffic says.
//!
//! Upstream's tests look at a cluster at rest. Here agents are replaced, the name service rolls out, a node loses its
//! power; every request is a new connection and is counted.

use std::fmt;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::control_plane::kubectl;
use super::place::{self, BALANCERS4, DNS4, LAN4};
use super::process::{in_network, run};
use super::{deploy, node, running};
use crate::progress::say;

const NODE_PORT: u16 = 30_080;
const HOST_PORT: u16 = 8_099;
/// Long enough to meet every endpoint and every agent.
const SETTLE: Duration = Duration::from_secs(5);
/// The last agent is replaced ten seconds after it was ready; a node is known for dead after forty.
const PATIENCE: Duration = Duration::from_secs(150);

/// Requests, one after the other, until it is dropped. Each leaves a line: `200` or what came instead.
struct Traffic {
    what: String,
    child: Child,
    lines: PathBuf,
}

/// What became of a stream of requests.
#[derive(PartialEq, Debug)]
struct Count {
    good: usize,
    bad: usize,
}

impl Count {
    fn of(lines: &str) -> Self {
        // The last line may be half of one.
        let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let good = |line: &&str| matches!(*line, "200" | "answered");
        let all = whole.lines().count();
        let good = whole.lines().filter(good).count();
        Self {
            good,
            bad: all - good,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} failed", self.bad, self.good + self.bad)
    }
}

impl Traffic {
    fn start(what: &str, command: &mut Command) -> Result<Self> {
        let name = what.replace(|c: char| !c.is_alphanumeric(), "-");
        let lines = place::state().join(format!("trial-{name}"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&lines)?)
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting traffic {what}"))?;
        Ok(Self {
            what: what.to_owned(),
            child,
            lines,
        })
    }

    fn count(&self) -> Result<Count> {
        Ok(Count::of(&fs::read_to_string(&self.lines)?))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell's loop of requests to a URL.
fn requests(url: &str) -> String {
    format!(
        "while :; do curl -s -m 2 -o /dev/null -w '%{{http_code}}\\n' '{url}' || :; sleep 0.02; done"
    )
}

fn from_outside(what: &str, url: &str) -> Result<Traffic> {
    let mut command = in_network(&place::outside(), "sh");
    Traffic::start(what, command.args(["-c", &requests(url)]))
}

fn from_pod(what: &str, words: &[&str]) -> Result<Traffic> {
    let mut command = kubectl();
    command
        .args(["-n", "trial", "exec", "client", "--"])
        .args(words);
    Traffic::start(what, &mut command)
}

fn node_port(number: u8) -> String {
    format!("http://{LAN4}.{}:{NODE_PORT}/hostname", 10 + number)
}

fn host_port() -> String {
    format!("http://{LAN4}.12:{HOST_PORT}/hostname")
}

fn external_ip() -> String {
    format!("http://{BALANCERS4}.251/hostname")
}

/// Runs everything. Fails if requests failed where none may.
pub(super) fn run_trial() -> Result<()> {
    let settings = running()?;
    ensure!(
        settings.nodes >= 2,
        "the trial reboots one node and asks another"
    );
    prepare()?;
    let outcome = restart().and_then(|()| names()).and_then(|()| power_cut());
    run(kubectl().args(["delete", "namespace", "trial", "--wait=false"]))?;
    outcome
}

fn prepare() -> Result<()> {
    let manifest = crate::root().join("tests/e2e/trial.yaml");
    run(kubectl().args(["apply", "-f"]).arg(manifest))?;
    run(kubectl().args([
        "-n",
        "trial",
        "rollout",
        "status",
        "deployment/web",
        "--timeout=90s",
    ]))?;
    let pods = ["pod/client", "pod/host-port", "--timeout=90s"];
    run(kubectl()
        .args(["-n", "trial", "wait", "--for=condition=Ready"])
        .args(pods))?;
    let mut route = in_network(&place::router(), "ip");
    let address = format!("{BALANCERS4}.251");
    run(route.args(["route", "replace", &address, "via", &format!("{LAN4}.11")]))?;
    say("trial: pods are ready");
    Ok(())
}

/// Every agent is replaced. Nobody may notice.
fn restart() -> Result<()> {
    let inside = "http://web.trial.svc.cluster.local/hostname";
    let streams = [
        from_pod(
            "pod to ClusterIP, by name",
            &["sh", "-c", &requests(inside)],
        )?,
        from_outside("outside to node 1's NodePort", &node_port(1))?,
        from_outside("outside to node 2's NodePort", &node_port(2))?,
        from_outside("outside to an external IP", &external_ip())?,
        from_outside("outside to a hostPort", &host_port())?,
    ];
    sleep(SETTLE);
    deploy::restart()?;
    sleep(SETTLE);
    for stream in &streams {
        let count = stream.count()?;
        say(format_args!(
            "trial: agents replaced: {}: {count}",
            stream.what
        ));
        ensure!(
            count.bad == 0 && count.good > 10,
            "replacing the agents was noticed: {}: {count}; see {}",
            stream.what,
            stream.lines.display()
        );
    }
    Ok(())
}

/// The name service rolls out while a client keeps its UDP socket.
fn names() -> Result<()> {
    let server = format!("{DNS4}:53");
    let name = "web.trial.svc.cluster.local.";
    let stream = from_pod(
        "one UDP socket to the name service",
        &["/asker", &server, name],
    )?;
    sleep(SETTLE);
    let rollout = ["-n", "kube-system", "rollout"];
    run(kubectl()
        .args(rollout)
        .args(["restart", "deployment/coredns"]))?;
    deploy::wait_names()?;
    sleep(SETTLE);
    let count = stream.count()?;
    say(format_args!(
        "trial: name service rolled out: {}: {count}",
        stream.what
    ));
    // Each of the two servers that end may take the question it has just got with it.
    ensure!(
        count.bad <= 4 && count.good > 10,
        "the name service was missed: {count}; see {}",
        stream.lines.display()
    );
    Ok(())
}

/// A node loses its power and comes back: it must serve again, though nobody serves the API server's ClusterIP on it.
fn power_cut() -> Result<()> {
    let other = from_outside(
        "outside to node 1's NodePort during a power cut of node 2",
        &node_port(1),
    )?;
    sleep(SETTLE);
    super::reboot(2)?;
    let begun = Instant::now();
    while !answers(&node_port(2)) {
        ensure!(
            begun.elapsed() < PATIENCE,
            "node 2 does not serve {} s after its boot",
            PATIENCE.as_secs()
        );
        sleep(Duration::from_millis(100));
    }
    say(format_args!(
        "trial: power cut: node 2 serves {:.0} s after power came back",
        begun.elapsed().as_secs_f32()
    ));
    let mut curl = node::inside(2, "curl")?;
    let address = "https://10.96.0.1/livez";
    run(curl.args(["-sk", "-m", "5", "-o", "/dev/null", address]))
        .context("a process of node 2 reaches no ClusterIP")?;
    deploy::wait_rolled_out()?;
    say(format_args!(
        "trial: power cut: {}: {}",
        other.what,
        other.count()?
    ));
    ensure!(answers(&node_port(1)), "node 1 does not serve any more");
    Ok(())
}

/// Ten requests in a row are answered.
fn answers(url: &str) -> bool {
    (0..10).all(|_| {
        let mut curl = in_network(&place::outside(), "curl");
        run(curl.args(["-sf", "-m", "2", "-o", "/dev/null", url])).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn requests_are_counted_by_their_lines() {
        let count = Count::of("200\n000\nanswered\nsilent\n20");
        assert_eq!(count, Count { good: 2, bad: 2 });
        assert_eq!(count.to_string(), "2 of 4 failed");
        assert_eq!(Count::of(""), Count { good: 0, bad: 0 });
    }
}
