use super::*;
use crate::virt::svm::asid::{Pool, Tag, TlbControl};
use proptest::prelude::*;
use std::vec::Vec;

const ROOT: u64 = 0x5000;

fn user(vcpu: u64) -> User {
    User { vcpu, root: ROOT, registers: [1, 2, 3, 4, 5] }
}

#[test]
fn only_what_cannot_be_cached_or_adds_rights_needs_no_flush() {
    const READ_WRITE: u64 = 0x1000 | 3;
    assert!(!weakens(0, READ_WRITE));
    assert!(!weakens(0x1000 | 1, READ_WRITE));
    assert!(!weakens(READ_WRITE, READ_WRITE | 1 << 5 | 1 << 6));
    assert!(weakens(READ_WRITE, 0));
    assert!(weakens(READ_WRITE, 0x1000 | 1));
    assert!(weakens(READ_WRITE, 0x2000 | 3));
    assert!(weakens(READ_WRITE, READ_WRITE | 1 << 63));
    assert!(weakens(READ_WRITE, READ_WRITE | 1 << 4));
    assert!(weakens(READ_WRITE, READ_WRITE | 1 << 7));
    assert!(weakens(READ_WRITE | 1 << 9, READ_WRITE));
}

#[test]
fn a_shootdown_that_reaches_every_cpu_is_complete() {
    let model = Shootdown::new();
    model.write(3, 0);
    model.flushed(0);
    model.flushed(1);
    assert_eq!(model.complete(2), Ok(()));
    assert_eq!(model.begin(), Ok(()));
}

#[test]
fn a_cpu_that_keeps_its_tlb_is_found() {
    let model = Shootdown::new();
    model.flushed(1);
    model.write(3, 0);
    model.flushed(0);
    assert_eq!(model.complete(2), Err(Missing::OnCpu(1)));
}

#[test]
fn a_change_without_a_shootdown_is_found_by_the_next_operation() {
    let model = Shootdown::new();
    model.write(3, 1);
    assert_eq!(model.begin(), Err(Missing::Shootdown));
    model.flushed(0);
    assert_eq!(model.complete(1), Ok(()));
    model.write(1, 3);
    assert_eq!(model.begin(), Ok(()));
}

#[test]
fn a_table_is_freed_after_its_shootdown_only() {
    let model = Shootdown::new();
    assert_eq!(model.free_table(), Err(Missing::BeforeFree));
    model.free(true);
    model.write(3, 0);
    assert_eq!(model.free_table(), Ok(()));
    model.free(false);
    assert_eq!(model.begin(), Ok(()));
    model.write(3, 0);
    model.free(true);
    assert_eq!(model.free_table(), Err(Missing::BeforeFree));
}

/// One CPU's tags, and the clock.
struct Cpu(Shootdown, Tags);

impl Cpu {
    fn enter(&mut self, tag: u64, user: User) -> Result<(), Stale> {
        self.1.enter(tag, user, self.0.changed_at(user.root), self.0.now())
    }

    fn take_away(&mut self, root: u64) {
        self.0.write(3, 0);
        self.0.change(root);
    }
}

#[test]
fn a_guest_needs_a_flush_after_its_tables_lost_something() {
    let mut cpu = Cpu(Shootdown::new(), Tags::new());
    assert_eq!(cpu.enter(7, user(1)), Ok(()));
    cpu.take_away(ROOT);
    assert_eq!(cpu.enter(7, user(1)), Err(Stale::Tables));
    cpu.1.flush(7);
    assert_eq!(cpu.enter(7, user(1)), Ok(()));
    // The change of other tables means nothing to it.
    cpu.take_away(ROOT + 0x1000);
    assert_eq!(cpu.enter(7, user(1)), Ok(()));
}

#[test]
fn a_tag_that_nobody_used_since_the_flush_is_as_good_as_new() {
    let mut cpu = Cpu(Shootdown::new(), Tags::new());
    cpu.take_away(ROOT);
    assert_eq!(cpu.enter(7, user(1)), Ok(()));
    cpu.1.flush_all();
    cpu.take_away(ROOT);
    assert_eq!(cpu.enter(8, user(1)), Ok(()));
}

#[test]
fn a_tag_changes_hands_with_a_flush_only() {
    let mut cpu = Cpu(Shootdown::new(), Tags::new());
    assert_eq!(cpu.enter(7, user(1)), Ok(()));
    assert_eq!(cpu.enter(7, user(2)), Err(Stale::OtherVcpu));
    cpu.1.flush(7);
    assert_eq!(cpu.enter(7, user(2)), Ok(()));
    let moved = User { root: 0x9000, ..user(2) };
    assert_eq!(cpu.enter(7, moved), Err(Stale::OtherTables));
    cpu.1.flush_all();
    assert_eq!(cpu.enter(7, moved), Ok(()));
}

#[test]
fn what_a_vcpu_leaves_behind_is_nobodys() {
    let mut cpu = Cpu(Shootdown::new(), Tags::new());
    cpu.enter(7, user(1)).unwrap();
    // One that had the tag long ago ends: nothing of it is left.
    cpu.1.end(7, 2);
    assert_eq!(cpu.enter(7, user(1)), Ok(()));
    cpu.1.end(7, 1);
    // The next vCPU may get the same frame, and with it the same name.
    assert_eq!(cpu.enter(7, user(1)), Err(Stale::OtherVcpu));
}

#[test]
fn registers_that_the_vmm_changes_need_a_flush_and_the_guests_own_do_not() {
    let mut cpu = Cpu(Shootdown::new(), Tags::new());
    let changed = User { registers: [1, 2, 9, 4, 5], ..user(1) };
    cpu.enter(7, user(1)).unwrap();
    assert_eq!(cpu.enter(7, changed), Err(Stale::Registers));
    cpu.1.leave(7, changed);
    assert_eq!(cpu.enter(7, changed), Ok(()));
}

/// A mistake that an implementation could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    None,
    /// Entries do not look at the generation.
    IgnoresGeneration,
    /// A new generation of ASIDs begins without a full flush.
    NoFlushAtWrap,
    /// What the VMM loads into control registers flushes nothing.
    NoFlushForRegisters,
    /// A vCPU that ends leaves its ASID to the next one at once.
    ReusesAtOnce,
}

/// Four vCPUs on one CPU with eight ASIDs: each step enters one of them, maybe after a change. What the model finds first.
fn run(mutant: Mutant, steps: &[(usize, u8)]) -> Option<Stale> {
    let (mut cpu, mut pool) = (Cpu(Shootdown::new(), Tags::new()), Pool::new(8));
    let mut holds = [Tag::NONE; 4];
    let mut ids = [0, 1, 2, 3];
    let mut seen = [0; 4];
    let mut generation = 1;
    let mut registers = [0; 4];
    let mut last_asid = 0;
    for &(index, change) in steps {
        let mut flush = false;
        match change {
            0 => {
                cpu.take_away(ROOT);
                generation += 1;
            }
            1 => {
                registers[index] += 1;
                flush = mutant != Mutant::NoFlushForRegisters;
            }
            // The vCPU ends, and another one takes its place.
            2 => {
                holds[index] = Tag::NONE;
                ids[index] += 4;
                seen[index] = 0;
            }
            _ => {}
        }
        if seen[index] != generation && mutant != Mutant::IgnoresGeneration {
            flush = true;
        }
        seen[index] = generation;
        let (asid, control) = match mutant {
            Mutant::ReusesAtOnce if holds[index] == Tag::NONE && last_asid != 0 => {
                (last_asid, TlbControl::Nothing)
            }
            _ => pool.prepare(&mut holds[index], flush, false),
        };
        last_asid = asid;
        if control == TlbControl::All && mutant != Mutant::NoFlushAtWrap {
            cpu.1.flush_all();
        }
        let user = User { registers: [registers[index], 0, 0, 0, 0], ..user(ids[index]) };
        if let Err(stale) = cpu.enter(asid as u64, user) {
            return Some(stale);
        }
    }
    None
}

fn steps() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..4usize, 0..6u8), 1..200)
}

proptest! {
    #[test]
    fn the_real_protocol_is_never_accused(steps in steps()) {
        prop_assert_eq!(run(Mutant::None, &steps), None);
    }
}

/// Some short history shows each mutant.
#[test]
fn every_mutant_is_found() {
    let by_turns: Vec<(usize, u8)> = (0..64).map(|step| (step % 4, (step / 4 % 5) as u8)).collect();
    for mutant in
        [Mutant::IgnoresGeneration, Mutant::NoFlushAtWrap, Mutant::NoFlushForRegisters, Mutant::ReusesAtOnce]
    {
        assert_ne!(run(mutant, &by_turns), None, "{mutant:?}");
    }
    assert_eq!(run(Mutant::None, &by_turns), None);
}
