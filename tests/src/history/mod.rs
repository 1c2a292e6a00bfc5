//! The control-plane fuzzer: random histories of a cluster, through everything of the agent that is pure.
//!
//! [`generate`] makes a [`script`] out of a seed: objects that come, change and go, also hostile ones, in odd
//! orders, with watches that break, writes that fail and agents that die. [`run`] has a [`server`] tell it to the
//! agent's own converter, snapshot, model and ledger ([`agent`]), whose plans are carried out on a picture of the
//! [`tables`] in the datapath's own order. After every single write [`guard`] looks at what a client could meet;
//! after every round the tables must say what [`crate::oracle::picture`] reads out of the objects ([`compare`]).
//!
//! [`campaign`] does so for many seeds; what fails is made short by [`shrink`] and written down.

pub mod agent;
pub mod campaign;
pub mod compare;
pub mod generate;
pub mod guard;
pub mod run;
pub mod script;
pub mod server;
pub mod shrink;
pub mod tables;
