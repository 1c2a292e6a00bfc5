//! One run of a program on one frame, as `BPF_PROG_TEST_RUN` does it, and what came of it.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::LazyLock;

use crate::packet::{Frame, text};

/// `TC_ACT_UNSPEC`: the packet goes on to the next program.
const NEXT: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

/// `BPF_PROG_TEST_RUN` of `enum bpf_cmd`.
const TEST_RUN: libc::c_long = 10;
/// `BPF_F_TEST_XDP_LIVE_FRAMES` (Linux 5.18).
const LIVE_FRAMES: u32 = 1 << 1;
/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE` (Linux 6.16).
const CHECKSUM_COMPLETE: u32 = 1 << 2;
/// `enum xdp_action`.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;
const XDP_REDIRECT: i32 = 4;
/// Size of `struct xdp_md`, and where in it the frame's end and the interface index are.
const XDP_MD: usize = 24;
const XDP_END: usize = 4;
const XDP_IFINDEX: usize = 12;
/// The shortest frame that the kernel runs XDP on.
const SHORTEST: usize = 14;
/// Size of `struct __sk_buff`, and where in it the interface indices are: where the frame came in, and where it is.
const SK_BUFF: usize = 192;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;

/// How the frame's checksum was treated by the device it is said to come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// Nothing is known (`CHECKSUM_NONE`).
    Unchecked,
    /// The device summed up the whole packet (`CHECKSUM_COMPLETE`). The kernel then checks after the run that
    /// the sum still fits the packet.
    Summed,
}

/// What meets a frame that comes in by the uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    Tc,
    /// XDP, and tc if it passes.
    XdpFirst,
}

/// What the XDP program made of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Early {
    /// It went on to the kernel, untouched.
    Passed,
    Dropped,
    /// These bytes went out of the device that the frame came in on.
    SentBack(Vec<u8>),
    /// These bytes went out of another device.
    Sent(Vec<u8>),
}

/// What a program made of a frame.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub program: &'static str,
    pub sent: Vec<u8>,
    pub action: i32,
    pub bytes: Vec<u8>,
}

/// `union bpf_attr` of the command.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: u32,
    action: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    zero: u32,
}

/// Runs a program once on a frame that is said to have come in by one device (0: by none) and to pass another.
pub(super) fn run(
    name: &'static str,
    program: BorrowedFd<'_>,
    (from, device): (u32, u32),
    received: Received,
    frame: &[u8],
) -> io::Result<Outcome> {
    run_times(name, program, (from, device), received, frame, 1).map(|(outcome, _)| outcome)
}

/// Runs a program many times, each on what the run before made of the frame. Tells the outcome of the last run and the
/// nanoseconds that one took, on average.
pub(super) fn run_times(
    name: &'static str,
    program: BorrowedFd<'_>,
    (from, device): (u32, u32),
    received: Received,
    frame: &[u8],
    times: u32,
) -> io::Result<(Outcome, u32)> {
    let mut context = [0u8; SK_BUFF];
    context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&from.to_ne_bytes());
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&device.to_ne_bytes());
    let flags = match received {
        Received::Unchecked => 0,
        Received::Summed if can_sum() => CHECKSUM_COMPLETE,
        // Such a frame cannot be made there; the rest of the fixture holds all the same.
        Received::Summed => 0,
    };
    let (action, bytes, duration) = run_with(program, &context, flags, frame, times)?;
    let outcome = Outcome {
        program: name,
        sent: frame.to_vec(),
        action,
        bytes,
    };
    Ok((outcome, duration))
}

/// Runs the XDP program once on a frame that is said to have come in by a device, which must have an XDP program.
pub(super) fn run_early(program: BorrowedFd<'_>, device: u32, frame: &[u8]) -> io::Result<Early> {
    if frame.len() < SHORTEST {
        return Ok(Early::Passed);
    }
    let (action, bytes, _) = run_with(program, &xdp_context(frame, device), 0, frame, 1)?;
    match action {
        XDP_DROP => Ok(Early::Dropped),
        XDP_TX => Ok(Early::SentBack(bytes)),
        XDP_REDIRECT => Ok(Early::Sent(bytes)),
        XDP_PASS if bytes == frame => Ok(Early::Passed),
        XDP_PASS => panic!("XDP passed on a frame that it had changed: {bytes:?}"),
        other => panic!("XDP ended with action {other}"),
    }
}

/// Runs an XDP program on many frames that are really sent, said to have come in by a device. Tells the nanoseconds that
/// one took, on average.
pub(super) fn run_live(
    program: BorrowedFd<'_>,
    device: u32,
    frame: &[u8],
    times: u32,
) -> io::Result<u32> {
    let context = xdp_context(frame, device);
    let mut attributes = Attributes {
        program: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: times,
        context_size_in: context.len() as u32,
        context_in: context.as_ptr() as u64,
        flags: LIVE_FRAMES,
        ..Attributes::default()
    };
    // SAFETY: both addresses are those of buffers of the sizes given beside them, which outlive the call.
    unsafe { test_run(&mut attributes) }?;
    Ok(attributes.duration)
}

/// `struct xdp_md` of a frame that came in by a device.
fn xdp_context(frame: &[u8], device: u32) -> [u8; XDP_MD] {
    let mut context = [0u8; XDP_MD];
    context[XDP_END..XDP_END + 4].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[XDP_IFINDEX..XDP_IFINDEX + 4].copy_from_slice(&device.to_ne_bytes());
    context
}

/// # Safety
/// Every address in the attributes must be that of a buffer of the size given beside it, to be read or written.
unsafe fn test_run(attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the attributes have the given size; the rest is the caller's promise.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            TEST_RUN,
            &raw mut *attributes,
            size_of::<Attributes>(),
        )
    };
    match answer {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn run_with(
    program: BorrowedFd<'_>,
    context: &[u8],
    flags: u32,
    frame: &[u8],
    times: u32,
) -> io::Result<(i32, Vec<u8>, u32)> {
    let mut bytes = vec![0u8; frame.len() + 512];
    let mut attributes = Attributes {
        program: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_size_out: bytes.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: bytes.as_mut_ptr() as u64,
        repeat: times,
        context_size_in: context.len() as u32,
        context_in: context.as_ptr() as u64,
        flags,
        ..Attributes::default()
    };
    // SAFETY: every address in the attributes is that of a buffer of the size given beside it, and all outlive
    // the call.
    unsafe { test_run(&mut attributes) }?;
    bytes.truncate(attributes.data_size_out as usize);
    Ok((attributes.action as i32, bytes, attributes.duration))
}

/// Whether the kernel can be told that a device summed up the frame.
fn can_sum() -> bool {
    static ANSWER: LazyLock<bool> = LazyLock::new(|| {
        let kernel = super::budget::kernel().expect("the kernel's release");
        let mut numbers = kernel.split('.').map(|number| number.parse::<u32>());
        let mut next = || numbers.next().expect("major.minor").expect("a number");
        (next(), next()) >= (6, 16)
    });
    *ANSWER
}

impl Early {
    /// As tc would have ended it; `None` if the frame went on to tc.
    pub(super) fn outcome(self, frame: &[u8]) -> Option<Outcome> {
        let (action, bytes) = match self {
            Self::Passed => return None,
            Self::Dropped => (DROP, frame.to_vec()),
            Self::SentBack(mut bytes) | Self::Sent(mut bytes) => {
                // tc leaves the next hop's addresses to the kernel.
                bytes[..12].copy_from_slice(&frame[..12]);
                (REDIRECT, bytes)
            }
        };
        Some(Outcome {
            program: "out_xdp",
            sent: frame.to_vec(),
            action,
            bytes,
        })
    }
}

impl Outcome {
    /// The packet goes on as `expected`.
    #[track_caller]
    pub fn becomes(&self, expected: &impl Frame) {
        self.check(NEXT, &expected.frame());
    }

    /// The packet goes on as it came.
    #[track_caller]
    pub fn is_untouched(&self) {
        self.check(NEXT, &self.sent);
    }

    /// The packet ends here.
    #[track_caller]
    pub fn is_dropped(&self) {
        assert_eq!(action(self.action), action(DROP), "{}", self.story());
    }

    /// `expected` goes out of the device that the packet came in on.
    #[track_caller]
    pub fn is_turned_back_as(&self, expected: &impl Frame) {
        self.check(REDIRECT, &expected.frame());
    }

    /// `expected` goes straight out of another device. Its MAC addresses are not yet those of the next hop.
    #[track_caller]
    pub fn is_sent_out_as(&self, expected: &impl Frame) {
        self.check(REDIRECT, &expected.frame());
    }

    /// Whether the packet goes on, changed or not.
    pub fn goes_on(&self) -> bool {
        self.action == NEXT
    }

    /// Whether the packet goes on as it came.
    pub fn goes_on_untouched(&self) -> bool {
        self.action == NEXT && self.bytes == self.sent
    }

    /// Whether the packet ends here.
    pub fn ends(&self) -> bool {
        self.action == DROP
    }

    /// Whether something goes out of the device that the packet came in on.
    pub fn turns_back(&self) -> bool {
        self.action == REDIRECT
    }

    /// Source and destination port now.
    pub fn ports(&self) -> (u16, u16) {
        text::ports(&self.bytes)
    }

    #[track_caller]
    fn check(&self, wanted: i32, expected: &[u8]) {
        assert_eq!(action(self.action), action(wanted), "{}", self.story());
        if let Some(difference) = text::difference(expected, &self.bytes) {
            panic!(
                "{}\nexpected (-) and found (+):\n{difference}",
                self.story()
            );
        }
    }

    /// What was sent and what came of it, in words.
    pub fn story(&self) -> String {
        let sent = text::describe(&self.sent).join("\n    ");
        let now = if self.bytes == self.sent {
            "the same".to_owned()
        } else {
            text::describe(&self.bytes).join("\n    ")
        };
        format!(
            "{} met\n    {sent}\nand it became\n    {now}\nwith action {}",
            self.program,
            action(self.action)
        )
    }
}

fn action(number: i32) -> String {
    match number {
        NEXT => "go on".into(),
        DROP => "drop".into(),
        REDIRECT => "redirect".into(),
        other => format!("number {other}"),
    }
}
