//! A program that tags what a device sends, as a host does whose packets belong to a VLAN or carry a priority.

use anyhow::{Context as _, Result};
use lb_agent::sys::bpf::{Attach, Link, Position, Program};

use super::instructions::Code;
use crate::device;
use crate::netns::Namespace;

/// `bpf_skb_vlan_push`.
const PUSH: i32 = 18;
/// `ETH_P_8021Q`, as in the frame.
const TAG: i32 = 0x8100_u16.to_be() as i32;

/// Everything that a device sends is tagged as long as this lives.
#[derive(Debug)]
pub struct Tagger {
    _link: Link,
}

impl Tagger {
    /// Tags with this word of IEEE 802.1Q: three bits of priority, one for "may be dropped", twelve that name the VLAN.
    pub fn attach(namespace: &Namespace, device: &str, tag: u16) -> Result<Self> {
        let mut code = Code::default();
        let (result, protocol, word) = (0, 2, 3);
        code.set(protocol, TAG);
        code.set(word, tag.into());
        code.call(PUSH);
        // `TCX_NEXT`.
        code.set(result, -1);
        code.exit();
        let program = Program::from_fd(code.load().context("loading a program")?);
        let link = namespace.run(|| {
            let index = device::index(device)?;
            Ok(program.attach(index, Attach::TcxEgress, Position::Last)?)
        })?;
        Ok(Self { _link: link })
    }
}
