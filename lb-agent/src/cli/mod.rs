//! Commands people type.
