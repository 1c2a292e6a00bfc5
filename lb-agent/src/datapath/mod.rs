//! The kernel's side: load, pin, attach, adopt, and carry out plans. All aya calls are below this module.
