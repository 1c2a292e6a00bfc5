//! Beeline's user space.
//!
//! ```text
//! source (Kubernetes watch | directory) → snapshot → model (pure) → plan (pure) → datapath → sys → kernel
//! ```
//!
//! A source turns API objects into the packed records of [`snapshot`]; [`model`] says what they mean, as
//! kube-proxy would; [`plan`] says which writes bring the kernel's tables there; [`datapath`] does them.

pub mod agent;
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod health;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod snapshot;
pub mod source;
pub mod sys;
