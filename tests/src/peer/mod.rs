//! The program that speaks on the network for the tests: servers and clients, told what to do by lines of JSON.
//!
//! It is a process of its own because the kernel judges a socket by the cgroup of the process that opened it.
//! Each request on standard input gets one reply on standard output. Long-lived activities (servers, traffic)
//! run as threads and are asked for their results later. The end of the input ends the process, so it never
//! outlives the test that started it.

pub mod protocol;

mod bulk;
mod client;
mod echo;
mod icmp_errors;
mod server;
mod session;
mod socket;
mod survey;
mod traffic;

pub use session::run;
pub(crate) use socket::close_by_reset;

/// The word by which a request line asks a server to take in raw bytes: `push <count>`.
const PUSH: &str = "push";
/// The word by which a request line asks a server to send raw bytes: `pull <count>`.
const PULL: &str = "pull";
