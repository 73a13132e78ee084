//! The virtual APIC: interrupts that come and end without the VMM.

use super::{Group, Needs, bind, group};
use crate::guest::{CODE, Guest};
use crate::prelude::*;
use crate::threads::{HIGH, LOW};
use hypercall_abi::boot_info::Machine;
use hypercall_abi::cap::BindRole;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{Event, FIRST_LINE, Groups, RunFlags};

pub(super) const GROUP: Group = group!(
    "virtual APIC",
    Needs::Guests => [
        a_self_ipi_arrives_and_ends_without_an_exit,
        an_interrupt_that_is_raised_reaches_a_running_guest,
        an_interrupt_waits_until_the_guest_takes_it,
        a_halted_guest_is_woken_by_an_interrupt,
        a_bit_of_the_notification_raises_the_interrupt_of_its_line,
        the_task_priority_holds_an_interrupt_back,
        interrupts_come_in_the_order_of_their_priority,
        the_end_of_an_interrupt_exits_if_the_vmm_asks,
        what_is_not_the_virtual_apics_exits,
        an_interrupt_keeps_behind_an_event_of_the_vmm,
        raising_needs_a_vector_and_the_right,
        a_virtual_apic_page_is_one_page_of_ram_with_read_and_write,
        without_its_page_a_vcpu_goes_on_without_interrupts,
        interrupts_that_wait_in_the_kernel_can_be_read_into_the_page,
    ],
    Needs::GuestsOnTwoCpus => [
        an_interrupt_reaches_a_guest_on_another_cpu,
    ],
);

const ROLE: u64 = BindRole::VirtualApic as u64;
/// Vectors that have a handler: it counts, ends the interrupt and returns.
const VECTORS: [u8; 3] = [0x41, 0x52, 0x53];
/// Where the handlers of these count, in 32 bits each; and where they leave the order in which they ran.
const COUNTS: u64 = 0x2000;
const GDT: u64 = 0x2800;
const IDT: u64 = 0x3000;
/// The handlers, 64 bytes each.
pub(super) const HANDLERS: u64 = 0x1800;

/// A guest with a virtual APIC.
pub(super) struct Apic {
    pub(super) guest: Guest,
    /// The capability that is bound.
    bound: Sel,
    page: u64,
}

impl Apic {
    pub(super) fn new(w: &mut World) -> Seen<Self> {
        Self::on(w, 0)
    }

    /// A guest in 64-bit mode, interrupts off, with a virtual APIC that is switched on.
    fn on(w: &mut World, cpu: u16) -> Seen<Self> {
        let mut guest = Guest::on(w, cpu)?;
        let ram = w.ram(1)?;
        let bound = w.derive(ram, Rights::ALL)?;
        call(Bind, guest.vcpu, [bound, ROLE]).done()?;
        let page = w.view(ram, 1)?;
        // SAFETY: mapped, and no reference to it is ever made.
        unsafe { (page as *mut u8).write_bytes(0, PAGE as usize) };
        guest.long_mode();
        let code_and_data = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff_u64];
        for (at, descriptor) in (GDT..).step_by(8).zip(code_and_data) {
            guest.write(at, &descriptor.to_le_bytes());
        }
        for (index, vector) in (0u64..).zip(VECTORS) {
            let handler = HANDLERS + index * 0x40;
            let gate = (handler & 0xffff) | 8 << 16 | 0x8e00 << 32;
            guest.write(IDT + u64::from(vector) * 16, &gate.to_le_bytes());
            let counter = (COUNTS + index * 4) as u8;
            // INC [counter]; MOV [order], vector after moving the order up; PUSH; EOI; POP; IRETQ.
            guest.write(handler, &[0xff, 0x04, 0x25, counter, 0x20, 0, 0, 0x50, 0x51, 0x52]);
            guest.write(handler + 10, &[0xc1, 0x24, 0x25, 0x10, 0x20, 0, 0, 8]);
            guest.write(handler + 18, &[0xc6, 0x04, 0x25, 0x10, 0x20, 0, 0, vector]);
            guest.write(handler + 26, &[0xb9, 0x0b, 0x08, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30]);
            guest.write(handler + 37, &[0x5a, 0x59, 0x58, 0x48, 0xcf]);
        }
        let page_of_vcpu = guest.page();
        (page_of_vcpu.gdtr.base, page_of_vcpu.gdtr.limit) = (GDT, 23);
        (page_of_vcpu.idtr.base, page_of_vcpu.idtr.limit) = (IDT, 0xfff);
        page_of_vcpu.run_flags = RunFlags::VIRTUAL_APIC.bits();
        page_of_vcpu.eoi_exits = [0; 4];
        Ok(Apic { guest, bound, page })
    }

    /// A capability that raises an interrupt.
    pub(super) fn line(&self, w: &mut World, vector: u8) -> Seen<Sel> {
        let line = w.sel();
        let rights = Rights::VCPU_INTERRUPT.bits().into();
        call(Derive, self.guest.vcpu, [0, line, rights, 0, 0, vector.into()]).done()?;
        Ok(line)
    }

    fn word(&self, offset: u64) -> *mut u32 {
        (self.page + offset) as *mut u32
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        // SAFETY: the page is mapped.
        unsafe { self.word(offset).read_volatile() }
    }

    /// Writes a register, and says so.
    pub(super) fn write(&mut self, offset: u64, value: u32) {
        // SAFETY: the page is mapped.
        unsafe { self.word(offset).write_volatile(value) };
        self.guest.page().dirty |= Groups::APIC.bits();
    }

    /// Counts of the handlers.
    pub(super) fn counts(&self) -> [u32; 3] {
        let counts = (self.guest.ram + COUNTS) as *const u32;
        // SAFETY: the guest's memory is mapped there.
        [0, 1, 2].map(|index| unsafe { counts.add(index).read_volatile() })
    }

    /// Vectors in the order in which they came, the last one lowest.
    fn order(&self) -> u32 {
        // SAFETY: as in `counts`.
        unsafe { ((self.guest.ram + COUNTS + 0x10) as *const u32).read_volatile() }
    }

    /// Nothing is requested or in service.
    #[track_caller]
    pub(super) fn is_clean(&self) -> Check {
        for offset in (0x100..0x180).step_by(16).chain((0x200..0x280).step_by(16)) {
            equal("ISR and IRR", self.read(offset), 0)?;
        }
        Ok(())
    }
}

/// STI; self-IPI of 41H; NOP; HLT.
const SELF_IPI: &[u8] =
    &[0xfb, 0xb9, 0x3f, 0x08, 0, 0, 0xb8, 0x41, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0x90, 0xf4];

fn a_self_ipi_arrives_and_ends_without_an_exit(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    apic.guest.code(SELF_IPI);
    for round in 1..4 {
        apic.guest.restart();
        apic.guest.run_to(ExitKind::Hlt)?;
        equal("interrupts", apic.counts(), [round, 0, 0])?;
        equal("RIP", apic.guest.page().rip, CODE + 16)?;
        apic.is_clean()?;
    }
    Ok(())
}

fn an_interrupt_that_is_raised_reaches_a_running_guest(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    let line = apic.line(w, 0x52)?;
    // STI; JMP to itself.
    apic.guest.code(&[0xfb, 0xeb, 0xfe]);
    let run = w.begin((0, LOW), VcpuRun, apic.guest.vcpu, [])?;
    for round in 1..5 {
        w.sleep(500);
        call(Signal, line, []).done()?;
        w.until("the handler ran", || apic.counts() == [0, round, 0])?;
    }
    equal("is done", run.is_done(), false)?;
    call(VcpuPoke, apic.guest.vcpu, []).done()?;
    equal("kind", w.answer(&run)?.value()?, ExitKind::Poked as u64)
}

fn an_interrupt_waits_until_the_guest_takes_it(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    let line = apic.line(w, 0x41)?;
    call(Signal, line, []).done()?;
    call(Signal, line, []).done()?;
    // HLT; STI; NOP; HLT.
    apic.guest.code(&[0xf4, 0xfb, 0x90, 0xf4]);
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts with IF clear", apic.counts(), [0, 0, 0])?;
    equal("IRR", apic.read(0x220), 1 << 1)?;
    apic.guest.page().rip = CODE + 1;
    apic.guest.page().dirty |= Groups::RIP.bits();
    apic.guest.run_to(ExitKind::Hlt)?;
    // Twice raised before it was taken is once.
    equal("interrupts", apic.counts(), [1, 0, 0])?;
    equal("RIP", apic.guest.page().rip, CODE + 3)?;
    apic.is_clean()
}

fn a_halted_guest_is_woken_by_an_interrupt(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    let line = apic.line(w, 0x53)?;
    apic.guest.page().run_flags |= RunFlags::HLT_BLOCKS.bits();
    // STI; HLT; JMP to the HLT.
    apic.guest.code(&[0xfb, 0xf4, 0xeb, 0xfd]);
    let run = w.begin((0, HIGH), VcpuRun, apic.guest.vcpu, [])?;
    for round in 1..4 {
        w.sleep(2000);
        equal("interrupts", apic.counts(), [0, 0, round - 1])?;
        call(Signal, line, []).done()?;
        equal("interrupts", apic.counts(), [0, 0, round])?;
        equal("is done", run.is_done(), false)?;
    }
    call(VcpuPoke, apic.guest.vcpu, []).done()?;
    equal("kind", w.answer(&run)?.value()?, ExitKind::Poked as u64)
}

fn a_bit_of_the_notification_raises_the_interrupt_of_its_line(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    let (ntfn, [line, other, both]) = (w.ntfn()?, [w.sel(), w.sel(), w.sel()]);
    let bits = [1 << FIRST_LINE, 1 << (FIRST_LINE + 7), 1 << FIRST_LINE | 4_u64];
    for (to, bits) in [line, other, both].into_iter().zip(bits) {
        call(Derive, ntfn, [0, to, 0xffff, 0, 0, bits]).done()?;
    }
    call(Bind, apic.guest.vcpu, [ntfn, BindRole::VcpuNotification as u64]).done()?;
    apic.guest.page().lines[0] = 0x53;
    apic.guest.page().run_flags |= RunFlags::HLT_BLOCKS.bits();
    // STI; HLT; JMP to the HLT.
    apic.guest.code(&[0xfb, 0xf4, 0xeb, 0xfd]);
    let run = w.begin((0, HIGH), VcpuRun, apic.guest.vcpu, [])?;
    for round in 1..4 {
        w.sleep(2000);
        call(Signal, line, []).done()?;
        equal("interrupts", apic.counts(), [0, 0, round])?;
        equal("is done", run.is_done(), false)?;
    }
    // The other bits are the VMM's, and come without it.
    call(Signal, both, []).done()?;
    equal("kind", w.answer(&run)?.value()?, ExitKind::Notified as u64)?;
    equal("bits", apic.guest.page().notified, 4)?;
    call(Signal, other, []).done()?;
    apic.guest.run_to(ExitKind::Notified)?;
    equal("bits of a line without a vector", apic.guest.page().notified, bits[1])?;
    // So is that of a line where there is no virtual APIC.
    apic.guest.page().run_flags = 0;
    call(Signal, line, []).done()?;
    apic.guest.run_to(ExitKind::Notified)?;
    equal("bits without a virtual APIC", apic.guest.page().notified, bits[0])
}

fn the_task_priority_holds_an_interrupt_back(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    let line = apic.line(w, 0x52)?;
    call(Signal, line, []).done()?;
    apic.write(0x80, 0x50);
    // STI; NOP; HLT; then TPR = 40H; NOP; HLT.
    apic.guest.code(&[
        0xfb, 0x90, 0xf4, 0xb9, 0x08, 0x08, 0, 0, 0xb8, 0x40, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0x90, 0xf4,
    ]);
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts", apic.counts(), [0, 0, 0])?;
    apic.guest.page().rip += 1;
    apic.guest.page().dirty |= Groups::RIP.bits();
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts", apic.counts(), [0, 1, 0])?;
    equal("TPR", apic.read(0x80), 0x40)?;
    equal("RIP", apic.guest.page().rip, CODE + 18)
}

fn interrupts_come_in_the_order_of_their_priority(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    for vector in [0x41, 0x53, 0x52] {
        let line = apic.line(w, vector)?;
        call(Signal, line, []).done()?;
    }
    apic.guest.code(&[0xfb, 0x90, 0x90, 0xf4]);
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts", apic.counts(), [1, 1, 1])?;
    equal("order", apic.order(), 0x0053_5241)?;
    apic.is_clean()
}

fn the_end_of_an_interrupt_exits_if_the_vmm_asks(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    apic.guest.page().eoi_exits[1] = 1 << (0x52 - 0x40);
    for vector in [0x41, 0x52] {
        let line = apic.line(w, vector)?;
        call(Signal, line, []).done()?;
    }
    apic.guest.code(&[0xfb, 0x90, 0x90, 0xf4]);
    apic.guest.run_to(ExitKind::Eoi)?;
    equal("vector", apic.guest.page().exit_info[0], 0x52)?;
    equal("interrupts", apic.counts(), [0, 1, 0])?;
    // It is over already, and the guest is behind the instruction.
    equal("ISR", apic.read(0x120), 0)?;
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts", apic.counts(), [1, 1, 0])
}

/// Whether the CPU uses the virtual-APIC page itself.
pub(super) fn is_in_hardware(w: &World) -> bool {
    w.info.machine & Machine::APIC_VIRTUALIZATION.bits() != 0
}

fn what_is_not_the_virtual_apics_exits(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    // WRMSR of EDX:EAX to ECX.
    apic.guest.code(&[0x0f, 0x30]);
    let others = [(0x830, 0x41, 0), (0x80d, 0, 0), (0x1b, 0, 0)];
    let refused = [(0x80b, 1, 0), (0x83f, 15, 0), (0x83f, 0x100, 0), (0x83f, 0x41, 1), (0x808, 0x100, 0)];
    // The hardware answers these with #GP.
    let exits = if is_in_hardware(w) { &[] } else { &refused[..] };
    for &(msr, rax, rdx) in others.iter().chain(exits) {
        apic.guest.restart();
        let page = apic.guest.page();
        [page.gpr[1], page.gpr[0], page.gpr[2]] = [msr, rax, rdx];
        apic.guest.run_to(ExitKind::MsrWrite)?;
        equal("RIP", apic.guest.page().rip, CODE)?;
    }
    apic.is_clean()?;
    // Nor is anything while it is switched off.
    apic.guest.page().run_flags = 0;
    let line = apic.line(w, 0x41)?;
    call(Signal, line, []).done()?;
    apic.guest.code(SELF_IPI);
    apic.guest.restart();
    apic.guest.run_to(ExitKind::MsrWrite)?;
    equal("interrupts", apic.counts(), [0; 3])?;
    // What was raised meanwhile comes when it is on again.
    apic.guest.page().run_flags = RunFlags::VIRTUAL_APIC.bits();
    apic.guest.run_to(ExitKind::Hlt)?;
    let [first, ..] = apic.counts();
    holds("interrupts", first == 2)
}

fn an_interrupt_keeps_behind_an_event_of_the_vmm(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    let line = apic.line(w, 0x41)?;
    call(Signal, line, []).done()?;
    apic.guest.code(&[0x90, 0x90, 0x90, 0xf4]);
    apic.guest.page().rflags |= 1 << 9;
    apic.guest.page().inject = Event::interrupt(0x52);
    apic.write(0x120, 1 << (0x52 - 0x40));
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts", apic.counts(), [1, 1, 0])?;
    equal("order", apic.order(), 0x5241)?;
    apic.is_clean()
}

fn raising_needs_a_vector_and_the_right(w: &mut World) -> Check {
    let apic = Apic::new(w)?;
    let vcpu = apic.guest.vcpu;
    call(Signal, vcpu, []).fails(BadArgument)?;
    let weak = w.without(vcpu, Rights::VCPU_INTERRUPT)?;
    call(Signal, weak, []).fails(BadRights)?;
    let to = w.sel();
    for vector in [1, 15, 256, u64::MAX] {
        call(Derive, vcpu, [0, to, 0xffff, 0, 0, vector]).fails(BadArgument)?;
    }
    // A vector is chosen once.
    let line = w.sel();
    call(Derive, vcpu, [0, line, 0xffff, 0, 0, 0x41]).done()?;
    call(Derive, line, [0, to, 0xffff, 0, 0, 0x42]).fails(BadRights)?;
    call(Derive, line, [0, to, 0xffff, 0, 0, 0]).done()?;
    call(Signal, to, []).done()?;
    equal("badge", call(CapInfo, to, []).ok()?[2], 0x41)
}

fn a_virtual_apic_page_is_one_page_of_ram_with_read_and_write(w: &mut World) -> Check {
    let (space, vcpu) = (w.guest_space()?, w.sel());
    call(CreateVcpu, vcpu, [w.pool, space, 0]).done()?;
    bind::a_page_is_checked(w, vcpu, Rights::VCPU_RUN, ROLE, space)
}

fn without_its_page_a_vcpu_goes_on_without_interrupts(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    let line = apic.line(w, 0x41)?;
    call(Revoke, apic.bound, [1]).done()?;
    call(Signal, line, []).done()?;
    apic.guest.code(SELF_IPI);
    apic.guest.run_to(ExitKind::MsrWrite)?;
    equal("interrupts", apic.counts(), [0; 3])
}

fn an_interrupt_reaches_a_guest_on_another_cpu(w: &mut World) -> Check {
    let cpu = w.other_cpu();
    let mut apic = Apic::on(w, cpu)?;
    let line = apic.line(w, 0x53)?;
    apic.guest.code(&[0xfb, 0xeb, 0xfe]);
    let run = w.begin((cpu, LOW), VcpuRun, apic.guest.vcpu, [])?;
    for round in 1..20 {
        call(Signal, line, []).done()?;
        w.until("the handler ran", || apic.counts() == [0, 0, round])?;
    }
    equal("is done", run.is_done(), false)?;
    call(VcpuPoke, apic.guest.vcpu, []).done()?;
    equal("kind", w.answer(&run)?.value()?, ExitKind::Poked as u64)
}

fn interrupts_that_wait_in_the_kernel_can_be_read_into_the_page(w: &mut World) -> Check {
    let mut apic = Apic::new(w)?;
    for vector in [0x41, 0x53] {
        let line = apic.line(w, vector)?;
        call(Signal, line, []).done()?;
    }
    equal("IRR", apic.read(0x220), 0)?;
    apic.guest.read(Groups::APIC)?;
    equal("IRR", apic.read(0x220), 1 << 1 | 1 << 0x13)?;
    // They come once, from there.
    apic.guest.code(&[0xfb, 0x90, 0x90, 0xf4]);
    apic.guest.run_to(ExitKind::Hlt)?;
    equal("interrupts", apic.counts(), [1, 0, 1])?;
    apic.is_clean()
}
