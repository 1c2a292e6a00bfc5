//! The thread that keeps the flow shards big enough. Nothing of it happens on the event path.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::shards::{Events, FlowShards};
use super::{Error, Result};

/// Time between looks at the counters.
const LOOK: Duration = Duration::from_millis(100);

/// When the shards are measured.
struct Pace {
    /// After this time,
    period: Duration,
    /// or after so many new flows.
    flows: u64,
}

const CHEAP: Pace = Pace {
    period: Duration::from_secs(1),
    flows: 1024,
};

/// Where entries are counted by walking them.
const DEAR: Pace = Pace {
    period: Duration::from_secs(10),
    flows: 4096,
};

/// The same where nothing came or went that the programs count; the agent itself may have removed flows.
const IDLE: Duration = Duration::from_secs(10);

/// Keeps the thread running; it ends with this value.
#[derive(Debug)]
pub struct Follower {
    _stop: mpsc::Sender<()>,
}

impl FlowShards {
    /// Starts the thread.
    pub fn follow(self: Arc<Self>) -> Result<Follower> {
        let pace = if self.is_cheap()? { CHEAP } else { DEAR };
        let (stop, stopped) = mpsc::channel();
        thread::Builder::new()
            .name("flows".into())
            .spawn(move || self.run(&pace, &stopped))
            .map_err(|e| Error::io("start the thread of the flow tables", e))?;
        Ok(Follower { _stop: stop })
    }

    fn run(&self, pace: &Pace, stopped: &mpsc::Receiver<()>) {
        let mut known = Events::default();
        let mut last = None::<Instant>;
        let (mut more, mut failed) = (false, false);
        while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let outcome = self.events().and_then(|now| {
                let idle = (now.created, now.expired) == (known.created, known.expired);
                let period = if idle { IDLE } else { pace.period };
                let due = more
                    || now.refused != known.refused
                    || now.created.wrapping_sub(known.created) >= pace.flows
                    || last.is_none_or(|last| last.elapsed() >= period);
                // What was displaced before this agent began is no reason to make room.
                if last.is_some() && now.displaced != known.displaced {
                    self.admit_more()?;
                }
                known.displaced = now.displaced;
                if due {
                    (known, last) = (now, Some(Instant::now()));
                    more = self.tend()?;
                }
                Ok(())
            });
            // Told once: a kernel that refuses goes on refusing.
            match (outcome, failed) {
                (Err(error), false) => {
                    tracing::error!(%error, "could not tend the flow tables; trying again, they keep their size meanwhile");
                    failed = true;
                }
                (Ok(()), true) => {
                    tracing::info!("tended the flow tables again");
                    failed = false;
                }
                _ => {}
            }
        }
    }
}
