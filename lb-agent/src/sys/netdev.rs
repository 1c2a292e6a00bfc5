//! What devices say they can do for XDP: the generic netlink family `netdev` (Linux 6.3), laid out after
//! include/uapi/linux/{genetlink,netdev}.h.

use std::collections::BTreeMap;
use std::io;

use super::netlink::{HEADER, Socket, each_message, error_of, receive};

/// XDP programs can drop, pass and send back (`NETDEV_XDP_ACT_BASIC`).
pub const BASIC: u64 = 1;
/// The device sends what XDP redirects to it (`NETDEV_XDP_ACT_NDO_XMIT`). Many can do so only while certain
/// conditions hold, such as a program of their own.
pub const TRANSMIT: u64 = 4;

/// `GENL_ID_CTRL`, and of it `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_NAME`, `CTRL_ATTR_FAMILY_ID`.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET`, and of it `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES`.
const GET_DEVICE: u8 = 1;
const INDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// Length of `struct genlmsghdr`.
const COMMAND: usize = 4;

/// Bits of this module by interface index, of the calling thread's network namespace; `None` where the kernel does
/// not tell.
pub fn xdp_features() -> io::Result<Option<BTreeMap<u32, u64>>> {
    let socket = Socket::open(libc::NETLINK_GENERIC, 0)?;
    let mut family = None;
    let asked = ask(
        &socket,
        (CONTROL, libc::NLM_F_ACK, GET_FAMILY),
        Some((FAMILY_NAME, b"netdev\0")),
        |attributes| family = attribute(attributes, FAMILY_ID).and_then(number),
    );
    match asked {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    }
    let Some(family) = family else {
        return Ok(None);
    };
    let mut features = BTreeMap::new();
    let device = |attributes: &[u8]| {
        let index = attribute(attributes, INDEX).and_then(number);
        let bits = attribute(attributes, XDP_FEATURES).and_then(number);
        if let (Some(index), Some(bits)) = (index, bits) {
            features.insert(index as u32, bits);
        }
    };
    ask(
        &socket,
        (family as u16, libc::NLM_F_DUMP, GET_DEVICE),
        None,
        device,
    )?;
    Ok(Some(features))
}

/// Sends a command and hands the attributes of each answer to `visit`.
fn ask(
    socket: &Socket,
    (family, flags, command): (u16, libc::c_int, u8),
    argument: Option<(u16, &[u8])>,
    mut visit: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut message = vec![0; HEADER + COMMAND];
    if let Some((kind, value)) = argument {
        message.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = message.len() as u32;
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&family.to_ne_bytes());
    message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message[HEADER] = command;
    message[HEADER + 1] = 1;
    socket.send(&message)?;
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = receive(socket, &mut buffer)?;
        let done = each_message(&buffer[..length], |kind, body| match i32::from(kind) {
            libc::NLMSG_DONE => Ok(true),
            libc::NLMSG_ERROR => error_of(body).map(|()| true),
            _ => {
                visit(body.get(COMMAND..).unwrap_or_default());
                Ok(false)
            }
        })?;
        if done {
            return Ok(());
        }
    }
}

/// The value of the first attribute of a kind.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    /// `NLA_TYPE_MASK`.
    const KIND: u16 = 0x3fff;
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & KIND == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// An integer of two, four or eight bytes.
fn number(value: &[u8]) -> Option<u64> {
    match *value {
        [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
        _ => Some(u64::from_ne_bytes(value.try_into().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_listed_and_cannot_send() {
        // Kernels before 6.3 tell nothing.
        if let Some(features) = xdp_features().expect("a generic netlink socket") {
            assert_eq!(features.get(&1), Some(&0), "{features:?}");
        }
    }

    #[test]
    fn attributes_are_found_behind_others_and_broken_ones_end_the_search() {
        let attributes = [6, 0, 1, 0, 7, 0, 0, 0, 8, 0, 3, 0x40, 9, 0, 0, 0];
        assert_eq!(attribute(&attributes, 3).and_then(number), Some(9));
        assert_eq!(attribute(&attributes, 2), None);
        assert_eq!(attribute(&[200, 0, 3, 0, 1], 3), None);
        assert_eq!(attribute(&[0, 0, 1, 0, 1], 3), None);
    }
}
