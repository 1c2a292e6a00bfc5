//! Raw system calls; the only unsafe code of the agent.

pub mod bpf;
pub mod capability;
pub mod cgroup;
pub mod clock;
pub mod limits;
pub mod memory;
pub mod mount;
pub mod netdev;
pub mod netlink;
pub mod netns;
pub mod priority;
pub mod sock_diag;
