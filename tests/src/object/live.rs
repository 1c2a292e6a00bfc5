//! XDP on live frames: the kernel makes frames, runs a program on each, and really sends what that sends.
//!
//! A frame that was sent comes back to the kernel's pool as it is then. So a program at the other end of the wire makes it
//! what it was, counts it, and drops it there.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use lb_agent::sys::bpf::{Link, Program, XdpMode};

use super::Node;
use super::instructions::{self, Code, Kind, create};
use super::run::run_live;
use super::timing::Times;
use crate::packet::Frame;

/// Where the uplink's wire ends.
const BEYOND: &str = "out0-beyond";

const REDIRECT: i32 = 23;
const XDP_DROP: i32 = 1;

/// A frame that is sent again and again, and a program that sends it without a look.
#[derive(Debug)]
pub struct Live {
    frame: Vec<u8>,
    bare: OwnedFd,
    arrived: OwnedFd,
    _beyond: Link,
}

impl Node {
    /// Prepares for sending one frame, whose length is a multiple of four, out of the uplink it came in by.
    pub fn live(&self, frame: &impl Frame) -> Result<Live> {
        let frame = frame.frame();
        ensure!(frame.len().is_multiple_of(4), "{} bytes", frame.len());
        let arrived = create(Kind::Array, 8).context("making a counter")?;
        let beyond = restoring(&frame, &arrived)
            .load_xdp()
            .context("loading what restores frames")?;
        let index = crate::device::index(BEYOND)?;
        Ok(Live {
            bare: sending(self.uplink).load_xdp()?,
            _beyond: Program::from_fd(beyond).attach_xdp(index, XdpMode::Native)?,
            arrived,
            frame,
        })
    }

    /// Nanoseconds of a frame through our XDP program, and through the bare one, each of `count`, all of which arrive.
    pub fn time_live(&self, live: &Live, count: u32) -> Result<Times> {
        let ours = self.programs["out_xdp"].as_fd();
        let run = |program| -> Result<u32> {
            let before = arrived(live)?;
            let time = run_live(program, self.uplink, &live.frame, count)
                .context("running XDP on live frames")?;
            let sent = arrived(live)? - before;
            ensure!(sent == u64::from(count), "{sent} of {count} frames arrived");
            Ok(time)
        };
        let before = run(live.bare.as_fd())?;
        let whole = run(ours)?;
        let after = run(live.bare.as_fd())?;
        Ok(Times {
            floor: before.min(after),
            whole,
        })
    }
}

fn arrived(live: &Live) -> io::Result<u64> {
    let mut count = [0; 8];
    instructions::get(&live.arrived, &mut count)?;
    Ok(u64::from_ne_bytes(count))
}

/// A program that sends every frame out of a device.
fn sending(device: u32) -> Code {
    let mut code = Code::default();
    code.set(1, device as i32);
    code.set(2, 0);
    code.call(REDIRECT);
    code.exit();
    code
}

/// A program that makes every frame the same, counts it and drops it.
fn restoring(frame: &[u8], arrived: &OwnedFd) -> Code {
    const START: u8 = 6;
    const END: u8 = 7;
    let mut code = Code::default();
    code.load_word(START, 1, 0);
    code.load_word(END, 1, 4);
    code.copy(2, START);
    code.add(2, frame.len() as i32);
    let words = frame.chunks_exact(4);
    // Two for the array's address, and three to count.
    code.skip_if_above(2, END, words.len() as i16 + 5);
    for (number, word) in words.enumerate() {
        let word = i32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        code.store_word(START, 4 * number as i16, word);
    }
    code.value_of(3, arrived);
    code.load_long(2, 3, 0);
    code.add(2, 1);
    code.store_long(3, 0, 2);
    code.set(0, XDP_DROP);
    code.exit();
    code
}
