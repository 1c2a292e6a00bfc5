//! UDP endpoints across Services: who has each, and whose clients are to be told when nobody has it any more.

use std::collections::HashMap;

use lb_ebpf::abi::address::Address6;

/// Address and port.
pub(super) type UdpEndpoint = (Address6, u16);

/// UDP endpoints of all service ports.
#[derive(Debug, Default)]
pub(super) struct UdpEndpoints {
    /// How many service ports have each.
    users: HashMap<UdpEndpoint, u32>,
    /// Service ports, by id, that sent clients to an endpoint and lost it: as long as others have it those clients
    /// stay, and whoever lets go of it last need not have sent anybody there. The same again if it comes back, behind
    /// whatever Service, before they can all have been told.
    owed: HashMap<UdpEndpoint, Vec<u32>>,
}

/// How a service port and an endpoint part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Parting {
    /// The service port of this id sent clients there, and goes on without it.
    Owing(u32),
    /// It sent nobody there, or goes itself: what a deleted Service leads to may live on behind other names.
    Even,
}

impl UdpEndpoints {
    /// One more service port has it.
    pub(super) fn join(&mut self, endpoint: UdpEndpoint) {
        *self.users.entry(endpoint).or_default() += 1;
    }

    /// The service port sends clients there again: those of before are where they belong.
    pub(super) fn regain(&mut self, endpoint: UdpEndpoint, port: u32) {
        if let Some(owed) = self.owed.get_mut(&endpoint) {
            owed.retain(|id| *id != port);
            if owed.is_empty() {
                self.owed.remove(&endpoint);
            }
        }
    }

    /// One service port less has it. Answers whether nobody has it now, and somebody is to be told.
    pub(super) fn leave(&mut self, endpoint: UdpEndpoint, parting: Parting) -> bool {
        if let Parting::Owing(port) = parting {
            let owed = self.owed.entry(endpoint).or_default();
            if !owed.contains(&port) {
                owed.push(port);
            }
        }
        match self.users.get_mut(&endpoint) {
            Some(users) if *users > 1 => *users -= 1,
            _ => drop(self.users.remove(&endpoint)),
        }
        !self.has(endpoint) && self.owed.contains_key(&endpoint)
    }

    /// Who was to be told had the time to learn it.
    pub(super) fn told(&mut self, endpoint: UdpEndpoint) {
        self.owed.remove(&endpoint);
    }

    /// The service port is gone: nothing is owed to its clients.
    pub(super) fn forget(&mut self, port: u32) {
        self.owed.retain(|_, owed| {
            owed.retain(|id| *id != port);
            !owed.is_empty()
        });
    }

    pub(super) fn has(&self, endpoint: UdpEndpoint) -> bool {
        self.users.contains_key(&endpoint)
    }
}
