//! A cluster of network namespaces, and programs that talk in it: what Beeline's tests and its demo share.
//!
//! [`cluster`] builds the whole; [`link`] lays the wires, [`node`] and [`pod`] are its parts, [`agent`] is the
//! program under test. [`scenario`] puts a service on it, [`traffic`] talks through it by means of [`peer`]
//! processes, [`manifests`] and [`capture`] write and watch. [`scope`] removes everything again.
//!
//! [`twins`] compares Beeline with the real kube-proxy ([`kube_proxy`]).
//!
//! [`control_plane`] is a real API server, with one node's sockets to judge what the agent makes of it.
//! [`bench`] measures the agent. [`oracle`] works out slowly which endpoints a Service has.
//!
//! [`object`] is the loaded object alone, fed with frames that [`packet`] builds.

pub mod address;
pub mod agent;
pub mod backlog;
pub mod bench;
pub mod capture;
pub mod cgroup;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod device;
pub mod fuzz;
pub mod guards;
pub mod history;
pub mod kube_proxy;
pub mod link;
pub mod manifests;
pub mod netns;
pub mod node;
pub mod object;
pub mod oracle;
pub mod overlay;
pub mod packet;
pub mod peer;
pub mod pod;
pub mod process;
pub mod raw_socket;
pub mod scenario;
pub mod scope;
mod surroundings;
pub mod table;
pub mod traffic;
pub mod tun;
pub mod twins;
pub mod wait;
