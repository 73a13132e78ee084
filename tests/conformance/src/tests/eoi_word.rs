//! Interrupts that a guest ends by a word of memory, without an exit.

use super::virtual_apic::{Apic, HANDLERS, is_in_hardware};
use super::{Group, Needs, group};
use crate::prelude::*;
use hypercall_abi::cap::BindRole;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{Groups, RunFlags};

pub(super) const GROUP: Group = group!(
    "EOI by a word",
    Needs::Guests => [
        an_interrupt_ends_by_its_word_without_an_exit,
        an_interrupt_before_others_that_wait_ends_by_its_register,
        an_interrupt_of_whose_end_the_vmm_hears_ends_by_its_register,
        reading_the_virtual_apic_takes_the_word_back,
        hardware_leaves_the_word_alone,
        a_word_is_aligned_and_in_ram_with_read_and_write,
    ],
);

const ROLE: u64 = BindRole::EoiWord as u64;
/// Where the word is in the guest's memory.
const WORD: u64 = 0x2020;
/// STI; NOP; HLT.
const WAIT: [u8; 3] = [0xfb, 0x90, 0xf4];
/// WRMSR of EOI, all registers kept.
const EOI: [u8; 17] =
    [0x50, 0x51, 0x52, 0xb9, 0x0b, 0x08, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0x5a, 0x59, 0x58];

/// A guest whose handlers count and then clear the word, or execute `otherwise` if they find it clear.
fn guest(w: &mut World, otherwise: &[u8]) -> Seen<(Apic, Sel)> {
    let mut apic = Apic::new(w)?;
    let word = w.derive(apic.guest.memory, Rights::READ | Rights::WRITE)?;
    call(Bind, apic.guest.vcpu, [word, ROLE, WORD]).done()?;
    for (index, handler) in (HANDLERS..).step_by(0x40).take(3).enumerate() {
        let counter = 4 * index as u8;
        // INC [counter]; LOCK BTR [word], 0; JC behind `otherwise`.
        apic.guest.write(handler, &[0xff, 0x04, 0x25, counter, 0x20, 0, 0]);
        apic.guest.write(handler + 7, &[0xf0, 0x0f, 0xba, 0x34, 0x25, WORD as u8, 0x20, 0, 0, 0]);
        apic.guest.write(handler + 17, &[0x72, otherwise.len() as u8]);
        apic.guest.write(handler + 19, otherwise);
        // IRETQ.
        apic.guest.write(handler + 19 + otherwise.len() as u64, &[0x48, 0xcf]);
    }
    apic.guest.code(&WAIT);
    Ok((apic, word))
}

fn raise(w: &mut World, apic: &Apic, vectors: &[u8]) -> Check {
    for &vector in vectors {
        let line = apic.line(w, vector)?;
        call(Signal, line, []).done()?;
    }
    Ok(())
}

fn word(apic: &Apic) -> u32 {
    // SAFETY: the guest's memory is mapped there.
    unsafe { ((apic.guest.ram + WORD) as *const u32).read_volatile() }
}

fn an_interrupt_ends_by_its_word_without_an_exit(w: &mut World) -> Check {
    if is_in_hardware(w) {
        return Ok(());
    }
    // UD2: there is nothing else to end it by.
    let (mut apic, _) = guest(w, &[0x0f, 0x0b])?;
    for round in 1..4 {
        raise(w, &apic, &[0x52])?;
        apic.guest.restart();
        apic.guest.run_to(ExitKind::Hlt)?;
        equal("interrupts", apic.counts(), [0, round, 0])?;
        equal("word", word(&apic), 0)?;
    }
    apic.guest.read(Groups::APIC)?;
    apic.is_clean()
}

fn an_interrupt_before_others_that_wait_ends_by_its_register(w: &mut World) -> Check {
    let (mut apic, _) = guest(w, &EOI)?;
    raise(w, &apic, &[0x41, 0x52, 0x53])?;
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts", apic.counts(), [1, 1, 1])?;
    apic.guest.read(Groups::APIC)?;
    apic.is_clean()
}

fn an_interrupt_of_whose_end_the_vmm_hears_ends_by_its_register(w: &mut World) -> Check {
    let (mut apic, _) = guest(w, &EOI)?;
    apic.guest.page().eoi_exits[1] = 1 << (0x52 - 0x40);
    apic.guest.page().dirty |= Groups::APIC.bits();
    raise(w, &apic, &[0x52])?;
    apic.guest.run_to(ExitKind::Eoi)?;
    equal("vector", apic.guest.page().exit_info[0], 0x52)?;
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts", apic.counts(), [0, 1, 0])
}

fn reading_the_virtual_apic_takes_the_word_back(w: &mut World) -> Check {
    if is_in_hardware(w) {
        return Ok(());
    }
    let (mut apic, _) = guest(w, &EOI)?;
    // HLT in the place of INC: an exit while the word is set.
    apic.guest.write(HANDLERS + 0x40, &[0xf4, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90]);
    raise(w, &apic, &[0x52])?;
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("word", word(&apic), 1)?;
    apic.guest.read(Groups::APIC)?;
    equal("word", word(&apic), 0)?;
    equal("ISR", apic.read(0x120), 1 << 0x12)?;
    let page = apic.guest.page();
    page.rip += 1;
    page.dirty |= Groups::RIP.bits();
    apic.guest.run_to(ExitKind::Hlt)?;
    apic.is_clean()
}

fn hardware_leaves_the_word_alone(w: &mut World) -> Check {
    if !is_in_hardware(w) {
        return Ok(());
    }
    let (mut apic, _) = guest(w, &EOI)?;
    raise(w, &apic, &[0x52])?;
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts", apic.counts(), [0, 1, 0])?;
    apic.is_clean()
}

fn a_word_is_aligned_and_in_ram_with_read_and_write(w: &mut World) -> Check {
    let (mut apic, bound) = guest(w, &EOI)?;
    let (vcpu, memory) = (apic.guest.vcpu, w.ram(2)?);
    let other = w.derive(memory, Rights::ALL)?;
    call(Bind, vcpu, [other, ROLE, 0]).fails(Occupied)?;
    // Without its capability there is no word: the interrupt ends by its register.
    call(Revoke, bound, [1]).done()?;
    raise(w, &apic, &[0x52])?;
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("word", word(&apic), 0)?;
    apic.is_clean()?;
    for offset in [1, 2, 2 * PAGE, 2 * PAGE + 4, u64::MAX - 3] {
        call(Bind, vcpu, [other, ROLE, offset]).fails(BadArgument)?;
    }
    for right in [Rights::READ, Rights::WRITE] {
        let weak = w.without(other, right)?;
        call(Bind, vcpu, [weak, ROLE, 0]).fails(BadRights)?;
    }
    let weak = w.without(vcpu, Rights::VCPU_RUN)?;
    call(Bind, weak, [other, ROLE, 0]).fails(BadRights)?;
    call(Bind, apic.guest.space, [other, ROLE, 0]).fails(BadType)?;
    call(Bind, vcpu, [other, ROLE, PAGE + 0xffc]).done()?;
    // With the word, and without the page, a run has no virtual APIC.
    apic.guest.page().run_flags = RunFlags::empty().bits();
    apic.guest.restart();
    apic.guest.run_to(ExitKind::Hlt)
}
