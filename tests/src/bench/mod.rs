//! `cargo xtask bench control`: how fast the agent follows a cluster, and what it costs.
//!
//! The release binary runs as a process of its own in a sandbox, once on a directory of manifests and once on a
//! real API server; both hold the same Services ([`workload`]). What counts is judged from outside: the kernel's
//! tables ([`tables`]), the process ([`figures`]), connections of clients ([`connect`]).

mod api;
pub mod beside;
mod connect;
mod directory;
mod figures;
pub mod lanes;
mod live;
pub mod packet;
pub mod page;
mod record;
mod report;
mod tables;
mod workload;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, mem, ptr, thread};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

pub use self::connect::{CLIENT_ARGUMENT, client};
use self::figures::Metrics;
use self::report::{Report, mebibytes, milliseconds};
use crate::agent;
use crate::control_plane::sandbox::{self, Agent, Sandbox, eventually};

/// Settings of a run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Services of ten endpoints each
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=20_000))]
    services: u32,
    /// EndpointSlice events per second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// Seconds of events
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Numbers of Services beside kube-proxy, ascending
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    sizes: Vec<usize>,
    /// Beside kube-proxy alone, at no more than 1,000 Services: three minutes
    #[arg(long)]
    quick: bool,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// A table for people, or one JSON object per line
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// A directory of manifests: memory, complete lists, restart, events.
    Directory,
    /// A real API server: complete lists, memory, events.
    Api,
    /// What a connection costs, by what getpeername() tells.
    Connect,
    /// Beside kube-proxy: change to effect, starts, memory, processor time.
    Beside,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Output {
    Table,
    Json,
}

/// How long a load may take before it counts as hung.
const LOAD_TIME: Duration = Duration::from_secs(120);
/// Memory is looked at when the agent has had time to give back what the load took.
const SETTLE: Duration = Duration::from_secs(8);

/// Measures one part.
type Measure = fn(&Sandbox, &Options, &mut Report) -> Result<()>;

/// Measures and prints. Fails if something did not work, not if a goal is missed: machines differ.
pub fn run(options: &Options) -> Result<()> {
    let mut report = Report::new(options.output == Output::Json);
    let wanted = |part| {
        if options.quick {
            part == Part::Beside
        } else {
            options.only.is_empty() || options.only.contains(&part)
        }
    };
    let parts: [(Part, Measure); 3] = [
        (Part::Directory, directory::measure),
        (Part::Api, api::measure),
        (Part::Connect, connect::measure),
    ];
    for (part, measure) in parts {
        if wanted(part) {
            let options = options.clone();
            report = in_sandbox(move |sandbox| {
                measure(sandbox, &options, &mut report)?;
                Ok(report)
            })?;
        }
    }
    if wanted(Part::Beside) {
        let (few, many) = ((15, 5), (100, 20));
        let (changes, seconds) = if options.quick { few } else { many };
        let extent = beside::Extent {
            changes,
            rate: options.rate,
            seconds,
        };
        let most = if options.quick { 1_000 } else { usize::MAX };
        let sizes: Vec<usize> = options
            .sizes
            .iter()
            .copied()
            .filter(|&size| size <= most)
            .collect();
        beside::run(&sizes, extent, options.output)?;
    }
    for missed in report.missed() {
        eprintln!("missed the goal: {missed}");
    }
    Ok(())
}

/// Runs `work` in a sandbox and hands back what it made.
fn in_sandbox<T: Send + 'static>(
    work: impl FnOnce(&Sandbox) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (give, take) = std::sync::mpsc::channel();
    sandbox::run(move |sandbox| {
        let made = work(sandbox)?;
        give.send(made).ok().context("nobody waits for the result")
    });
    take.recv().context("the sandbox made nothing")
}

/// An agent that has become ready.
struct Started {
    agent: Agent,
    /// Process started → ready.
    ready: Duration,
    /// What it logged on serving: first event received → everything written, and the writing alone.
    load: Duration,
    writing: Duration,
}

/// Starts the agent on one core and waits until it serves.
fn start(sandbox: &Sandbox, arguments: &[&OsStr]) -> Result<Started> {
    let arguments: Vec<&OsStr> = arguments
        .iter()
        .copied()
        .chain(["--log-format".as_ref(), "json".as_ref()])
        .collect();
    let all = processors()?;
    // The first of them; a child inherits the choice.
    let first = (0..libc::CPU_SETSIZE as usize)
        .find(|&cpu| contains(&all, cpu))
        .context("no processor to run on")?;
    use_processors(0, &only(first))?;
    let begin = Instant::now();
    let agent = sandbox.start_agent_with(&arguments);
    use_processors(0, &all)?;
    let mut agent = agent?;
    let serving = |agent: &Agent| {
        let log = agent.log();
        log.lines()
            .rev()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["fields"]["message"] == "serving")
    };
    let told = agent.log().len();
    eventually("the agent serves", LOAD_TIME, || {
        agent.check_alive()?;
        Ok(agent
            .log()
            .get(told..)
            .is_some_and(|log| log.contains("\"serving\"")))
    })
    .with_context(|| format!("its log ends:\n{}", agent.log_end()))?;
    let ready = begin.elapsed();
    // The one core was for the load.
    for thread in fs::read_dir(format!("/proc/{}/task", agent.id()))? {
        let thread = thread?.file_name().to_string_lossy().parse()?;
        use_processors(thread, &all)?;
    }
    let line = serving(&agent).context("the agent did not log that it serves")?;
    let field = |name: &str| -> Result<Duration> {
        let micros = line["fields"][name]
            .as_u64()
            .with_context(|| format!("no {name} in {line}"))?;
        Ok(Duration::from_micros(micros))
    };
    Ok(Started {
        ready,
        load: field("loaded_us")?,
        writing: field("written_us")?,
        agent,
    })
}

/// Memory of the agent and of the tables, after a while of rest.
fn memory(sandbox: &Sandbox, agent: &Agent) -> Result<(f64, f64)> {
    thread::sleep(SETTLE);
    let resident = mebibytes(figures::resident(agent.id())?);
    Ok((resident, mebibytes(tables::map_memory(&sandbox.bpffs())?)))
}

/// Removes pins and tables.
fn clean_up(sandbox: &Sandbox) -> Result<()> {
    let output = Command::new(agent::binary()?)
        .args(["cleanup", "--bpffs"])
        .arg(sandbox.bpffs())
        .output()
        .context("run beeline cleanup")?;
    ensure!(
        output.status.success(),
        "beeline cleanup: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Announces changes at a steady rate whether or not the last one is through: a slow answer must not slow the
/// question (coordinated omission).
fn paced(options: &Options, mut change: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let interval = Duration::from_secs(1) / options.rate;
    let begin = Instant::now();
    for number in 0..options.rate * options.seconds {
        let due = begin + interval * number;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        change(number as usize)?;
    }
    Ok(())
}

/// What the agent spent on a stretch of events.
struct Meter {
    begin: Instant,
    processor: Duration,
    metrics: Metrics,
}

impl Meter {
    fn start(agent: &Agent) -> Result<Self> {
        Ok(Self {
            metrics: Metrics::read()?,
            processor: figures::processor_time(agent.id())?,
            begin: Instant::now(),
        })
    }

    fn stop(self, agent: &Agent, part: &'static str, report: &mut Report) -> Result<()> {
        let took = self.begin.elapsed();
        let used = figures::processor_time(agent.id())?.saturating_sub(self.processor);
        let after = Metrics::read()?;
        let bounds = figures::quantiles(
            &self.metrics,
            &after,
            "beeline_programming_duration_seconds",
            &[0.5, 0.99, 1.0],
        );
        report.goal(
            part,
            "event received → tables written, p50 at most",
            bounds[0] * 1e3,
            "ms",
            1.0,
        );
        report.goal(
            part,
            "event received → tables written, p99 at most",
            bounds[1] * 1e3,
            "ms",
            10.0,
        );
        report.goal(
            part,
            "event received → tables written, max at most",
            bounds[2] * 1e3,
            "ms",
            50.0,
        );
        report.add(
            part,
            "agent's processor time",
            1e3 * used.as_secs_f64() / took.as_secs_f64(),
            "mcores",
        );
        Ok(())
    }
}

/// Time from each `since` to the moment its change was in the kernel.
fn delays(since: &[(usize, Instant)], written: Vec<(usize, Instant)>) -> Result<Vec<f64>> {
    // A Service is changed again only long after: changes of one Service are in order.
    let mut of_service: HashMap<usize, std::collections::VecDeque<Instant>> = HashMap::new();
    for (service, at) in written {
        of_service.entry(service).or_default().push_back(at);
    }
    since
        .iter()
        .map(|(service, begin)| {
            let end = of_service
                .get_mut(service)
                .and_then(std::collections::VecDeque::pop_front);
            let end = end
                .with_context(|| format!("{} was not seen to change", workload::name(*service)))?;
            Ok(if end >= *begin {
                milliseconds(end - *begin)
            } else {
                -milliseconds(*begin - end)
            })
        })
        .collect()
}

/// Replaces a file as editors do: a reader meets the old one or the new one.
fn replace(file: &Path, content: &str) -> Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, content).with_context(|| format!("write {}", next.display()))?;
    fs::rename(&next, file).with_context(|| format!("replace {}", file.display()))
}

// ---- processors ---------------------------------------------------------------------------------------------

fn processors() -> Result<libc::cpu_set_t> {
    // SAFETY: a set of bits for which zero is a value; the kernel fills it up to the size given.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        ensure!(
            libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) == 0,
            "{}",
            std::io::Error::last_os_error()
        );
        Ok(set)
    }
}

/// Chooses for a thread; 0 is the calling one.
fn use_processors(thread: libc::pid_t, set: &libc::cpu_set_t) -> Result<()> {
    // SAFETY: the kernel reads the set, of the size given.
    let done = unsafe { libc::sched_setaffinity(thread, size_of_val(set), ptr::from_ref(set)) };
    ensure!(
        done == 0,
        "choose a processor: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

fn contains(set: &libc::cpu_set_t, cpu: usize) -> bool {
    // SAFETY: reads a bit of the set; the caller counts below CPU_SETSIZE.
    unsafe { libc::CPU_ISSET(cpu, set) }
}

fn only(cpu: usize) -> libc::cpu_set_t {
    // SAFETY: sets a bit below CPU_SETSIZE in a set of zeroes.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    }
}
