//! `sys::bpf` against the running kernel. Needs root.

mod scratch;

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

use lb_agent::sys::bpf::{
    Counters, Map, MapKind, MapSpec, NO_PREALLOC, Outer, Table, WriteMode, pin,
};

fn spec(kind: MapKind, max_entries: u32) -> MapSpec<'static> {
    let flags = if matches!(kind, MapKind::Hash | MapKind::LpmTrie) {
        NO_PREALLOC
    } else {
        0
    };
    MapSpec {
        name: "bl_test",
        kind: kind as u32,
        key_size: 4,
        value_size: 8,
        max_entries,
        flags,
        types: None,
        inner: None,
    }
}

fn table(kind: MapKind, max_entries: u32) -> Table<u32, u64> {
    Table::new(Map::create(&spec(kind, max_entries)).expect("this test needs root"))
        .expect("sizes agree")
}

fn numbers(count: u32) -> (Vec<u32>, Vec<u64>) {
    (
        (0..count).collect(),
        (0..u64::from(count)).map(|n| n * n).collect(),
    )
}

#[test]
fn a_hash_of_many_batches_reads_back_whole() {
    let table = table(MapKind::Hash, 20_000);
    let (keys, values) = numbers(10_000);
    table.put_many(&keys, &values).expect("fits");
    let mut entries = table.entries().expect("readable");
    entries.sort_unstable();
    assert_eq!(
        entries,
        keys.iter().copied().zip(values).collect::<Vec<_>>()
    );
    assert_eq!(table.count().expect("readable"), 10_000);
}

#[test]
fn a_full_table_of_any_size_reads_back_whole() {
    for size in [1, 2, 3, 7, 64] {
        let table = table(MapKind::Hash, size);
        let (keys, values) = numbers(size);
        table.put_many(&keys, &values).expect("fits");
        assert_eq!(table.entries().expect("readable").len(), size as usize);
    }
}

#[test]
fn an_array_and_a_trie_read_back_whole() {
    let array = table(MapKind::Array, 5_000);
    let (keys, values) = numbers(5_000);
    array.put_many(&keys, &values).expect("fits");
    assert_eq!(
        array.entries().expect("readable"),
        keys.into_iter().zip(values).collect::<Vec<_>>()
    );

    let spec = MapSpec {
        key_size: 8,
        value_size: 4,
        ..spec(MapKind::LpmTrie, 100)
    };
    let trie: Table<[u8; 8], u32> =
        Table::new(Map::create(&spec).expect("created")).expect("sizes agree");
    let key = |last: u8| [32, 0, 0, 0, 10, 0, 0, last];
    trie.put_many(&[key(1), key(2), key(3)], &[1, 2, 3])
        .expect("fits");
    trie.delete_many(&[key(2), key(9)])
        .expect("an absent key is fine");
    let mut values: Vec<u32> = trie
        .entries()
        .expect("readable")
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    values.sort_unstable();
    assert_eq!(values, [1, 3]);
}

#[test]
fn deleting_many_goes_on_behind_absent_keys() {
    let table = table(MapKind::Hash, 10_000);
    let (keys, values) = numbers(9_000);
    table.put_many(&keys, &values).expect("fits");
    let doomed: Vec<u32> = (0..20_000).step_by(2).collect();
    table.delete_many(&doomed).expect("absent keys are fine");
    let entries = table.entries().expect("readable");
    assert_eq!(entries.len(), 4_500);
    assert!(entries.iter().all(|(key, _)| key % 2 == 1));
}

#[test]
fn a_full_table_tells_how_far_it_got() {
    let table = table(MapKind::Hash, 100);
    let (keys, values) = numbers(150);
    let stopped = table
        .put_many(&keys, &values)
        .expect_err("100 entries have room");
    assert_eq!(stopped.done, 100);
    assert!(stopped.error.is_full(), "{}", stopped.error);
    assert_eq!(table.count().expect("readable"), 100);
}

#[test]
fn write_modes_are_kept() {
    let table = table(MapKind::Hash, 10);
    table.put(&1, &1, WriteMode::Replace).expect_err("absent");
    table.put(&1, &1, WriteMode::Create).expect("absent");
    table.put(&1, &2, WriteMode::Create).expect_err("present");
    table.put(&1, &3, WriteMode::Replace).expect("present");
    assert_eq!(table.get(&1).expect("readable"), Some(3));
    assert!(table.delete(&1).expect("deletable"));
    assert!(!table.delete(&1).expect("deletable"));
    assert_eq!(table.get(&1).expect("readable"), None);
}

#[test]
fn another_layout_is_refused_by_name() {
    let map = Map::create(&spec(MapKind::Hash, 10)).expect("this test needs root");
    let error = Table::<u32, u32>::new(map).expect_err("values have 8 bytes");
    let text = error.to_string();
    assert!(
        text.contains("bl_test") && text.contains("4 and 8 bytes, ours 4 and 4"),
        "{text}"
    );
}

#[test]
fn per_cpu_counters_have_a_sum_per_number() {
    let map = Map::create(&spec(MapKind::PerCpuArray, 64)).expect("this test needs root");
    let values: Vec<u8> = (0..map.value_bytes() / 8)
        .flat_map(|_| 2u64.to_ne_bytes())
        .collect();
    map.update(&3u32.to_ne_bytes(), &values, WriteMode::Any)
        .expect("writable");
    let cpus = values.len() as u64 / 8;
    let sums = Counters::new(map).expect("fits").read().expect("readable");
    assert_eq!(sums.len(), 64);
    assert_eq!(sums[3], 2 * cpus);
    assert_eq!(sums.iter().sum::<u64>(), 2 * cpus);
}

#[test]
fn a_pinned_table_is_the_same_when_opened_again() {
    scratch::run("pin", |bpffs| {
        let path = bpffs.join("table");
        assert!(
            pin::get_if_present(&path)
                .expect("absent is fine")
                .is_none()
        );
        let first = table(MapKind::Hash, 10);
        pin::pin(first.as_fd(), &path).expect("pinned");
        first.put(&5, &25, WriteMode::Any).expect("writable");
        drop(first);
        let again = Table::<u32, u64>::open(&path).expect("pinned");
        assert_eq!(again.get(&5).expect("readable"), Some(25));
        let reader = Table::<u32, u64>::open_read_only(&path).expect("pinned");
        assert_eq!(reader.entries().expect("readable"), [(5, 25)]);
        reader
            .put(&6, &36, WriteMode::Any)
            .expect_err("opened for reading");

        let other = table(MapKind::Hash, 20);
        pin::pin_over(other.as_fd(), &path).expect("replaced");
        assert_eq!(
            Table::<u32, u64>::open(&path)
                .expect("pinned")
                .max_entries(),
            20
        );
    });
}

#[test]
fn an_inner_table_is_found_again_and_a_half_finished_swap_is_finished() {
    scratch::run("outer", |bpffs| {
        let inner = table(MapKind::Hash, 10);
        let outer_spec = MapSpec {
            value_size: 4,
            inner: Some(inner.as_fd()),
            ..spec(MapKind::ArrayOfMaps, 4)
        };
        let outer = Outer::new(Map::create(&outer_spec).expect("created"), bpffs).expect("fits");
        assert!(outer.open_inner(2).expect("empty").is_none());
        inner.put(&1, &1, WriteMode::Any).expect("writable");
        outer.set(2, inner.as_fd()).expect("set");
        let found = outer.open_inner(2).expect("pinned").expect("set");
        assert_eq!(found.info().id, inner.map().info().id);

        // A writer that died between the slot and the pin leaves the new map under its temporary name.
        let bigger = table(MapKind::Hash, 40);
        pin::pin(bigger.as_fd(), &bpffs.join("bl_test-2-next")).expect("pinned");
        outer.set_unpinned(2, bigger.as_fd()).expect("set");
        let found = outer.open_inner(2).expect("finished").expect("set");
        assert_eq!(found.info().id, bigger.map().info().id);
        assert_eq!(
            Map::open(&outer.pin_path(2)).expect("renamed").info().id,
            found.info().id
        );

        // One that is pinned nowhere cannot be opened, which is said.
        outer
            .set_unpinned(2, table(MapKind::Hash, 10).as_fd())
            .expect("set");
        let text = outer.open_inner(2).expect_err("not pinned").to_string();
        assert!(text.contains("beeline cleanup"), "{text}");
        assert!(outer.clear(2).expect("clearable"));
        assert!(outer.open_inner(2).expect("empty").is_none());
    });
}

#[test]
fn readers_of_a_table_that_is_replaced_find_every_entry() {
    scratch::run("swap", |bpffs| {
        let first = table(MapKind::Hash, 1_000);
        let outer_spec = MapSpec {
            value_size: 4,
            inner: Some(first.as_fd()),
            ..spec(MapKind::ArrayOfMaps, 1)
        };
        let outer = Outer::new(Map::create(&outer_spec).expect("created"), bpffs).expect("fits");
        let (keys, values) = numbers(500);
        first.put_many(&keys, &values).expect("fits");
        outer.set(0, first.as_fd()).expect("set");
        let path = outer.pin_path(0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Threads made here share the namespaces of this one.
            let reader = scope.spawn(|| {
                let mut reads = 0;
                while !done.load(Ordering::Relaxed) {
                    let table = Table::<u32, u64>::open(&path).expect("always pinned");
                    assert_eq!(table.entries().expect("readable").len(), 500);
                    reads += 1;
                }
                reads
            });
            for round in 2..12 {
                let bigger = table(MapKind::Hash, round * 1_000);
                bigger.put_many(&keys, &values).expect("fits");
                outer.set(0, bigger.as_fd()).expect("set");
            }
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().expect("no reader failed") > 10);
        });
    });
}
