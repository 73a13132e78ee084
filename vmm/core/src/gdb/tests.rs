//! The stub as gdb sees it, with a CPU that does what the test says.

use super::*;
use crate::vcpu::{FakeVcpu, RFLAGS_TF};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use hypercall_abi::vcpu::{SS, gpr};
use vdev::guest_mem::VecMemory;

const CODE: u64 = 0x1000;
const STACK: u64 = 0x3000;

/// What the CPU does at one entry.
type Entry = Box<dyn FnOnce(&mut Fake)>;

struct Fake {
    vcpu: FakeVcpu,
    memory: VecMemory,
    packets: VecDeque<String>,
    bytes: VecDeque<u8>,
    said: String,
    entries: VecDeque<Entry>,
    handled: u32,
    outcome: Option<Outcome>,
    is_emulated_svm: bool,
}

impl Inferior for Fake {
    type Cpu = FakeVcpu;
    type Memory = VecMemory;

    fn parts(&mut self) -> (&mut FakeVcpu, &mut VecMemory) {
        (&mut self.vcpu, &mut self.memory)
    }

    fn is_emulated_svm(&self) -> bool {
        self.is_emulated_svm
    }

    fn enter(&mut self, _is_quiet: bool) {
        let entry = self.entries.pop_front().expect("the guest is not to run");
        entry(self);
    }

    fn handle(&mut self) {
        self.handled += 1;
    }

    fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    fn receive(&mut self) -> Option<u8> {
        self.bytes.pop_front()
    }

    fn wait(&mut self) {
        let packet = self.packets.pop_front().expect("gdb has nothing to say any more");
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        self.bytes.extend(format!("${packet}#{sum:02x}").bytes());
    }

    fn send(&mut self, bytes: &[u8]) {
        // Run-length encoding: `x*N` stands for x, and as many again as N is more than 29.
        let mut bytes = bytes.iter().copied();
        while let Some(byte) = bytes.next() {
            match (byte, self.said.chars().last()) {
                (b'*', Some(last)) => {
                    let more = bytes.next().map_or(0, |count| count - 29);
                    self.said.extend((0..more).map(|_| last));
                }
                _ => self.said.push(byte.into()),
            }
        }
    }
}

/// Ends the entry by an exit.
fn exit(fake: &mut Fake, kind: ExitKind, info: [u64; 3]) {
    fake.vcpu.page.exit_kind = kind as u32;
    fake.vcpu.page.exit_info[..3].copy_from_slice(&info);
}

/// The guest at [`CODE`] in a flat address space, and what gdb says and it does.
fn session(code: &[u8], packets: &[&str], entries: Vec<Entry>) -> (Fake, Ended) {
    session_on(false, code, packets, entries)
}

fn session_on(is_emulated_svm: bool, code: &[u8], packets: &[&str], entries: Vec<Entry>) -> (Fake, Ended) {
    let mut vcpu = FakeVcpu::new();
    let page = &mut vcpu.page;
    page.segments.iter_mut().for_each(|segment| segment.base = 0);
    page.rip = CODE;
    page.gpr[gpr::RSP] = STACK;
    page.dirty = 0;
    let mut memory = VecMemory::new(0x4000);
    memory.write(CODE, code).unwrap();
    let mut fake = Fake {
        vcpu,
        memory,
        packets: packets.iter().map(|&packet| packet.into()).collect(),
        bytes: VecDeque::new(),
        said: String::new(),
        entries: entries.into(),
        handled: 0,
        outcome: None,
        is_emulated_svm,
    };
    let ended = serve(&mut fake);
    assert!(fake.entries.is_empty(), "the guest ran too little");
    (fake, ended)
}

#[test]
fn a_software_breakpoint_stops_the_guest_and_leaves_no_trace() {
    let (fake, ended) = session(
        &[0x90, 0x40],
        &["Z0,1001,1", "m1000,2", "c", "z0,1001,1", "m1000,2", "D"],
        vec![Box::new(|fake| {
            assert_ne!(fake.vcpu.page.exception_bitmap & 1 << BREAKPOINT, 0);
            fake.vcpu.page.rip = CODE + 1;
            exit(fake, ExitKind::Exception, [BREAKPOINT.into(), 0, 0]);
        })],
    );
    assert_eq!(ended, Ended::Detached);
    assert!(fake.said.contains("$90cc#"), "{}", fake.said);
    assert!(fake.said.contains("$T05thread:01;swbreak:;#"), "{}", fake.said);
    assert!(fake.said.contains("$9040#"), "{}", fake.said);
    assert_eq!(fake.vcpu.page.exception_bitmap, 0);
    assert_eq!(fake.handled, 0);
}

#[test]
fn a_debugger_that_kills_the_guest_is_answered() {
    let (fake, ended) = session(&[0x90], &["vKill;1"], vec![]);
    assert_eq!(ended, Ended::Killed);
    assert!(fake.said.ends_with("$OK#9a"), "{}", fake.said);
}

#[test]
fn where_int3_does_not_exit_hlt_breaks_at_every_privilege() {
    let (fake, _) = session_on(
        true,
        &[0x90],
        &["Z1,1000,1", "Z0,1000,1", "m1000,1", "c", "c", "D"],
        vec![
            Box::new(|fake| exit(fake, ExitKind::Hlt, [0; 3])),
            Box::new(|fake| exit(fake, ExitKind::Exception, [GENERAL_PROTECTION.into(), 0, 0])),
        ],
    );
    assert!(fake.said.contains("$f4#"), "{}", fake.said);
    assert_eq!(fake.said.matches("swbreak:;#").count(), 2, "{}", fake.said);
    assert!(fake.said.contains("+$#00"), "no breakpoint in a debug register: {}", fake.said);
    assert_eq!((fake.memory.read_u8(CODE), fake.handled), (Ok(0x90), 0));
}

#[test]
fn a_breakpoint_that_is_left_behind_is_taken_out() {
    let (fake, _) = session(&[0x90], &["Z0,1000,1", "D"], vec![]);
    assert_eq!(fake.memory.read_u8(CODE), Ok(0x90));
}

#[test]
fn the_guests_own_breakpoint_reaches_the_guest_behind_the_instruction() {
    let (fake, _) = session(
        &[0xcc],
        &["c", "D"],
        vec![
            Box::new(|fake| exit(fake, ExitKind::Exception, [BREAKPOINT.into(), 0, 0])),
            Box::new(|fake| {
                let page = &fake.vcpu.page;
                assert_eq!(page.inject, Event::exception(BREAKPOINT, None));
                assert_eq!(page.rip, CODE + 1);
                fake.bytes.push_back(3);
                exit(fake, ExitKind::Poked, [0; 3]);
            }),
        ],
    );
    assert!(fake.said.contains("$S02#"), "{}", fake.said);
}

#[test]
fn a_step_of_pushf_hides_the_trap_flag() {
    let (mut fake, _) = session(
        &[0x9c],
        &["s", "D"],
        vec![Box::new(|fake| {
            assert_ne!(fake.vcpu.page.rflags & RFLAGS_TF, 0);
            let flags = fake.vcpu.page.rflags;
            fake.memory.write_u64(STACK - 8, flags).unwrap();
            fake.vcpu.page.gpr[gpr::RSP] = STACK - 8;
            fake.vcpu.page.rip = CODE + 1;
            exit(fake, ExitKind::Exception, [DEBUG_EXCEPTION.into(), 0, 1 << 14]);
        })],
    );
    assert!(fake.said.contains("$S05#"), "{}", fake.said);
    let flags = fake.vcpu.page.rflags;
    assert_eq!(flags & RFLAGS_TF, 0);
    assert_eq!(fake.memory.read_u64(STACK - 8), Ok(flags));
    assert_eq!(fake.vcpu.page().segments[SS].base, 0);
}

#[test]
fn a_step_over_an_emulated_instruction_ends_behind_it() {
    let (fake, _) = session(
        &[0x0f, 0xa2],
        &["s", "D"],
        vec![Box::new(|fake| {
            exit(fake, ExitKind::Cpuid, [0; 3]);
            complete_instruction(&mut fake.vcpu, 2);
        })],
    );
    assert!(fake.said.contains("$S05#"), "{}", fake.said);
    assert_eq!(fake.vcpu.page.rip, CODE + 2);
    assert_eq!(fake.vcpu.page.inject, Event::NONE);
    assert_eq!(fake.vcpu.page.dr6 & 1 << 14, 0);
}

#[test]
fn the_guest_finds_its_own_debug_registers_while_the_debugger_has_them() {
    let (fake, _) = session(
        &[0x90],
        &["Z1,1008,1", "Z2,2000,4", "c", "c", "z1,1008,1", "z2,2000,4", "D"],
        vec![
            Box::new(|fake| {
                let page = &fake.vcpu.page;
                assert_eq!((page.dr[0], page.dr[1], page.dr7), (0x1008, 0x2000, 0x00d0_0405));
                assert_eq!(page.intercepts, Intercepts::DEBUG_REGISTERS.bits());
                exit(fake, ExitKind::Exception, [DEBUG_EXCEPTION.into(), 0, 0b01]);
            }),
            Box::new(|fake| exit(fake, ExitKind::DebugAccess, [0; 3])),
            Box::new(|fake| exit(fake, ExitKind::Exception, [DEBUG_EXCEPTION.into(), 0, 0b10])),
        ],
    );
    assert!(fake.said.contains("hwbreak:;#"), "{}", fake.said);
    assert!(fake.said.contains("watch:2000;#"), "{}", fake.said);
    assert_eq!((fake.vcpu.page.dr, fake.vcpu.page.dr7), ([0; 4], 0x400));
    assert_eq!(fake.vcpu.page.intercepts, 0);
    assert_eq!(fake.handled, 1);
}

#[test]
fn registers_read_as_written_and_those_of_the_fpu_as_unknown() {
    let value = "efcdab8967452301";
    let (fake, _) = session(&[], &[&format!("P0={value}"), "p0", "p18", "g", "D"], vec![]);
    assert_eq!(fake.vcpu.page.gpr[gpr::RAX], 0x0123_4567_89ab_cdef);
    assert!(fake.said.contains(&format!("${value}#")), "{}", fake.said);
    assert!(fake.said.contains("$xxxxxxxxxxxxxxxxxxxx#"), "{}", fake.said);
}

#[test]
fn the_end_of_the_guest_is_the_end_of_the_session() {
    let (fake, ended) = session(
        &[],
        &["c"],
        vec![Box::new(|fake| {
            exit(fake, ExitKind::PortIo, [0; 3]);
            fake.outcome = Some(Outcome::ExitCode(0x10));
        })],
    );
    assert_eq!(ended, Ended::Over);
    assert!(fake.said.contains("$W10#"), "{}", fake.said);
}

#[test]
fn memory_that_is_not_there_is_an_error_and_part_of_it_a_part() {
    let (fake, _) = session(&[], &["m10000000,4", "m3ffe,4", "M10000000,1:00", "D"], vec![]);
    assert!(fake.said.contains("$0000#"), "{}", fake.said);
    assert_eq!(fake.said.matches("$E").count(), 2, "{}", fake.said);
}
