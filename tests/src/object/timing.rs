//! What programs cost: a stream of packets through one of them, and through an empty one as the floor.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lb_agent::datapath::pins::Pins;

use super::Node;
use super::feeder::{Ends, Feeder, empty};
use super::flows::FlowTables;
use super::run::{Outcome, Received, run_times};
use super::space::BPFFS;
use crate::packet::{Frame as _, Packet};

/// Flows that are opened before the tables are looked after: less than what a shard has room for.
const BATCH: usize = 4096;

/// Where packets are met.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Met {
    /// A pod sends them.
    PodIngress,
    /// A pod is to get them.
    PodEgress,
    /// They come in by the uplink.
    OutIngress,
    /// They leave by the uplink, forwarded.
    OutEgress,
}

impl Met {
    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::PodIngress => "pod_ingress",
            Self::PodEgress => "pod_egress",
            Self::OutIngress => "out_ingress",
            Self::OutEgress => "out_egress",
        }
    }
}

/// Packets that differ in one address and their ports.
#[derive(Debug)]
pub struct Stream {
    met: Met,
    feeder: Feeder,
    floor: OwnedFd,
    length: usize,
}

/// Average nanoseconds of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// With an empty program.
    pub floor: u32,
    /// With the program in question.
    pub whole: u32,
}

/// What a program did to the packets of a stream.
#[derive(Clone, Debug)]
pub struct Timed {
    pub times: Times,
    /// Of the last packet.
    pub outcome: Outcome,
    /// Whether that was changed.
    pub changed: bool,
}

impl Stream {
    /// Packets like `like`, each from other ends.
    pub fn from(met: Met, like: &Packet, ends: &[Ends]) -> Result<Self> {
        Self::new(met, like, ends, like.source, 12, 8)
    }

    /// Packets like `like`, each to another address.
    pub fn to(met: Met, like: &Packet, ends: &[Ends]) -> Result<Self> {
        Self::new(met, like, ends, like.destination, 16, 24)
    }

    /// `at4` and `at6` tell where in its header the varying address is.
    fn new(
        met: Met,
        like: &Packet,
        ends: &[Ends],
        address: IpAddr,
        at4: usize,
        at6: usize,
    ) -> Result<Self> {
        // Behind the Ethernet header; of an IPv6 address the last four bytes vary.
        let at = match address {
            IpAddr::V4(_) => (14 + at4, 14 + 20),
            IpAddr::V6(_) => (14 + at6 + 12, 14 + 40),
        };
        Ok(Self {
            met,
            feeder: Feeder::new(like.frame(), at, ends).context("loading a feeder")?,
            floor: empty()?,
            length: ends.len(),
        })
    }

    /// Its packets.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never: a list of no ends is refused.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl Node {
    /// Sends every packet of the stream once, and makes the flow tables as large as they then have to be. Nobody has
    /// answered yet: for so many unproven flows the queues must be as long as they may.
    pub fn open_flows(&mut self, stream: &Stream) -> Result<()> {
        for _ in 0..2 {
            self.datapath.tables().flows.admit_more()?;
        }
        for first in (0..stream.length).step_by(BATCH) {
            let count = BATCH.min(stream.length - first);
            self.send(stream, first, count)?;
            while self.datapath.tables().flows.tend()? {}
        }
        self.flows = FlowTables::open(&Pins::new(Path::new(BPFFS)))?;
        Ok(())
    }

    /// Sends `count` packets of the stream from the one numbered `first` on. The last one's outcome.
    pub fn send(&self, stream: &Stream, first: usize, count: usize) -> Result<Outcome> {
        let program = self.programs[stream.met.program()].as_fd();
        stream.feeder.feed(program)?;
        stream.feeder.begin_at(first)?;
        self.run_stream(stream, count).map(|(outcome, _)| outcome)
    }

    /// Times `count` packets of the stream from the one numbered `first` on. The last one's outcome is told, and
    /// whether it was changed.
    pub fn time(&self, stream: &Stream, first: usize, count: usize) -> Result<Timed> {
        stream.feeder.feed(stream.floor.as_fd())?;
        stream.feeder.begin_at(first)?;
        let (untouched, before) = self.run_stream(stream, count)?;
        let program = self.programs[stream.met.program()].as_fd();
        stream.feeder.feed(program)?;
        stream.feeder.begin_at(first)?;
        let (outcome, whole) = self.run_stream(stream, count)?;
        stream.feeder.feed(stream.floor.as_fd())?;
        stream.feeder.begin_at(first)?;
        let (_, after) = self.run_stream(stream, count)?;
        ensure!(outcome.action != 77, "the feeder had nothing to feed");
        let floor = before.min(after);
        Ok(Timed {
            changed: outcome.bytes != untouched.bytes,
            outcome,
            times: Times { floor, whole },
        })
    }

    fn run_stream(&self, stream: &Stream, count: usize) -> Result<(Outcome, u32)> {
        let devices = match stream.met {
            Met::PodIngress => (self.pod, self.pod),
            Met::PodEgress => (self.uplink, self.pod),
            Met::OutIngress => (self.uplink, self.uplink),
            Met::OutEgress => (self.pod, self.uplink),
        };
        let (name, feeder) = (stream.met.program(), &stream.feeder);
        let run = run_times(
            name,
            feeder.program(),
            devices,
            Received::Unchecked,
            feeder.frame(),
            count as u32,
        );
        run.with_context(|| format!("running {name} {count} times"))
    }
}
