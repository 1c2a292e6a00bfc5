//! Who serves a twin.

use std::fmt;

use crate::agent::SocketLb;
use crate::kube_proxy::Mode;

/// Who serves a twin, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proxy {
    KubeProxy(Mode),
    Beeline {
        socket_lb: SocketLb,
        /// `--snat-local=kube-proxy`.
        snat_local: bool,
        xdp: Xdp,
    },
}

/// Whether uplinks have the XDP program (`--xdp`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Xdp {
    Off,
    Native,
}

impl Xdp {
    /// The agent's argument.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Off => "--xdp=off",
            Self::Native => "--xdp=native",
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KubeProxy(mode) => write!(f, "kube-proxy ({mode:?})"),
            Self::Beeline { socket_lb, xdp, .. } => {
                write!(f, "Beeline (sockets {socket_lb:?}, XDP {xdp:?})")
            }
        }
    }
}
