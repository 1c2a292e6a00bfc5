//! The packet fuzzer: random worlds and conversations through the loaded programs and the oracle at once.
//!
//! [`generate`] makes a [`script`] out of a seed, [`run`] carries it out on the [`kernel`]'s programs and asks
//! [`crate::oracle::packet`] about every frame, [`compare`] looks at what the tables hold afterwards. What fails is
//! made short by [`shrink`] and written down by [`fixture`].

mod compare;
mod frames;
pub mod generate;
pub mod kernel;
mod known;
mod random;
mod records;
pub mod run;
pub mod script;
mod world;
