//! Many runs of a program in one call of the kernel, each on a fresh packet.
//!
//! `BPF_PROG_TEST_RUN` can repeat a program, but gives it what the run before made of the packet: a translated
//! packet is nobody's, and a flow is new but once. So a program in front writes the frame anew, with the ends of the
//! next flow of a list, and jumps to the one that is measured. With an empty program behind it, the same is the
//! floor that is subtracted.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::instructions::{Code, Kind, create, put, put_program};

/// Where in the feed the frame begins, so that its network header is aligned. In front of it is the place in the list.
const FRAME_AT: usize = 14;
/// Where the list begins.
const ENDS_AT: usize = 256;

const STORE_BYTES: i32 = 9;
const TAIL_CALL: i32 = 12;

/// What differs between the packets of a feed, as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Last four bytes of the address that varies.
    pub address: [u8; 4],
    /// Both ports.
    pub ports: [u8; 4],
}

/// A program in front, with its frame and its list.
#[derive(Debug)]
pub(super) struct Feeder {
    program: OwnedFd,
    targets: OwnedFd,
    feed: OwnedFd,
    content: Vec<u8>,
    frame: Vec<u8>,
}

impl Feeder {
    /// Feeds `frame` with each of `ends` in turn, whose number is a power of two: their address goes to the first, their
    /// ports to the second of the places `at`.
    pub(super) fn new(frame: Vec<u8>, at: (usize, usize), ends: &[Ends]) -> io::Result<Self> {
        assert!(ends.len().is_power_of_two() && FRAME_AT + frame.len() <= ENDS_AT);
        let mut content = vec![0; ENDS_AT];
        content[FRAME_AT..FRAME_AT + frame.len()].copy_from_slice(&frame);
        for end in ends {
            content.extend(end.address);
            content.extend(end.ports);
        }
        let feed = create(Kind::Array, content.len() as u32)?;
        let targets = create(Kind::Programs, 4)?;
        let code = front((&feed, &targets), frame.len(), at, ends.len());
        let feeder = Self {
            program: code.load()?,
            targets,
            feed,
            content,
            frame,
        };
        feeder.begin_at(0)?;
        Ok(feeder)
    }

    /// Goes on with this one of the ends.
    pub(super) fn begin_at(&self, index: usize) -> io::Result<()> {
        let mut content = self.content.clone();
        content[..8].copy_from_slice(&(index as u64).to_ne_bytes());
        put(&self.feed, &content)
    }

    /// Puts a program behind this one.
    pub(super) fn feed(&self, target: BorrowedFd<'_>) -> io::Result<()> {
        put_program(&self.targets, target)
    }

    /// The program to run.
    pub(super) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// The frame to run it on.
    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }
}

/// A program that lets every packet pass.
pub(super) fn empty() -> io::Result<OwnedFd> {
    let mut code = Code::default();
    code.set(0, -1);
    code.exit();
    code.load()
}

fn front(
    (feed, targets): (&OwnedFd, &OwnedFd),
    length: usize,
    (address_at, ports_at): (usize, usize),
    ends: usize,
) -> Code {
    const CONTEXT: u8 = 6;
    const FEED: u8 = 7;
    const PLACE: u8 = 8;
    let mut code = Code::default();
    code.copy(CONTEXT, 1);
    code.value_of(FEED, feed);
    code.load_long(PLACE, FEED, 0);
    code.copy(2, PLACE);
    code.add(2, 1);
    code.store_long(FEED, 0, 2);
    code.and(PLACE, ends as i32 - 1);
    code.shift_left(PLACE, 3);
    code.add_register(PLACE, FEED);
    for (part, at) in [(0, address_at), (4, ports_at)] {
        let at = (FRAME_AT + at) as i16;
        code.load_word(2, PLACE, ENDS_AT as i16 + part);
        // In halves, as ports need not lie at a word's border.
        code.store_half(FEED, at, 2);
        code.shift_right(2, 16);
        code.store_half(FEED, at + 2, 2);
    }
    code.copy(1, CONTEXT);
    code.set(2, 0);
    code.copy(3, FEED);
    code.add(3, FRAME_AT as i32);
    code.set(4, length as i32);
    code.set(5, 0);
    code.call(STORE_BYTES);
    code.copy(1, CONTEXT);
    code.map(2, targets);
    code.set(3, 0);
    code.call(TAIL_CALL);
    // Nothing behind: a mistake of the harness, which no program's action looks like.
    code.set(0, 77);
    code.exit();
    code
}
