//! The packet fuzzer: random worlds and conversations through the loaded programs and the oracle at once.
//!
//! [`generate`] makes a [`script`] out of a seed in a small [`world`], [`run`] carries it out on the [`kernel`]'s
//! programs and asks [`crate::oracle::packet`] about every frame, [`compare`] looks at what the tables hold
//! afterwards. [`campaign`] does so for many seeds; what fails is made short by [`shrink`] and written down by
//! [`fixture`].

pub mod campaign;
mod compare;
pub mod fixture;
mod frames;
pub mod generate;
pub mod kernel;
pub(crate) mod random;
mod records;
pub mod run;
pub mod script;
pub mod shrink;
mod world;
