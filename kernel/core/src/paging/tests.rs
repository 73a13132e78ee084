use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::fake::{Event, FakeMemory, hardware_walk};
use super::*;

const RW: Attr = Attr { read: true, write: true, execute: false, uncached: false, user: true };
const RO: Attr = Attr { write: false, ..RW };
const G1: u64 = 1 << 30;
const M2: u64 = 2 << 20;
/// The middle of the tested range: a boundary of every size but the root's.
const MIDDLE: u64 = 0x80_4000_0000;

fn sizes<F: PtFormat>(mem: &FakeMemory, root: PhysAddr, vas: &[u64]) -> Vec<PageSize> {
    vas.iter().map(|&va| lookup::<F, _>(mem, root, va).unwrap().size).collect()
}

#[test]
fn the_largest_pages_that_fit_are_used() {
    let (mut mem, root) = FakeMemory::new(10);
    let (va, pages) = (MIDDLE - M2 - 4096, (G1 + M2 + 4096) / 4096 + 1);
    let pa = PhysAddr(3 * G1 - M2 - 4096);
    let done = map::<EptFormat, _>(&mut mem, root, va, pa, pages, RW, PageSize::G1).unwrap();
    assert_eq!(done, MapDone { pages, reduced_rights: false });
    let found = sizes::<EptFormat>(&mem, root, &[va, MIDDLE - M2, MIDDLE, MIDDLE + G1]);
    assert_eq!(found, [PageSize::K4, PageSize::M2, PageSize::G1, PageSize::K4]);
    let middle = lookup::<EptFormat, _>(&mem, root, MIDDLE + 0x1234_5678).unwrap();
    assert_eq!(middle.pa, PhysAddr(3 * G1 + 0x1234_5678));
}

#[test]
fn no_page_is_larger_than_asked_or_than_congruence_allows() {
    let (mut mem, root) = FakeMemory::new(2000);
    map::<HostFormat, _>(&mut mem, root, 0, PhysAddr(0), G1 / 4096, RW, PageSize::M2).unwrap();
    map::<HostFormat, _>(&mut mem, root, G1, PhysAddr(M2), G1 / 4096, RW, PageSize::G1).unwrap();
    map::<HostFormat, _>(&mut mem, root, 2 * G1, PhysAddr(4096), 512, RW, PageSize::G1).unwrap();
    let found = sizes::<HostFormat>(&mem, root, &[0, G1, 2 * G1]);
    assert_eq!(found, [PageSize::M2, PageSize::M2, PageSize::K4]);
}

#[test]
fn mapping_the_same_again_changes_nothing() {
    let (mut mem, root) = FakeMemory::new(10);
    for _ in 0..2 {
        map::<NptFormat, _>(&mut mem, root, M2, PhysAddr(M2), 1000, RW, PageSize::M2).unwrap();
    }
    mem.history.clear();
    let done = map::<NptFormat, _>(&mut mem, root, M2, PhysAddr(M2), 1000, RW, PageSize::M2).unwrap();
    assert_eq!(done, MapDone { pages: 1000, reduced_rights: false });
    assert!(mem.history.is_empty());
}

#[test]
fn only_a_loss_of_rights_asks_for_a_flush() {
    let (mut mem, root) = FakeMemory::new(10);
    let mut remap = |attr| {
        map::<HostFormat, _>(&mut mem, root, 0x5000, PhysAddr(0x9000), 2, attr, PageSize::K4)
            .unwrap()
            .reduced_rights
    };
    assert!(!remap(RO));
    assert!(!remap(RW));
    assert!(remap(RO));
    assert!(remap(Attr { uncached: true, ..RW }));
    assert!(remap(Attr { user: false, uncached: true, ..RW }));
}

#[test]
fn another_frame_is_occupied_and_what_came_before_is_counted() {
    let (mut mem, root) = FakeMemory::new(10);
    map::<EptFormat, _>(&mut mem, root, 0x8000, PhysAddr(0x8000), 1, RW, PageSize::K4).unwrap();
    let error =
        map::<EptFormat, _>(&mut mem, root, 0x5000, PhysAddr(0x15000), 9, RW, PageSize::K4).unwrap_err();
    assert_eq!(error, Partial { pages: 3, reduced_rights: false, error: MapError::Occupied });
    assert_eq!(lookup::<EptFormat, _>(&mem, root, 0x8000).unwrap().pa, PhysAddr(0x8000));
}

#[test]
fn a_split_without_memory_changes_nothing() {
    let (mut mem, root) = FakeMemory::new(2);
    map::<HostFormat, _>(&mut mem, root, 0, PhysAddr(0), 1024, RW, PageSize::M2).unwrap();
    mem.history.clear();
    let mapped = map::<HostFormat, _>(&mut mem, root, M2, PhysAddr(M2), 1, RO, PageSize::M2).unwrap_err();
    let unmapped = unmap::<HostFormat, _>(&mut mem, root, 0, 513, PhysAddr(0), &mut 1000).unwrap_err();
    assert_eq!(mapped, Partial { pages: 0, reduced_rights: false, error: MapError::NoMemory });
    assert_eq!(unmapped, Partial { pages: 512, reduced_rights: true, error: MapError::NoMemory });
    assert_eq!(mem.history.len(), 1);
}

#[test]
fn a_superpage_is_split_only_where_it_changes() {
    let (mut mem, root) = FakeMemory::new(4);
    map::<EptFormat, _>(&mut mem, root, 0, PhysAddr(G1), G1 / 4096, RW, PageSize::G1).unwrap();
    let done = map::<EptFormat, _>(&mut mem, root, M2, PhysAddr(G1 + M2), 512, RO, PageSize::G1).unwrap();
    assert!(done.reduced_rights);
    map::<EptFormat, _>(&mut mem, root, 4 * M2, PhysAddr(G1 + 4 * M2), 1, RO, PageSize::G1).unwrap();
    let found = sizes::<EptFormat>(&mem, root, &[0, M2, 4 * M2]);
    assert_eq!(found, [PageSize::M2, PageSize::M2, PageSize::K4]);
}

#[test]
fn unmap_leaves_other_frames_and_crosses_holes_quickly() {
    let (mut mem, root) = FakeMemory::new(20);
    let far = 0x4000_0000_0000;
    map::<HostFormat, _>(&mut mem, root, 0x1000, PhysAddr(0x1000), 1, RW, PageSize::K4).unwrap();
    map::<HostFormat, _>(&mut mem, root, 0x2000, PhysAddr(0x7000), 1, RW, PageSize::K4).unwrap();
    map::<HostFormat, _>(&mut mem, root, far, PhysAddr(far), 1, RW, PageSize::K4).unwrap();
    let pages = far / 4096 + 1;
    let done = unmap::<HostFormat, _>(&mut mem, root, 0, pages, PhysAddr(0), &mut 3000).unwrap();
    assert_eq!(done, Unmapped { pages_removed: 2, visited_pages: pages });
    assert_eq!(lookup::<HostFormat, _>(&mem, root, 0x2000).unwrap().pa, PhysAddr(0x7000));
}

#[test]
fn destroy_frees_every_table_once_in_bounded_steps() {
    let (mut mem, root) = FakeMemory::new(100);
    for i in 0..20 {
        let va = i * (1 << 39) * 26 + i * G1;
        map::<HostFormat, _>(&mut mem, root, va, PhysAddr(0), 513, RW, PageSize::M2).unwrap();
    }
    let kernel: usize = (256..512).filter(|&i| mem.read(root, i) != 0).count();
    let mut before = mem.tables();
    assert!(kernel > 0 && before > 40);
    // With room for a few tables of the last level, or for none: one goes anyway.
    for budget in [150, 1].into_iter().cycle() {
        if destroy::<HostFormat, _>(&mut mem, root, true, &mut { budget }) {
            break;
        }
        let after = mem.tables();
        assert!(after < before && after + 10 > before, "{after} of {before}");
        assert!(budget > 1 || after == before - 1);
        before = after;
    }
    assert!((0..256).all(|i| mem.read(root, i) == 0));
    assert_eq!((256..512).filter(|&i| mem.read(root, i) != 0).count(), kernel);
    assert!(lookup::<HostFormat, _>(&mem, root, 19 * ((1 << 39) * 26 + G1)).is_some());
    while !destroy::<HostFormat, _>(&mut mem, root, false, &mut 1) {}
    assert_eq!((mem.tables(), mem.used_entries()), (1, 0));
}

#[test]
fn entries_have_the_bits_of_the_manuals() {
    let rx = Attr { read: true, write: false, execute: true, uncached: false, user: false };
    let device = Attr { uncached: true, ..RW };
    assert_eq!(HostFormat::leaf(PhysAddr(0x1000), rx, 1), 0x1061);
    assert_eq!(HostFormat::leaf(PhysAddr(M2), device, 2), 0x8000_0000_0020_00ff);
    assert_eq!(HostFormat::table(PhysAddr(0x3000), 2), 0x3027);
    assert_eq!(NptFormat::leaf(PhysAddr(0x1000), rx, 1), 0x2000_0000_0000_1025);
    assert_eq!(NptFormat::leaf(PhysAddr(M2), Attr { execute: true, ..RW }, 2), 0x6000_0000_0020_00a7);
    assert_eq!(NptFormat::table(PhysAddr(0x3000), 4), 0x6000_0000_0000_3627);
    assert_eq!(EptFormat::leaf(PhysAddr(0x1000), rx, 1), 0x1035);
    assert_eq!(EptFormat::leaf(PhysAddr(G1), device, 3), 0x4000_0083);
    assert_eq!(EptFormat::table(PhysAddr(0x3000), 4), 0x3007);
}

#[derive(Clone, Debug)]
enum Op {
    Map { page: u64, pages: u64, skew: u64, attr: Attr, largest: PageSize },
    Unmap { page: u64, pages: u64, skew: u64 },
}

/// Pages of the tested range: 4 MiB around [`MIDDLE`].
const PAGES: u64 = 2048;
const BASE: u64 = MIDDLE - PAGES / 2 * 4096;

/// The frame of a page: the same 2 MiB phase for skew 0, another frame for each skew.
fn frame(page: u64, skew: u64) -> PhysAddr {
    PhysAddr(7 * G1 + (page + [0, 512, 1][skew as usize]) * 4096 - PAGES / 2 * 4096)
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let edges = prop::sample::select(std::vec![0, 1, 511, 512, 513, 1024, 1030, 1536, 2000]);
    let lengths = prop::sample::select(std::vec![1, 2, 511, 512, 513, 1024, 2048]);
    (edges, lengths).prop_map(|(page, pages): (u64, u64)| (page, pages.min(PAGES - page)))
}

fn op() -> impl Strategy<Value = Op> {
    let attr = (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(write, execute, uncached)| Attr {
        write,
        execute,
        uncached,
        ..RW
    });
    let largest = prop::sample::select(std::vec![PageSize::K4, PageSize::M2, PageSize::G1]);
    let skew = prop::sample::select(std::vec![0, 0, 0, 1, 2]);
    prop_oneof![
        (range(), skew.clone(), attr, largest).prop_map(|((page, pages), skew, attr, largest)| Op::Map {
            page,
            pages,
            skew,
            attr,
            largest
        }),
        (range(), skew).prop_map(|((page, pages), skew)| Op::Unmap { page, pages, skew }),
    ]
}

type Model = BTreeMap<u64, (u64, Attr)>;

/// Does `op` on the model; the result as the engine should report it: pages before an occupied one, pages removed.
fn model_op(model: &mut Model, op: &Op, limit: u64) -> u64 {
    match *op {
        Op::Map { page, skew, attr, .. } => {
            for i in page..page + limit {
                let pa = frame(i, skew).0;
                if model.get(&i).is_some_and(|old| old.0 != pa) {
                    return i - page;
                }
                model.insert(i, (pa, attr));
            }
            limit
        }
        Op::Unmap { page, skew, .. } => {
            let before = model.len();
            model.retain(|&i, old| i < page || i >= page + limit || old.0 != frame(i, skew).0);
            (before - model.len()) as u64
        }
    }
}

/// Checks that every step of `history`, from `before`, leaves each sampled page in its old or its new state.
fn check_history<F: PtFormat>(
    mut before: FakeMemory,
    history: &[Event],
    root: PhysAddr,
    old: &Model,
    new: &Model,
) {
    let samples = [0, 1, 2, 510, 511, 512, 513, 1023, 1024, 1025, 1535, 1536, 1999, 2000, 2047];
    // Filling a table that is not linked yet is uninteresting: look at the first and last writes of a series.
    for (n, &event) in history.iter().enumerate() {
        before.replay(event);
        if n % 61 != 0 && matches!(event, Event::Write(_, i, _) if i % 512 > 2 && i % 512 < 509) {
            continue;
        }
        for page in samples {
            let found = hardware_walk::<F>(&before, root, BASE + page * 4096);
            let allowed = [old.get(&page).copied(), new.get(&page).copied()];
            assert!(allowed.contains(&found), "page {page}: {found:?} is none of {allowed:?}");
        }
    }
}

fn engine_agrees_with_model<F: PtFormat>(ops: &[Op], quota: usize, limit: usize) {
    let (mut mem, root) = FakeMemory::new(quota);
    let mut model = Model::new();
    for op in ops {
        let (before, old) = (mem.clone(), model.clone());
        mem.history.clear();
        let result = match *op {
            Op::Map { page, pages, skew, attr, largest } => {
                let (va, pa) = (BASE + page * 4096, frame(page, skew));
                map_bounded::<F, _>(&mut mem, root, va, pa, pages, attr, largest, limit)
                    .map(|done| (done.pages, done.pages))
            }
            Op::Unmap { page, pages, skew } => {
                unmap::<F, _>(&mut mem, root, BASE + page * 4096, pages, frame(page, skew), &mut { limit })
                    .map(|done| (done.visited_pages, done.pages_removed))
            }
        };
        match result {
            Ok((visited, counted)) => {
                assert!(visited > 0);
                assert_eq!(model_op(&mut model, op, visited), counted);
            }
            Err(partial) => {
                model_op(&mut model, op, partial.pages);
                if partial.error == MapError::Occupied {
                    assert_eq!(model_op(&mut model.clone(), op, partial.pages + 1), partial.pages);
                } else {
                    assert!(mem.quota == 0);
                }
            }
        }
        let history = core::mem::take(&mut mem.history);
        check_history::<F>(before, &history, root, &old, &model);
        for page in 0..PAGES {
            let found = lookup::<F, _>(&mem, root, BASE + page * 4096).map(|t| (t.pa.0, t.attr));
            assert_eq!(found, model.get(&page).copied(), "page {page}");
        }
    }
    while !destroy::<F, _>(&mut mem, root, false, &mut 2) {}
    assert_eq!((mem.tables(), mem.used_entries(), mem.quota), (1, 0, quota));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_va_translates_to_old_or_new_at_every_moment_in_host_tables(
        ops in prop::collection::vec(op(), 1..10), quota in 4usize..14,
        limit in prop::sample::select(std::vec![1, 7, 600, usize::MAX]),
    ) {
        engine_agrees_with_model::<HostFormat>(&ops, quota, limit);
    }

    #[test]
    fn every_va_translates_to_old_or_new_at_every_moment_in_ept(
        ops in prop::collection::vec(op(), 1..10), quota in 4usize..14,
        limit in prop::sample::select(std::vec![1, 7, 600, usize::MAX]),
    ) {
        engine_agrees_with_model::<EptFormat>(&ops, quota, limit);
    }

    #[test]
    fn every_va_translates_to_old_or_new_at_every_moment_in_npt(
        ops in prop::collection::vec(op(), 1..10), quota in 4usize..14,
        limit in prop::sample::select(std::vec![1, 7, 600, usize::MAX]),
    ) {
        engine_agrees_with_model::<NptFormat>(&ops, quota, limit);
    }
}
