//! The parent's hold on the processes of [`super::worker`].

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::worker::{Turn, Work};
use crate::process::Place;

/// First arguments of this program as a client and as a server.
pub(super) const CLIENT: &str = "lane-client";
pub(super) const SERVER: &str = "lane-server";

/// A child that answers lines with lines. Dropping it ends it.
struct Dialogue {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// A client that waits for its turn.
pub(super) struct Client(Dialogue);

/// A server; it serves as long as this lives.
pub(super) struct Server(#[expect(dead_code, reason = "its drop ends the process")] Dialogue);

impl Client {
    pub(super) fn start(
        place: &Place,
        processor: usize,
        work: Work,
        to: SocketAddr,
    ) -> Result<Self> {
        let mut command = place.command(env::current_exe()?)?;
        command
            .args([CLIENT, "--processor", &processor.to_string()])
            .args(["--work", work.name(), "--to", &to.to_string()]);
        Dialogue::start(command).map(Self)
    }

    /// Lets it work for so long.
    pub(super) fn turn(&mut self, milliseconds: u64) -> Result<Turn> {
        let answer = self.0.ask(&milliseconds.to_string())?;
        serde_json::from_str(&answer).with_context(|| format!("a client answered {answer:?}"))
    }
}

impl Server {
    pub(super) fn start(place: &Place, processor: usize, address: IpAddr) -> Result<Self> {
        let mut command = place.command(env::current_exe()?)?;
        command
            .args([SERVER, "--processor", &processor.to_string()])
            .args(["--address", &address.to_string()]);
        let mut dialogue = Dialogue::start(command)?;
        let ready = dialogue.read()?;
        ensure!(ready == "ready", "a server said {ready:?}");
        Ok(Self(dialogue))
    }
}

impl Dialogue {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let input = child.stdin.take().context("a child without an input")?;
        let output = child.stdout.take().context("a child without an output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}").context("tell a child")?;
        self.read()
    }

    fn read(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self
            .output
            .read_line(&mut line)
            .context("read a child's answer")?;
        ensure!(length > 0, "a child ended; its message is above");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
