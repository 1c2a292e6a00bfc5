//! What the tests share.

pub mod control_plane;
pub mod oracle;
