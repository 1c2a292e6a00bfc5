//! Commands people type: the tree, its exit codes, and how errors are told.
//!
//! | file | what is there |
//! | --- | --- |
//! | [`agent`], `api_server`, `conntrack` | flags of `beeline agent` → `Config` |
//! | `read` | live tables out of the pins |
//! | [`live`] | tables joined into services, frontends and endpoints (pure) |
//! | `query` | which services a command is about |
//! | `service`, `endpoint`, `flow`, `bench`, `status` | one command a file |
//! | [`logging`] | where the agent's log lines go |
//! | `output` | tables for people, TSV for pipes, JSON for programs |

pub mod agent;
mod api_server;
mod ask;
mod bench;
mod conntrack;
mod endpoint;
mod flow;
pub mod live;
pub mod logging;
mod neighbours;
pub mod output;
pub mod query;
mod read;
#[cfg(test)]
mod sample;
mod service;
mod status;

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::cleanup;
use crate::datapath::Tenure;
use crate::sys::mount;
use output::{Format, Palette};
use query::ServiceQuery;

/// Version of everything printed or served as JSON.
pub const API_VERSION: &str = "beeline.dev/v1";

/// An eBPF service load balancer for Kubernetes.
#[derive(Parser, Debug)]
#[command(
    name = "beeline",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
#[command(after_help = "Exit codes: 0 fine, 1 error, 2 wrong usage, 3 problems found.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Follow a cluster and keep this node's kernel tables true
    Agent(Box<agent::AgentArgs>),
    /// Remove every program, table and pin of ours from this node
    Cleanup(Place),
    /// Make sure that there is a BPF file system, for the init container of hosts that mount none at boot
    MountBpffs(Place),
    /// Services as the kernel has them
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Endpoints as the kernel has them
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Flows of the packet path as the kernel has them
    #[command(subcommand)]
    Flow(FlowCommand),
    /// What a connection through a Service costs on this node
    #[command(subcommand)]
    Bench(BenchCommand),
    /// One screen: is all well on this node? Works without a running agent
    Status(StatusArgs),
    /// Version of the program and of its table layouts
    Version {
        #[command(flatten)]
        show: Show,
    },
}

#[derive(Subcommand, Debug)]
pub enum ServiceCommand {
    /// Every frontend, one a line
    List(ListArgs),
    /// Frontends and endpoints of one service
    Get {
        /// NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT (the port by name or number)
        service: ServiceQuery,
        #[command(flatten)]
        list: ListArgs,
    },
}

#[derive(Subcommand, Debug)]
pub enum EndpointCommand {
    /// Every endpoint of every service port, one a line
    List {
        /// NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT (the port by name or number)
        service: Option<ServiceQuery>,
        #[command(flatten)]
        list: ListArgs,
    },
}

#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    /// Two hundred connections to a Service and to its endpoints, in turns: too few to be felt
    Quick {
        /// NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT (the port by name or number)
        service: ServiceQuery,
        #[command(flatten)]
        list: ListArgs,
    },
}

#[derive(Subcommand, Debug)]
pub enum FlowCommand {
    /// Every flow, one a line, and how full the flow tables are
    List {
        #[command(flatten)]
        filter: FlowFilter,
        #[command(flatten)]
        show: Show,
    },
    /// End flows: their next packet is treated as the first of a conversation
    Flush(FlushArgs),
}

#[derive(Args, Clone, Debug)]
pub struct FlowFilter {
    #[command(flatten)]
    place: Place,
    /// Only flows of this service: NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceQuery>,
    /// Only flows of this client
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
}

#[derive(Args, Clone, Debug)]
pub struct FlushArgs {
    #[command(flatten)]
    filter: FlowFilter,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Where our pins are.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// BPF file system that holds the tables
    #[arg(long, env = agent::BPFFS_VARIABLE, value_name = "DIR", default_value = agent::BPFFS)]
    pub bpffs: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    show: Show,
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// All namespaces (the default)
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    show: Show,
    /// Where the agent answers probes
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10256")]
    healthz: SocketAddr,
    /// Where the agent serves metrics
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10249")]
    metrics: SocketAddr,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct Show {
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    output: Format,
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    Fine = 0,
    Error = 1,
    /// The command worked and found something that needs attention.
    Problems = 3,
}

/// What a command prints, and how it ends.
#[derive(Debug)]
pub struct Printed {
    pub text: String,
    pub exit: Exit,
}

/// Why a command failed, and what to do.
#[derive(Debug)]
pub struct CommandError {
    /// What failed, on what.
    pub what: String,
    /// Likely cause.
    pub cause: String,
    /// Next command or action.
    pub next: String,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clean = output::clean;
        write!(
            f,
            "{}\n  cause: {}\n  try:   {}",
            clean(&self.what),
            clean(&self.cause),
            clean(&self.next)
        )
    }
}

impl std::error::Error for CommandError {}

/// Runs a command, prints its result and returns its exit code.
pub fn run(command: &Command) -> Exit {
    match answer(command) {
        Ok(printed) => {
            // A reader that went away (`| head`) is no error of ours.
            let _ = std::io::stdout().lock().write_all(printed.text.as_bytes());
            printed.exit
        }
        Err(error) => {
            eprintln!("beeline: {error}");
            Exit::Error
        }
    }
}

/// What a command has to say. `agent` is not among them: it is `main`'s to start.
pub fn answer(command: &Command) -> Result<Printed, CommandError> {
    match command {
        Command::Service(ServiceCommand::List(list)) => {
            service::list(&read::tables(&list.place.bpffs)?, list)
        }
        Command::Service(ServiceCommand::Get { service, list }) => {
            service::get(&read::tables(&list.place.bpffs)?, service, list)
        }
        Command::Endpoint(EndpointCommand::List { service, list }) => {
            endpoint::list(&read::tables(&list.place.bpffs)?, service.as_ref(), list)
        }
        Command::Flow(FlowCommand::List { filter, show }) => {
            flow::list(&read::tables(&filter.place.bpffs)?, filter, *show)
        }
        Command::Flow(FlowCommand::Flush(args)) => {
            flow::flush(&read::tables(&args.filter.place.bpffs)?, args)
        }
        Command::Bench(BenchCommand::Quick { service, list }) => {
            bench::quick(&read::tables(&list.place.bpffs)?, service, list)
        }
        Command::Status(args) => Ok(status::status(args)),
        Command::Version { show } => Ok(version(*show)),
        Command::Cleanup(place) => cleaned_up(&place.bpffs),
        Command::MountBpffs(place) => mounted(&place.bpffs),
        Command::Agent(_) => Err(CommandError {
            what: "the agent was not started".into(),
            cause: "the program took a wrong turn".into(),
            next: "please report it".into(),
        }),
    }
}

fn cleaned_up(bpffs: &Path) -> Result<Printed, CommandError> {
    let _tenure = Tenure::take_if_present(bpffs).map_err(|error| CommandError {
        what: "nothing was removed".into(),
        cause: error.to_string(),
        next: "stop the agent for good first; in a cluster, delete its DaemonSet".into(),
    })?;
    let report = cleanup::cleanup(bpffs);
    Ok(Printed {
        exit: if report.is_complete() {
            Exit::Fine
        } else {
            Exit::Error
        },
        text: format!("{report}\n"),
    })
}

fn mounted(bpffs: &Path) -> Result<Printed, CommandError> {
    let (there, shown) = (mount::is_bpffs(bpffs), bpffs.display());
    let failed = |error: std::io::Error| {
        CommandError {
        what: format!("no BPF file system at {shown}"),
        cause: error.to_string(),
        next: "run as root of the host, in a privileged container with Bidirectional mount propagation".into(),
    }
    };
    let text = if there.map_err(failed)? {
        format!("there is a BPF file system at {shown}\n")
    } else {
        mount::ensure_bpffs(bpffs).map_err(failed)?;
        format!("mounted a BPF file system at {shown}\n")
    };
    Ok(Printed {
        text,
        exit: Exit::Fine,
    })
}

fn version(show: Show) -> Printed {
    let (version, abi) = (env!("CARGO_PKG_VERSION"), lb_ebpf::abi::ABI_VERSION);
    let text = match show.output {
        Format::Json => output::json_object(
            "Version",
            &serde_json::json!({ "version": version, "abi": abi }),
        ),
        Format::Table | Format::Wide => format!("beeline {version} (table layout {abi})\n"),
    };
    Printed {
        text,
        exit: Exit::Fine,
    }
}

impl Show {
    /// Whether a person reads, and in colour.
    fn palette(self) -> Palette {
        Palette::for_stdout(std::io::stdout().is_terminal())
    }
}

impl ListArgs {
    /// The namespace and name conditions together.
    fn query(&self, service: Option<&ServiceQuery>) -> ServiceQuery {
        let mut query = service.cloned().unwrap_or_default();
        if query.namespace.is_none() {
            query.namespace.clone_from(&self.namespace);
        }
        query
    }

    fn bpffs(&self) -> &Path {
        &self.place.bpffs
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_are_read() {
        for line in [
            "beeline service list -A -o json",
            "beeline service get shop/web:http -o wide",
            "beeline endpoint list web -n shop",
            "beeline endpoint list",
            "beeline flow list --service shop/web:http --client fd00::1 -o wide",
            "beeline flow flush --client 10.0.0.1 --yes",
            "beeline status --bpffs /tmp/x",
            "beeline version",
            "beeline cleanup --bpffs /tmp/x",
            "beeline mount-bpffs --bpffs /tmp/x",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
        for line in [
            "beeline",
            "beeline service list -A -n x",
            "beeline service get a/b/c",
            "beeline status -o yaml",
            "beeline flow list --client web",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn errors_say_what_why_and_what_next() {
        let error = CommandError {
            what: "no table".into(),
            cause: "no\u{1b}[31m agent".into(),
            next: "run one".into(),
        };
        assert_eq!(
            error.to_string(),
            "no table\n  cause: no[31m agent\n  try:   run one"
        );
    }
}
