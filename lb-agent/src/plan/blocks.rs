//! Where blocks of endpoint records lie: best fit, coalescing. Segments follow one another, so a block may lie in several:
//! whoever reads a record finds its segment by the record's number.

use std::collections::{BTreeMap, BTreeSet};

use lb_ebpf::abi::{SEGMENT_RECORDS, SEGMENTS};

/// Records that a table can have.
pub(super) const RECORDS: u32 = SEGMENTS * SEGMENT_RECORDS;

/// A range of endpoint records.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Block {
    pub first: u32,
    pub len: u32,
}

/// The free ranges of one family's endpoint table.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// First record → length.
    by_first: BTreeMap<u32, u32>,
    /// (length, first record), for the best fit.
    by_len: BTreeSet<(u32, u32)>,
    /// Segments in use so far.
    segments: u32,
}

impl Blocks {
    /// The table after a start: everything but `used` is free.
    pub(super) fn adopt(mut used: Vec<Block>) -> Self {
        used.sort_unstable();
        used.dedup();
        let end = |block: &Block| block.first.saturating_add(block.len).min(RECORDS);
        let last = used.iter().map(end).max().unwrap_or(0);
        let mut blocks = Self {
            segments: last.div_ceil(SEGMENT_RECORDS),
            ..Self::default()
        };
        let mut at = 0;
        for block in &used {
            if block.first > at {
                blocks.insert(Block {
                    first: at,
                    len: block.first.min(blocks.end()) - at,
                });
            }
            at = at.max(end(block));
        }
        if at < blocks.end() {
            blocks.insert(Block {
                first: at,
                len: blocks.end() - at,
            });
        }
        blocks
    }

    /// A free range of `len` records, or `None` if the table has none so long.
    pub(super) fn allocate(&mut self, len: u32) -> Option<Block> {
        if len == 0 {
            return None;
        }
        if self.by_len.range((len, 0)..).next().is_none() {
            self.extend(len)?;
        }
        let (have, first) = self.by_len.range((len, 0)..).next().copied()?;
        self.remove(Block { first, len: have });
        if have > len {
            self.insert(Block {
                first: first + len,
                len: have - len,
            });
        }
        Some(Block { first, len })
    }

    /// As many further segments as it takes, with what is free at the end so far, for a range of `len`.
    fn extend(&mut self, len: u32) -> Option<()> {
        let end = self.end();
        let last = self.by_first.last_key_value();
        let free = last.map_or(0, |(first, len)| if first + len == end { *len } else { 0 });
        let more = (len - free).div_ceil(SEGMENT_RECORDS);
        if more > SEGMENTS - self.segments {
            return None;
        }
        self.segments += more;
        self.release(Block {
            first: end,
            len: more * SEGMENT_RECORDS,
        });
        Some(())
    }

    /// Where the segments in use so far end.
    fn end(&self) -> u32 {
        self.segments * SEGMENT_RECORDS
    }

    /// Makes a block free again.
    pub(super) fn release(&mut self, block: Block) {
        let Block { mut first, mut len } = block;
        let before = self
            .by_first
            .range(..first)
            .next_back()
            .map(|(&first, &len)| Block { first, len });
        if let Some(before) = before.filter(|b| b.first + b.len == first) {
            self.remove(before);
            first = before.first;
            len += before.len;
        }
        if let Some(&after) = self.by_first.get(&(first + len)) {
            self.remove(Block {
                first: first + len,
                len: after,
            });
            len += after;
        }
        self.insert(Block { first, len });
    }

    fn insert(&mut self, block: Block) {
        self.by_first.insert(block.first, block.len);
        self.by_len.insert((block.len, block.first));
    }

    fn remove(&mut self, block: Block) {
        self.by_first.remove(&block.first);
        self.by_len.remove(&(block.len, block.first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_may_be_longer_than_a_segment() {
        let mut blocks = Blocks::default();
        let a = blocks.allocate(3000).unwrap();
        let b = blocks.allocate(5001).unwrap();
        let c = blocks.allocate(191).unwrap();
        assert_eq!((a.first, b.first, c.first), (0, 3000, 8001));
        blocks.release(a);
        blocks.release(c);
        blocks.release(b);
        assert_eq!(blocks.allocate(8192).map(|all| all.first), Some(0));
        assert_eq!(blocks.segments, 2);
    }

    #[test]
    fn released_neighbours_become_one_range_again() {
        let mut blocks = Blocks::default();
        let all: Vec<_> = (0..8).map(|_| blocks.allocate(512).unwrap()).collect();
        for index in [1, 3, 2, 7, 0, 5, 4, 6] {
            blocks.release(all[index]);
        }
        assert_eq!(
            blocks.allocate(4096),
            Some(Block {
                first: 0,
                len: 4096
            })
        );
    }

    #[test]
    fn adoption_frees_the_gaps() {
        let used = vec![
            Block {
                first: 4096,
                len: 4096,
            },
            Block { first: 10, len: 20 },
            Block {
                first: 9000,
                len: 1,
            },
        ];
        let blocks = Blocks::adopt(used);
        let free: Vec<_> = blocks
            .by_first
            .iter()
            .map(|(&first, &len)| (first, len))
            .collect();
        assert_eq!(free, [(0, 10), (30, 4066), (8192, 808), (9001, 3287)]);
    }

    #[test]
    fn adoption_survives_blocks_that_cannot_be() {
        let block = |first, len| Block { first, len };
        let mut blocks = Blocks::adopt(vec![
            block(4, 5000),
            block(100, 8),
            block(RECORDS - 1, 9),
            block(u32::MAX - 1, 7),
        ]);
        assert_eq!(blocks.allocate(5), Some(block(5004, 5)));
        assert_eq!(blocks.allocate(4), Some(block(0, 4)));
    }

    #[test]
    fn the_table_has_an_end() {
        let mut blocks = Blocks::default();
        for _ in 0..SEGMENTS {
            assert!(blocks.allocate(SEGMENT_RECORDS).is_some());
        }
        assert_eq!(blocks.allocate(1), None);
    }
}
