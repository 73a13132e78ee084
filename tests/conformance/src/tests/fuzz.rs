//! Random hypercalls from a child process. The machine must survive, and the child's pool must give everything back.

use super::{Group, Needs, group};
use crate::call::syscall;
use crate::child::{Child, own};
use crate::guest::Guest;
use crate::layout::{CHILD_STACKS, DEVICES, IRQS, PORTS, TRACE};
use crate::prelude::*;
use crate::threads;
use crate::world::board;
use core::sync::atomic::Ordering;
use hypercall_abi::Hypercall;

pub(super) const GROUP: Group = group!(
    "random hypercalls",
    Needs::Nothing => [fifty_thousand_random_hypercalls_do_no_harm],
    Needs::Cpus(2) => [random_hypercalls_on_every_cpu_at_once_do_no_harm],
);

/// Calls to make.
const CALLS: u64 = 50_000;

/// xorshift64* (Vigna 2016).
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for every seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..4).for_each(|_| {
            random.draw();
        });
        random
    }

    /// 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }

    /// A value of the kind that finds mistakes.
    pub fn interesting(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => self.below(64),
            2 => 1 << self.below(64),
            3 => (1_u64 << self.below(64)).wrapping_sub(1 + self.below(2) * PAGE),
            4 => self.draw() & !0xfff & 0x0000_7fff_ffff_ffff,
            5 => u64::MAX - self.below(8192),
            6 => self.draw() >> self.below(64),
            _ => self.draw(),
        }
    }
}

/// Words of the board: calls made, by thread, from here on.
const COUNTS: usize = 8;

/// Where a child may map.
const PLACE: u64 = 0x30_0000_0000;

/// Selectors that children use.
const SELECTORS: u64 = 64;

/// Any selector: mostly one of those in use.
fn selector(random: &mut Random) -> u64 {
    match random.below(16) {
        0 => random.interesting(),
        1 => random.below(256),
        _ => own::FREE + random.below(SELECTORS),
    }
}

/// The type of what a selector names, 0 for nothing.
fn kind_of(selector: u64) -> u8 {
    let answer = call(CapInfo, selector, []);
    if answer.status == Success as u64 { answer.values[0] as u8 } else { 0 }
}

/// Mostly a selector that names something of one of these types.
fn find(random: &mut Random, kinds: &[ObjectType]) -> u64 {
    if random.below(12) == 0 {
        return selector(random);
    }
    let start = random.below(SELECTORS);
    let fits = |&candidate: &u64| kinds.iter().any(|&kind| kind as u8 == kind_of(candidate));
    (0..SELECTORS)
        .map(|step| own::FREE + (start + step) % SELECTORS)
        .chain([own::PD, own::POOL])
        .find(fits)
        .unwrap_or(own::FREE)
}

/// What a call is about.
fn subject(random: &mut Random, number: Hypercall) -> u64 {
    let kinds: &[ObjectType] = match number {
        Hypercall::Call | Hypercall::CallMessage => &[ObjectType::Pt],
        Signal | Wait => &[ObjectType::Sm, ObjectType::Ntfn],
        VcpuRun | VcpuPoke | VcpuRead | VcpuFpu => &[ObjectType::Vcpu],
        Map => &[ObjectType::Memory, ObjectType::Memory, ObjectType::Ports],
        Unmap => &[ObjectType::Memory, ObjectType::Memory, ObjectType::Ports, ObjectType::Devices],
        Bind => &[ObjectType::Ec, ObjectType::Vcpu, ObjectType::DmaSpace, ObjectType::Trace],
        CollectDirty => &[ObjectType::GuestSpace],
        EcInfo => &[ObjectType::Ec],
        ScInfo => &[ObjectType::Sc],
        PoolInfo => &[ObjectType::Pool],
        IrqBind | IrqAck => &[ObjectType::Irqs],
        number if (16..=25).contains(&(number as u8)) => &[ObjectType::Null],
        // What the child was given stays a while.
        Revoke if random.below(8) > 0 => return own::FREE + 16 + random.below(SELECTORS - 16),
        _ => return selector(random),
    };
    find(random, kinds)
}

/// Arguments that have a chance.
fn arguments(random: &mut Random, number: Hypercall) -> [u64; 8] {
    let mut words = [0; 8];
    words.iter_mut().for_each(|word| *word = random.interesting());
    match number {
        Map => {
            words[0] = find(random, &[ObjectType::Pd, ObjectType::GuestSpace, ObjectType::DmaSpace]);
            words[1] = [0, PLACE + random.below(4096) * PAGE, PLACE][random.below(3) as usize];
            [words[2], words[3], words[4]] = [random.below(4), 1 + random.below(8), random.below(4)];
            words[4] *= random.below(4).min(1);
        }
        Unmap => [words[0], words[1]] = [random.below(4), random.below(10)],
        VcpuRead => words[0] &= 0x3fff,
        VcpuFpu => {
            words = [random.below(4), find(random, &[ObjectType::Memory]), random.below(3), 0, 0, 0, 0, 0]
        }
        CollectDirty => words = [random.below(4) * PAGE, random.below(9), 9 * random.below(2), 0, 0, 0, 0, 0],
        Derive => {
            words[0] = if random.below(4) == 0 { find(random, &[ObjectType::Pd]) } else { 0 };
            words[1] = find(random, &[ObjectType::Null]);
            words[2] = 0xffff & (random.draw() | 0x8000);
            [words[3], words[4]] = [random.below(3), random.below(4)];
        }
        Revoke => words[0] = random.below(2),
        // A thread that waits for ever makes no calls.
        Wait => words[0] = usys::cpu::now() + random.below(2000),
        Bind => {
            words[1] = [0, 1, 2, 3, 7, 8, 9, 10][random.below(8) as usize];
            let what: &[ObjectType] = match words[1] {
                1 => &[ObjectType::Sm, ObjectType::Ntfn],
                3 => &[ObjectType::Ntfn],
                9 => &[ObjectType::Devices],
                _ => &[ObjectType::Memory],
            };
            [words[0], words[2]] = [find(random, what), random.below(2)];
        }
        CreateEc => {
            words[1] = find(random, &[ObjectType::Pd]);
            words[2] = random.below(2) << 16;
            // A stack of the child, for handlers; threads of other domains fault at once.
            [words[3], words[4]] = [0x1000 + random.below(2) * PAGE, CHILD_STACKS + PAGE];
        }
        CreateSc => {
            words[1] = find(random, &[ObjectType::Ec]);
            [words[2], words[3], words[4]] = [random.below(10), 100 + random.below(100), 1000];
        }
        CreatePt => {
            words[1] = find(random, &[ObjectType::Ec]);
            [words[2], words[3]] = [usys::portal::entry(), echo as *const () as u64];
        }
        CreateVcpu => [words[1], words[2]] = [find(random, &[ObjectType::GuestSpace]), 0],
        CreatePool => [words[1], words[2]] = [random.below(24), 0],
        CreateSm => words[1] = random.below(3),
        IrqBind => {
            words[0] = random.below(2);
            words[1] = find(random, &[ObjectType::Sm, ObjectType::Ntfn]);
            words[2] = random.below(2);
        }
        IrqAck => words[0] = random.below(2),
        _ => {}
    }
    if (16..=24).contains(&(number as u8)) && random.below(8) > 0 {
        words[0] = if random.below(3) > 0 { own::POOL } else { find(random, &[ObjectType::Pool]) };
    }
    // Now and then what the rules above rule out.
    if random.below(24) == 0 && number != Wait {
        words[random.below(6) as usize] = random.interesting();
    }
    words
}

extern "C" fn echo(_: &mut [u64; 8]) {}

/// Makes random hypercalls for ever: RDI has the seed and, in bits 32 and up, the word of the board to count in.
extern "C" fn make_calls(argument: u64) -> ! {
    let mut random = Random::new(argument & 0xffff_ffff);
    let count = board((argument >> 32) as usize);
    loop {
        // More revocations than the rest, or every selector would soon be in use.
        let pick = random.below(Hypercall::ALL.len() as u64 + 8) as usize;
        let number = Hypercall::ALL.get(pick).copied().unwrap_or(Revoke);
        let to = subject(&mut random, number);
        let mut head = number as u64 | to << 32;
        if random.below(32) == 0 {
            head = random.draw();
        }
        let is_odd = Hypercall::from_raw(head as u8) == Some(Wait) && number != Wait;
        let words = arguments(&mut random, number);
        // Replies end nothing here; waiting for ever is left out; the child ends itself only now and then.
        let ends_itself = number == Revoke && to < own::FREE && random.below(64) > 0;
        if !is_odd && !ends_itself {
            syscall(head, words);
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// A child with capabilities of every type, to do its worst with.
fn hostile(w: &mut World, threads: u64) -> Seen<Child> {
    let child = w.child(160, threads)?;
    child.grant(child.pd, own::PD, Rights::ALL)?;
    child.grant(child.pool, own::POOL, Rights::ALL)?;
    let mut next = own::FREE;
    let mut grant = |source: Sel| {
        next += 1;
        child.grant(source, next, Rights::ALL)
    };
    grant(child.pd)?;
    let memory = w.ram(8)?;
    grant(memory)?;
    grant(memory)?;
    let ports = w.part(PORTS, 0x80, 8)?;
    grant(ports)?;
    let irqs = w.part(IRQS, 3, 2)?;
    grant(irqs)?;
    let devices = w.part(DEVICES, 0xfff8, 4)?;
    grant(devices)?;
    grant(TRACE)?;
    for object in [w.sm(5)?, w.ntfn()?] {
        grant(object)?;
    }
    if w.info.machine & 3 != 0 {
        let mut guest = Guest::new(w)?;
        guest.code(&[0xf4]);
        grant(guest.space)?;
        grant(guest.vcpu)?;
    }
    Ok(child)
}

/// Lets children loose, one after the other, until enough calls are made: a child that is stuck, or dead, is replaced.
fn let_loose(w: &mut World, cpus: &[u16]) -> Check {
    let mut made = 0;
    let mut seed = 1;
    while made < CALLS {
        made += w.scoped(480, |w| {
            let child = hostile(w, cpus.len() as u64)?;
            for index in 0..cpus.len() {
                board(COUNTS + index).store(0, Ordering::Relaxed);
            }
            let mut ecs = alloc::vec![];
            for (index, &cpu) in cpus.iter().enumerate() {
                let argument = seed | ((COUNTS + index) as u64) << 32;
                seed += 1;
                let place = (cpu, threads::LOW, index as u64);
                ecs.push(w.child_thread(&child, place, make_calls as *const () as u64, argument)?.0);
            }
            let total = || -> u64 {
                (0..cpus.len()).map(|index| board(COUNTS + index).load(Ordering::Relaxed)).sum()
            };
            let mut last = 0;
            // No progress in 10 ms: it waits for somebody who never comes, or is dead.
            for _ in 0..40 {
                w.sleep(10_000);
                let now = total();
                if now == last || now > CALLS / 10 {
                    break;
                }
                last = now;
            }
            call(Revoke, child.pool, [1]).done()?;
            for ec in ecs {
                call(CapInfo, ec, []).fails(BadSelector)?;
            }
            Ok(total())
        })?;
        if seed > 20_000 {
            return Err(Failure::new("calls", made, CALLS));
        }
    }
    Ok(())
}

fn fifty_thousand_random_hypercalls_do_no_harm(w: &mut World) -> Check {
    let_loose(w, &[0])
}

fn random_hypercalls_on_every_cpu_at_once_do_no_harm(w: &mut World) -> Check {
    let cpus: alloc::vec::Vec<u16> = (0..w.info.cpu_count).collect();
    let_loose(w, &cpus)
}
