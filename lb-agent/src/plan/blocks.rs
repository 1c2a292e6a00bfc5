//! Where blocks of endpoint records lie: best fit, coalescing, never across a segment.

use std::collections::{BTreeMap, BTreeSet};

use lb_ebpf::abi::{SEGMENT_RECORDS, SEGMENTS};

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
        let end = |block: &Block| block.first.saturating_add(block.len);
        let segments = used
            .iter()
            .map(|block| end(block).div_ceil(SEGMENT_RECORDS))
            .max()
            .unwrap_or(0)
            .min(SEGMENTS);
        let mut blocks = Self {
            segments,
            ..Self::default()
        };
        let mut used = used.into_iter().peekable();
        for segment in 0..segments {
            let mut at = segment * SEGMENT_RECORDS;
            let stop = at + SEGMENT_RECORDS;
            while let Some(block) = used.next_if(|block| block.first < stop) {
                if block.first > at {
                    blocks.insert(Block {
                        first: at,
                        len: block.first - at,
                    });
                }
                at = at.max(end(&block)).min(stop);
            }
            if at < stop {
                blocks.insert(Block {
                    first: at,
                    len: stop - at,
                });
            }
        }
        blocks
    }

    /// A free range of `len` records, or `None` if the table is full or a segment is too short for it.
    pub(super) fn allocate(&mut self, len: u32) -> Option<Block> {
        if len == 0 || len > SEGMENT_RECORDS {
            return None;
        }
        let fit = self.by_len.range((len, 0)..).next().copied();
        let (have, first) = match fit {
            Some(fit) => fit,
            None if self.segments < SEGMENTS => {
                let first = self.segments * SEGMENT_RECORDS;
                self.segments += 1;
                self.insert(Block {
                    first,
                    len: SEGMENT_RECORDS,
                });
                (SEGMENT_RECORDS, first)
            }
            None => return None,
        };
        self.remove(Block { first, len: have });
        if have > len {
            self.insert(Block {
                first: first + len,
                len: have - len,
            });
        }
        Some(Block { first, len })
    }

    /// Makes a block free again.
    pub(super) fn release(&mut self, block: Block) {
        let Block { mut first, mut len } = block;
        let before = self
            .by_first
            .range(..first)
            .next_back()
            .map(|(&first, &len)| Block { first, len });
        if let Some(before) =
            before.filter(|b| b.first + b.len == first && first % SEGMENT_RECORDS != 0)
        {
            self.remove(before);
            first = before.first;
            len += before.len;
        }
        let end = first + len;
        if end % SEGMENT_RECORDS != 0
            && let Some(&after) = self.by_first.get(&end)
        {
            self.remove(Block {
                first: end,
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
    fn a_block_never_crosses_a_segment() {
        let mut blocks = Blocks::default();
        let a = blocks.allocate(3000).unwrap();
        let b = blocks.allocate(3000).unwrap();
        let c = blocks.allocate(1000).unwrap();
        assert_eq!((a.first, b.first, c.first), (0, 4096, 3000));
        assert_eq!(blocks.allocate(4097), None);
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
    fn the_table_has_an_end() {
        let mut blocks = Blocks::default();
        for _ in 0..SEGMENTS {
            assert!(blocks.allocate(SEGMENT_RECORDS).is_some());
        }
        assert_eq!(blocks.allocate(1), None);
    }
}
