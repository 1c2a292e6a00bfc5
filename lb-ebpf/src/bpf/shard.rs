//! Shards of the flow tables, which grow while packets pass.
//!
//! The agent publishes a bigger map as a shard's current one and leaves the former beside it. What is looked up
//! moves over; the agent moves the rest and then takes the former away.

use lb_ebpf::abi::FLOW_SHARDS;

use crate::maps::Shards;

/// `BPF_NOEXIST`.
const IF_ABSENT: u64 = 1;

/// Slot of the current map of a key's shard, from the key's check word; the former one is behind it.
#[inline(always)]
pub(crate) fn slot(check: u32) -> u32 {
    2 * (check & (FLOW_SHARDS - 1))
}

/// The value under `key`.
#[inline(always)]
pub(crate) fn find<K, V, const START: usize>(
    shards: &Shards<K, V, START>,
    slot: u32,
    key: &K,
) -> Option<*mut V> {
    let current = shards.get(slot)?;
    if let Some(value) = current.get_ptr_mut(key) {
        return Some(value);
    }
    let former = shards.get(slot + 1)?;
    let Some(value) = former.get_ptr_mut(key) else {
        // It may have moved between the two looks. It never moves back.
        return current.get_ptr_mut(key);
    };
    // SAFETY: an element of the former map; should it be reused this instant, its check word tells.
    let moved = current.insert(key, unsafe { &*value }, IF_ABSENT).is_ok();
    match current.get_ptr_mut(key) {
        Some(found) => {
            // If it was there already, whoever moved it takes it away from here, or both slots have the same map,
            // as they do for a moment before a bigger one is published.
            if moved {
                let _ = former.remove(key);
            }
            Some(found)
        }
        // No room yet: it stays where it is.
        None if !moved => Some(value),
        None => None,
    }
}

/// Enters a value unless there is one; false if there is, or no room.
#[inline(always)]
pub(crate) fn insert<K, V, const START: usize>(
    shards: &Shards<K, V, START>,
    slot: u32,
    key: &K,
    value: &V,
) -> bool {
    match shards.get(slot) {
        Some(current) => current.insert(key, value, IF_ABSENT).is_ok(),
        None => false,
    }
}

/// As [`insert`], of a key that was not looked up before: false also where it might be in the former map.
///
/// What is said by an empty slot of the former map still holds once the value is in the current one: the agent waits for
/// all running programs between filling the one and replacing the other.
#[inline(always)]
pub(crate) fn insert_unseen<K, V, const START: usize>(
    shards: &Shards<K, V, START>,
    slot: u32,
    key: &K,
    value: &V,
) -> bool {
    shards.get(slot + 1).is_none() && insert(shards, slot, key, value)
}

/// Removes the value under `key`.
#[inline(always)]
pub(crate) fn remove<K, V, const START: usize>(shards: &Shards<K, V, START>, slot: u32, key: &K) {
    if let Some(current) = shards.get(slot) {
        let _ = current.remove(key);
    }
    if let Some(former) = shards.get(slot + 1) {
        let _ = former.remove(key);
    }
}
