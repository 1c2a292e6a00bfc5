//! One copy of each name. A cluster names the same few zones, nodes, namespaces and ports over and over.

use std::collections::HashSet;
use std::sync::Arc;

/// Below this a look for unused names is not worth the walk.
const SMALL: usize = 4096;

/// Shared strings, forgotten some time after nobody else holds them.
#[derive(Default)]
pub struct Interner {
    names: HashSet<Arc<str>>,
    /// Look for unused names at this size.
    sweep_at: usize,
}

impl Interner {
    /// The shared copy of `name`.
    pub fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        if self.names.len() >= self.sweep_at.max(SMALL) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = self.names.len() * 2;
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_memory() {
        let mut interner = Interner::default();
        assert!(Arc::ptr_eq(
            &interner.intern("east"),
            &interner.intern("east")
        ));
    }

    #[test]
    fn names_nobody_holds_do_not_pile_up() {
        let mut interner = Interner::default();
        let kept = interner.intern("kept");
        for number in 0..SMALL * 10 {
            interner.intern(&number.to_string());
        }
        assert!(interner.names.len() <= SMALL, "{}", interner.names.len());
        assert!(Arc::ptr_eq(&kept, &interner.intern("kept")));
    }
}
