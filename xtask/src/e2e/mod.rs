//! `cargo xtask e2e`: upstream's own end-to-end tests on the cluster of `cargo xtask cluster`.
//!
//! The tests run outside the cluster and dial it as anybody would. kube-proxy's results on the same cluster are the
//! baseline: what passes there must pass here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser};

use crate::cluster::{self, Settings, in_network, programs};
use crate::progress::say;
use crate::{demo, setup};

mod report;

use report::Results;

/// Left out: what wants the cluster for itself, the internet or SCTP in the kernel, and what measures or is about
/// Ingress objects.
const SKIP: &str = r"\[Disruptive\]|\[Serial\]|Feature:(PerformanceDNS|SCTPConnectivity|Networking-Performance)|Internet connection|Ingress(Class)? API";

/// Left out, too, where nothing enforces policies.
const SKIP_POLICIES: &str = "Feature:NetworkPolicy|Netpol";

/// Left out, too, where pods and Services have one address family.
const SKIP_DUAL_STACK: &str = "Feature:IPv6DualStack";

const ALL: &str = r"\[sig-network\]";

/// A verdict in about three minutes.
const QUICK: &str = r"Services should (serve|be able to create|be rejected|support external|respect internal|preserve)|Conntrack.*ClusterIP|should only target nodes";

const TELL_EVERY: Duration = Duration::from_secs(60);

/// Above this line docs/e2e.md is written by hand.
const GENERATED: &str = "<!-- Below: written by `cargo xtask e2e --record`. -->";

#[derive(Args)]
pub(crate) struct Options {
    /// Only tests whose names match this regular expression.
    focus: Option<String>,
    /// A first verdict in about three minutes.
    #[arg(long, conflicts_with = "focus")]
    quick: bool,
    /// Leave out tests whose names match this, instead of those that the cluster has not what they need for.
    #[arg(long, value_name = "EXPRESSION")]
    skip: Option<String>,
    /// Tests that run at the same time.
    #[arg(long, default_value_t = 6)]
    processes: u8,
    /// Results to compare with.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "tests/e2e/baseline-kube-proxy-nftables.tsv"
    )]
    baseline: PathBuf,
    /// Write the results into docs/e2e.md.
    #[arg(long)]
    record: bool,
}

/// Runs the tests; true when none fails that passes in the baseline.
pub(crate) fn run(options: &Options) -> Result<bool> {
    ensure!(
        setup::is_root(),
        "the cluster is made of namespaces, so it needs root: {}",
        demo::as_root("e2e")
    );
    let baseline = Results::read(&crate::root().join(&options.baseline))?;
    cluster::prepare_tests()?;
    let settings = match Settings::load()? {
        Some(settings) => settings,
        None => {
            let settings = Defaults::parse_from(["cluster"]).settings;
            cluster::up(&settings)?;
            settings
        }
    };
    let directory = cluster::home().join("report");
    let begun = Instant::now();
    let results = judge(options, &settings, &directory)?;
    ensure!(
        results.count() > 0,
        "no test ran; see {}",
        directory.join("e2e.log").display()
    );
    fs::write(directory.join("results.tsv"), results.table())?;

    print!("{}", results.table());
    let summary = format!(
        "{} of {} passed in {} s ({settings})",
        results.passed(),
        results.count(),
        begun.elapsed().as_secs()
    );
    say(format_args!(
        "{summary}; report and log: {}",
        directory.display()
    ));
    if options.record {
        record(&results, &baseline, &summary)?;
    }
    let worse = results.worse_than(&baseline);
    for name in &worse {
        say(format_args!("fails here and not there: {name}"));
    }
    if worse.is_empty() && results.passed() < results.count() {
        say("what failed, fails with kube-proxy too");
    }
    Ok(worse.is_empty())
}

/// What `cargo xtask cluster up` takes without flags.
#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    settings: Settings,
}

fn judge(options: &Options, settings: &Settings, directory: &Path) -> Result<Results> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory)?;
    let focus = match (&options.focus, options.quick) {
        (Some(focus), _) => focus,
        (None, true) => QUICK,
        (None, false) => ALL,
    };
    let skip = match &options.skip {
        Some(skip) => skip.clone(),
        None => skipped(settings),
    };
    let junit = directory.join("junit.xml");
    let log = directory.join("e2e.log");
    let output = fs::File::create(&log)?;
    let mut command = in_network(&cluster::outside(), cluster::program("ginkgo"));
    command
        .current_dir(directory)
        .args(["--no-color", "--timeout=6h"])
        .arg(format!("--procs={}", options.processes))
        .arg(format!("--focus={focus}"))
        .arg(format!("--skip={skip}"))
        .arg(format!("--junit-report={}", junit.display()))
        .arg(cluster::program("e2e.test"))
        .arg("--")
        .arg(format!("--kubeconfig={}", cluster::kubeconfig().display()))
        .arg(format!(
            "--kubectl-path={}",
            cluster::program("kubectl").display()
        ))
        .arg(format!("--num-nodes={}", settings.nodes))
        .args([
            "--provider=skeleton",
            "--disable-log-dump",
            "--allowed-not-ready-nodes=0",
            "--node-schedulable-timeout=2m",
            "--system-pods-startup-timeout=2m",
        ])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    say(format_args!("testing; the log is {}", log.display()));
    let mut child = command.spawn().context("starting ginkgo")?;
    let mut told = Instant::now();
    // Failures are in the report; ginkgo's own status says no more.
    while child.try_wait()?.is_none() {
        sleep(Duration::from_millis(200));
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            say(progress(&fs::read_to_string(&log).unwrap_or_default()));
        }
    }
    let text = fs::read_to_string(&junit)
        .with_context(|| format!("the tests left no report; their log is {}", log.display()))?;
    Ok(Results::from_junit(&text))
}

/// What a cluster of these settings has not what it needs for.
fn skipped(settings: &Settings) -> String {
    let mut expressions = vec![SKIP];
    if !settings.network_policies {
        expressions.push(SKIP_POLICIES);
    }
    if settings.has_one_family() {
        expressions.push(SKIP_DUAL_STACK);
    }
    expressions.join("|")
}

/// Of the log, where each test that ended is a bullet.
fn progress(log: &str) -> String {
    let planned = log
        .lines()
        .find_map(|line| line.strip_prefix("Will run ")?.split(' ').next())
        .unwrap_or("?");
    let ended = log.matches('•').count();
    let failed = log.matches("• [FAILED]").count();
    format!("{ended} of {planned} tests ran, {failed} failed")
}

/// Replaces the generated part of docs/e2e.md.
fn record(results: &Results, baseline: &Results, summary: &str) -> Result<()> {
    let page = crate::root().join("docs/e2e.md");
    let text = fs::read_to_string(&page).context("reading docs/e2e.md")?;
    let (written, _) = text
        .split_once(GENERATED)
        .with_context(|| format!("docs/e2e.md has no line `{GENERATED}`"))?;
    let commit = cluster::quietly(Command::new("git").current_dir(crate::root()).args([
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
    ]))?;
    let text = format!(
        "{written}{GENERATED}\n\n## Every test\n\nCommit {}, Kubernetes {}: {summary}.\n\n{}",
        commit.trim(),
        programs::version()?,
        results.page(baseline)
    );
    fs::write(page, text).context("writing docs/e2e.md")
}

#[cfg(test)]
mod tests {
    use super::progress;

    #[test]
    fn progress_is_counted_in_bullets() {
        let log = "Will run 174 of 7600 specs\n••S•\n• [FAILED] [61.2 seconds]\n";
        assert_eq!(progress(log), "4 of 174 tests ran, 1 failed");
        assert_eq!(progress(""), "0 of ? tests ran, 0 failed");
    }
}
