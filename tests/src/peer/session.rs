//! Reads requests, keeps what they opened, writes replies.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::client::{Client, at, micros};
use super::protocol::{Failure, FailureKind, Reply, Request, Step};
use super::server::Servers;
use super::traffic::Task;
use super::{bulk, survey};

/// Serves requests until the input ends.
pub fn run() -> Result<()> {
    let mut session = Session::default();
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line.context("reading a request")?;
        let request =
            serde_json::from_str(&line).with_context(|| format!("understanding {line}"))?;
        let reply = session.handle(request).unwrap_or_else(Reply::Failed);
        serde_json::to_writer(&mut output, &reply).context("writing a reply")?;
        output.write_all(b"\n").context("writing a reply")?;
        output.flush().context("writing a reply")?;
    }
    Ok(())
}

#[derive(Default)]
struct Session {
    servers: Servers,
    sockets: BTreeMap<u32, Client>,
    tasks: BTreeMap<u32, Task>,
    last: u32,
}

impl Session {
    fn handle(&mut self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::Serve {
                name,
                addresses,
                tcp,
                udp,
            } => {
                self.servers
                    .serve(&name, &addresses, &tcp, &udp)
                    .map_err(at(Step::Open))?;
                Ok(Reply::Done)
            }
            Request::Served => Ok(Reply::Served(self.servers.served())),
            Request::Tcp {
                to,
                from_port,
                timeout_ms,
            } => {
                let start = Instant::now();
                let client = Client::tcp(to, from_port, Duration::from_millis(timeout_ms))?;
                self.keep(client, micros(start))
            }
            Request::Udp { bind, to } => {
                let start = Instant::now();
                let client = Client::udp(bind, to)?;
                self.keep(client, micros(start))
            }
            Request::HearingUdp { bind } => {
                let start = Instant::now();
                let client = Client::udp(bind, None)?;
                client.hear_errors()?;
                self.keep(client, micros(start))
            }
            Request::Ask {
                socket,
                to,
                text,
                timeout_ms,
            } => self
                .socket(socket)?
                .ask(to, &text, Duration::from_millis(timeout_ms))
                .map(Reply::Answer),
            Request::Names { socket } => self
                .socket(socket)?
                .names()
                .map(Reply::Names)
                .map_err(at(Step::Request)),
            Request::Close { socket } => {
                let client = self
                    .sockets
                    .remove(&socket)
                    .ok_or_else(|| unknown("socket", socket))?;
                client.close_by_reset();
                Ok(Reply::Done)
            }
            Request::Bulk {
                to,
                direction,
                mebibytes,
                timeout_ms,
            } => bulk::transfer(to, direction, mebibytes, Duration::from_millis(timeout_ms))
                .map(Reply::Transfer),
            Request::Survey(wanted) => Ok(Reply::Findings(survey::survey(&wanted))),
            Request::Traffic(traffic) => {
                let task = self.next();
                self.tasks.insert(task, Task::start(&traffic));
                Ok(Reply::Task { task })
            }
            Request::Report { task } => self
                .tasks
                .get(&task)
                .map(|found| Reply::Tally(found.report()))
                .ok_or_else(|| unknown("task", task)),
            Request::Finish { task } => self
                .tasks
                .remove(&task)
                .map(|found| Reply::Tally(found.finish()))
                .ok_or_else(|| unknown("task", task)),
        }
    }

    fn keep(&mut self, client: Client, micros: u64) -> Result<Reply, Failure> {
        let names = client.names().map_err(at(Step::Open))?;
        let socket = self.next();
        self.sockets.insert(socket, client);
        Ok(Reply::Opened {
            socket,
            names,
            micros,
        })
    }

    fn socket(&mut self, number: u32) -> Result<&mut Client, Failure> {
        self.sockets
            .get_mut(&number)
            .ok_or_else(|| unknown("socket", number))
    }

    fn next(&mut self) -> u32 {
        self.last += 1;
        self.last
    }
}

fn unknown(what: &str, number: u32) -> Failure {
    Failure {
        kind: FailureKind::Other,
        step: Step::Request,
        text: format!("there is no {what} {number}"),
        icmp: None,
        micros: 0,
    }
}
