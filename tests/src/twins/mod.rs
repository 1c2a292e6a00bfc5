//! Clusters that are twins: the same network, the same objects from one API server, the same probes. One is served
//! by the real kube-proxy, the others by Beeline, and whatever a client meets must be the same.
//!
//! ```text
//!               ┌─ node1, node2, pods, LAN, client   kube-proxy
//!  API server ──┼─ node1, node2, pods, LAN, client   Beeline, socket hooks
//!               └─ node1, node2, pods, LAN, client   Beeline, packets only
//! ```
//!
//! [`state`] is what the API server holds, [`generate`] makes one from a seed and [`mutate`] another of
//! that, [`stage`] puts it on. [`question`]
//! derives what clients ask of it, [`outcome`] is what they met. What may differ, and why, is written in
//! `docs/differences.md` and spelled out in [`differences`]. [`campaign`] is the loop, [`shrink`] makes what
//! disagrees small.
//!
//! States show what new connections meet. What becomes of those that are there when something changes is a story:
//! [`stories`] is the list, [`telling`] tells them and watches each [`flow`].

mod affinity;
pub mod campaign;
pub mod differences;
pub mod flow;
pub mod flow_differences;
pub mod generate;
mod health;
pub mod mode_differences;
pub mod mutate;
pub mod outcome;
pub mod plot;
mod proxy;
pub mod question;
pub(crate) mod relay;
mod report;
mod requests;
mod scene;
pub mod shrink;
pub mod stage;
pub mod state;
pub mod stories;
pub mod telling;
mod watch;
