//! Names of service ports, so that live tables can be read without the agent.

/// Name of a service port. The key is the service port id (`u32`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceName {
    /// Namespace, UTF-8, filled up with zeros (at most 63 bytes by Kubernetes' rules).
    pub namespace: [u8; 64],
    /// Service name, likewise.
    pub name: [u8; 64],
    /// Port name, likewise; empty for an unnamed port.
    pub port: [u8; 64],
    /// 4 or 6.
    pub family: u8,
    /// [`super::TCP`], [`super::UDP`] or [`super::SCTP`].
    pub protocol: u8,
    /// Zero.
    pub zero: [u8; 2],
}

crate::assert_layout!(ServiceName = 196);
