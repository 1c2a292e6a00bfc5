//! Commands people type.

/// Version of everything printed or served as JSON.
pub const API_VERSION: &str = "beeline.dev/v1";
