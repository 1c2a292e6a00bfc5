//! Complete lists from rtnetlink.
//!
//! A list that is longer than one buffer is made in parts. What changes between two of them may hide something else from
//! the list: before Linux 6.9 the kernel remembers a bucket and a position in it, and a device that goes moves up those
//! behind it. The kernel marks such lists (`NLM_F_DUMP_INTR`, Linux 3.1); rtnetlink drops the mark.

use std::io;

use futures_util::{Stream, StreamExt as _};
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

/// How often a list is asked for until one is whole. Each takes a millisecond or a few.
const ATTEMPTS: usize = 5;

/// A list, and whether something changed while it was made.
#[derive(PartialEq, Debug)]
struct Listed {
    items: Vec<RouteNetlinkMessage>,
    torn: bool,
}

/// Everything that a request asks for. The connection must forward the end of lists.
///
/// Where changes tear every attempt it is all that any of them names, the latest last: to forget a device that is there
/// would cost its traffic, while one that has just gone harms nobody until the notification of that brings the next list.
pub(super) async fn dump(
    handle: &Handle,
    request: RouteNetlinkMessage,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut all = Vec::new();
    for _ in 0..ATTEMPTS {
        let answers = handle.clone().request(message.clone());
        let Listed { items, torn } = list(answers.map_err(io::Error::other)?).await?;
        if !torn {
            return Ok(items);
        }
        all.extend(items);
    }
    Ok(all)
}

async fn list(
    answers: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
) -> io::Result<Listed> {
    let mut answers = std::pin::pin!(answers);
    let (mut items, mut torn) = (Vec::new(), false);
    while let Some(answer) = answers.next().await {
        torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(item) => items.push(item),
            NetlinkPayload::Done(end) if end.code == 0 => return Ok(Listed { items, torn }),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            // An overrun, or an end with an error: not all of it is there.
            _ => break,
        }
    }
    Err(io::Error::other("the list broke off"))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use rtnetlink::packet_core::{DoneMessage, NLM_F_MULTIPART};
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    type Message = NetlinkMessage<RouteNetlinkMessage>;

    fn device(flags: u16) -> Message {
        let mut message =
            NetlinkMessage::from(RouteNetlinkMessage::NewLink(LinkMessage::default()));
        message.header.flags = NLM_F_MULTIPART | flags;
        message
    }

    fn end(code: i32) -> Message {
        let mut done = DoneMessage::default();
        done.code = code;
        let mut message = device(0);
        message.payload = NetlinkPayload::Done(done);
        message
    }

    /// How many items there are and whether it is torn.
    async fn listed(answers: Vec<Message>) -> Option<(usize, bool)> {
        let listed = list(stream::iter(answers)).await.ok()?;
        Some((listed.items.len(), listed.torn))
    }

    #[tokio::test]
    async fn a_list_that_was_made_while_something_changed_is_known() {
        let torn = device(NLM_F_DUMP_INTR);
        assert_eq!(
            listed(vec![device(0), torn, device(0), end(0)]).await,
            Some((3, true))
        );
        assert_eq!(
            listed(vec![device(0), device(0), end(0)]).await,
            Some((2, false))
        );
        assert_eq!(listed(vec![end(0)]).await, Some((0, false)));
    }

    #[tokio::test]
    async fn a_list_that_breaks_off_is_none() {
        assert_eq!(listed(vec![device(0)]).await, None);
        assert_eq!(listed(vec![device(0), end(-libc::EINTR)]).await, None);
        assert_eq!(listed(vec![]).await, None);
    }
}
