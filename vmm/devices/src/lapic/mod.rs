//! Local APIC, in xAPIC and x2APIC mode (SDM 3A chapter 10).
//!
//! Data path: interrupts come in by [`Lapic::accept`], from the I/O APIC, MSIs, IPIs and the timer, and wait
//! in IRR. [`Lapic::pending`] is the vector that the CPU should take now; when the VMM injects it, it says so
//! by [`Lapic::acknowledge`], which moves it to ISR. The guest's EOI takes it out of there. What a register
//! write does beyond this local APIC comes back as an [`Effect`].
//!
//! The registers live in a page in the hardware's layout. Delivery is instantaneous, so delivery status bits
//! read as idle. NMI, INIT and start-up IPIs act on the CPU and not on this state; the board handles them,
//! with [`Lapic::init`].

mod ipi;
mod pv_eoi;
mod register;
#[cfg(test)]
mod tests;
mod timer;
mod x2apic;

pub use ipi::{IpiRequest, Shorthand};
pub use pv_eoi::MSR_PV_EOI;
pub use register::{PAGE_WORDS, PageWords};
pub use x2apic::{IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST, X2APIC_LAST};

use crate::interrupt::{FIRST_LEGAL_VECTOR, destination_from_8_bits};
use pv_eoi::PvEoi;
use register::{Esr, LVT_MASK, Lvt, Register, RegisterPage, Svr, VectorSet};
use timer::Timer;
use x2apic::{BASE_BSP, BASE_ENABLE, BASE_EXTD};

/// Guest-physical address of the registers after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;
/// Bytes of address space that the registers take.
pub const MMIO_BYTES: u64 = 0x1000;
/// No page's address.
const NOWHERE: u64 = u64::MAX;

/// Integrated APIC of version 14H with seven LVT entries, which can suppress EOI broadcasts.
const VERSION: u32 = 1 << 24 | (Lvt::ALL.len() as u32 - 1) << 16 | 0x14;

/// How the local APIC is addressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Globally disabled: the CPU behaves as if it had none.
    Disabled,
    /// By memory, at the address in IA32_APIC_BASE.
    XApic,
    /// By MSRs 0x800 to 0x8ff.
    X2Apic,
}

impl Mode {
    fn from_base(base: u64) -> Option<Self> {
        match (base & BASE_ENABLE != 0, base & BASE_EXTD != 0) {
            (false, false) => Some(Self::Disabled),
            (true, false) => Some(Self::XApic),
            (true, true) => Some(Self::X2Apic),
            (false, true) => None,
        }
    }
}

/// What a write asks of the rest of the board.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing. [`Lapic::pending`] and [`Lapic::next_event`] may have changed all the same.
    None,
    /// An IPI for local APICs, this one perhaps among them.
    Ipi(IpiRequest),
    /// A level-triggered interrupt with this vector ended; the I/O APIC must hear of it.
    EoiBroadcast(u8),
}

impl Effect {
    /// The vector whose EOI the I/O APIC must hear of.
    pub fn eoi_broadcast(&self) -> Option<u8> {
        match self {
            Self::EoiBroadcast(vector) => Some(*vector),
            _ => None,
        }
    }

    /// The IPI to deliver.
    pub fn ipi(&self) -> Option<&IpiRequest> {
        match self {
            Self::Ipi(ipi) => Some(ipi),
            _ => None,
        }
    }
}

/// One CPU's local APIC.
pub struct Lapic {
    apic_id: u32,
    /// IA32_APIC_BASE; always one of the three modes.
    base: u64,
    /// Guest-physical address of the registers; [`NOWHERE`] unless in xAPIC mode.
    window: u64,
    page: RegisterPage,
    timer: Timer,
    /// Errors since ESR was last written; the register shows those before.
    errors: Esr,
    pv_eoi: PvEoi,
}

impl Lapic {
    /// A local APIC after power-up: xAPIC mode, disabled by software.
    ///
    /// `timer_hz` is the rate of the timer's clock before division, `tsc_hz` that of all times passed in.
    pub fn new(apic_id: u32, is_bsp: bool, timer_hz: u64, tsc_hz: u64) -> Self {
        let mut lapic = Self {
            apic_id,
            base: DEFAULT_BASE | BASE_ENABLE | if is_bsp { BASE_BSP } else { 0 },
            window: DEFAULT_BASE,
            page: RegisterPage::new(),
            timer: Timer::new(timer_hz, tsc_hz),
            errors: Esr::empty(),
            pv_eoi: PvEoi::default(),
        };
        lapic.reset_registers();
        lapic
    }

    /// INIT: registers as after power-up, in the present mode (SDM 3A 10.4.7.3, 10.12.5.1).
    pub fn init(&mut self) {
        self.reset_registers();
        self.write_pv_eoi(0);
    }

    /// The APIC ID, 32 bits wide.
    pub fn apic_id(&self) -> u32 {
        self.apic_id
    }

    /// How the guest addresses it now.
    pub fn mode(&self) -> Mode {
        // Writes that would leave no mode were refused.
        Mode::from_base(self.base).unwrap_or(Mode::Disabled)
    }

    /// Guest-physical address of the registers; `None` unless in xAPIC mode.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.window != NOWHERE).then_some(self.window)
    }

    /// Whether the registers are at this guest-physical address, a multiple of [`MMIO_BYTES`].
    #[inline]
    pub fn is_at(&self, address: u64) -> bool {
        self.window == address
    }

    /// The register page, in the layout of a virtual-APIC page.
    pub fn registers(&self) -> &PageWords {
        self.page.words()
    }

    /// Keeps the registers in a page that the kernel has as the vCPU's virtual-APIC page.
    pub fn share(&mut self, page: &'static PageWords) {
        self.page.share(page);
        self.lend();
    }

    /// After a change of the mode or of SVR.
    fn lend(&mut self) {
        let is_enabled = self.mode() == Mode::X2Apic && self.is_software_enabled();
        self.page.lend(self.page.is_shared() && is_enabled);
    }

    /// Whether the kernel delivers and ends interrupts by the shared page now: then [`Self::pending`] is not for the VMM to
    /// act on.
    #[inline]
    pub fn is_virtual(&self) -> bool {
        self.page.is_lent()
    }

    /// What the kernel does for this APIC, beyond what is in the page, changes: [`Self::take_has_changed`] tells of it.
    pub fn note_change(&mut self) {
        self.page.note_change();
    }

    /// Whether IRR, ISR or TPR may have changed here since this was last asked; the kernel has to know.
    pub fn take_has_changed(&mut self) -> bool {
        self.page.take_has_changed()
    }

    /// The vectors whose end the I/O APIC must hear of, a bit for each.
    pub fn level_triggered(&self) -> [u64; 4] {
        self.page.members(VectorSet::TriggerMode)
    }

    /// What follows from the end of `vector`, which is not in service any more.
    pub fn ended(&self, vector: u8) -> Effect {
        let is_level = self.page.contains(VectorSet::TriggerMode, vector);
        if is_level && !self.svr().contains(Svr::SUPPRESS_EOI_BROADCAST) {
            Effect::EoiBroadcast(vector)
        } else {
            Effect::None
        }
    }

    /// Reads the 32-bit register at byte `offset` of the page. Outside xAPIC mode nothing answers, which
    /// reads as ones.
    pub fn mmio_read(&mut self, offset: u64, now: u64) -> u32 {
        if self.mode() != Mode::XApic {
            return u32::MAX;
        }
        match self.decode_mmio(offset) {
            Some(register) => self.read_register(register, now),
            None => 0,
        }
    }

    /// Writes the 32-bit register at byte `offset` of the page. Ignored outside xAPIC mode.
    pub fn mmio_write(&mut self, offset: u64, value: u32, now: u64) -> Effect {
        if self.mode() != Mode::XApic {
            return Effect::None;
        }
        self.advance(now);
        match self.decode_mmio(offset) {
            Some(register) => self.write_register(register, value, now),
            None => Effect::None,
        }
    }

    /// CR8: the upper half of TPR.
    pub fn cr8(&self) -> u8 {
        self.task_priority() >> 4
    }

    /// Sets TPR from CR8, of which bits 3:0 count; the CPU refuses others with #GP.
    pub fn set_cr8(&mut self, value: u8) {
        self.set_task_priority(value << 4);
    }

    /// PPR (SDM 3A 10.8.3.1); among CPUs that a lowest-priority message names, the lowest takes it.
    pub fn processor_priority(&self) -> u8 {
        let [ppr, ..] = self.page.get(Register::ProcessorPriority).to_le_bytes();
        ppr
    }

    /// The local APIC takes interrupts: enabled globally and in SVR.
    pub fn is_software_enabled(&self) -> bool {
        self.mode() != Mode::Disabled && self.svr().contains(Svr::SOFTWARE_ENABLE)
    }

    /// Accepts an interrupt into IRR and says whether it did; it does not if disabled or if the vector is
    /// illegal.
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.is_software_enabled() {
            return false;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.raise_error(Esr::RECEIVED_ILLEGAL_VECTOR);
            return false;
        }
        self.page.insert(VectorSet::InterruptRequest, vector);
        if level {
            self.page.insert(VectorSet::TriggerMode, vector);
        } else {
            self.page.remove(VectorSet::TriggerMode, vector);
        }
        true
    }

    /// The highest vector in IRR, whatever the priority; what a lower TPR might let through.
    pub fn highest_request(&self) -> Option<u8> {
        self.page.highest(VectorSet::InterruptRequest)
    }

    /// The vector that the CPU should take now: the highest in IRR, if its class is above that of PPR.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        if self.mode() == Mode::Disabled {
            return None;
        }
        self.highest_request().filter(|vector| vector >> 4 > self.processor_priority() >> 4)
    }

    /// The CPU takes `vector`: from IRR to ISR. Nothing happens if it is not in IRR.
    pub fn acknowledge(&mut self, vector: u8) {
        if self.page.contains(VectorSet::InterruptRequest, vector) {
            self.page.remove(VectorSet::InterruptRequest, vector);
            self.page.insert(VectorSet::InService, vector);
            self.update_processor_priority();
        }
    }

    /// The delivery of `vector`, which the CPU had taken, failed: from ISR back to IRR.
    pub fn retract(&mut self, vector: u8) {
        if self.page.contains(VectorSet::InService, vector) {
            self.page.remove(VectorSet::InService, vector);
            self.page.insert(VectorSet::InterruptRequest, vector);
            self.update_processor_priority();
        }
    }

    /// TSC at which to call [`Self::advance`], not before `now`; `None` while no timer interrupt is to come.
    ///
    /// A timer with a period below 100 µs is looked at that often only: without time between two looks its guest would
    /// not run.
    pub fn next_event(&self, now: u64) -> Option<u64> {
        if self.lvt(Lvt::Timer) & LVT_MASK != 0 {
            return None;
        }
        let earliest = now.saturating_add(self.timer.least_wait());
        self.timer.next_expiry().map(|expiry| expiry.max(earliest))
    }

    /// The guest set its TSC from `old` to `new`.
    pub fn shift_tsc(&mut self, old: u64, new: u64) {
        self.advance(old);
        self.timer.rebase(old, new);
    }

    /// Has the timer expire at `deadline` in place of whatever it was armed for, if it counts in that mode, is not due and may interrupt
    /// then: nothing else follows now. Says whether it was so; else nothing was done.
    #[inline]
    pub fn arm_quietly(&mut self, deadline: u64, now: u64) -> bool {
        self.lvt(Lvt::Timer) & LVT_MASK == 0 && self.timer.arm_quietly(deadline, now)
    }

    /// Lets the timer expire if it is due.
    #[inline]
    pub fn advance(&mut self, now: u64) {
        if self.timer.expire(now) {
            self.raise_local(Lvt::Timer);
        }
    }

    fn decode_mmio(&mut self, offset: u64) -> Option<Register> {
        // Registers are aligned to 16 bytes; what lies between is undefined.
        if offset >= MMIO_BYTES || !offset.is_multiple_of(16) {
            return None;
        }
        let index = u32::try_from(offset / 16).ok()?;
        let register = Register::from_index(index).filter(|register| *register != Register::SelfIpi);
        if register.is_none() {
            self.raise_error(Esr::ILLEGAL_REGISTER);
        }
        register
    }

    fn read_register(&self, register: Register, now: u64) -> u32 {
        match register {
            Register::CurrentCount => self.timer.current_count(now),
            _ => self.page.get(register),
        }
    }

    /// A write whose reserved bits were dealt with as the mode demands.
    fn write_register(&mut self, register: Register, value: u32, now: u64) -> Effect {
        match register {
            Register::TaskPriority => self.set_task_priority(value.to_le_bytes()[0]),
            Register::Eoi => return self.end_interrupt(),
            Register::LogicalDestination => self.page.set(register, value & 0xff00_0000),
            Register::DestinationFormat => self.page.set(register, value | 0x0fff_ffff),
            Register::SpuriousVector => self.write_svr(Svr::from_bits_truncate(value)),
            Register::ErrorStatus => {
                self.page.set(register, self.errors.bits());
                self.errors = Esr::empty();
            }
            Register::IcrLow => {
                self.page.set(register, value & ipi::ICR_WRITABLE);
                let [.., destination] = self.page.get(Register::IcrHigh).to_le_bytes();
                return self.send_ipi(value, destination_from_8_bits(destination));
            }
            Register::IcrHigh => self.page.set(register, value & 0xff00_0000),
            Register::Lvt(lvt) => self.write_lvt(lvt, value),
            Register::InitialCount if self.timer.mode() == timer::Mode::TscDeadline => {}
            Register::InitialCount => {
                self.page.set(register, value);
                self.timer.start(value, now);
            }
            Register::DivideConfiguration => {
                self.page.set(register, value & 0b1011);
                self.timer.set_divide(value, now);
            }
            // Read-only. The APIC ID is among them: software may not rely on changing it (SDM 3A 10.4.6).
            _ => {}
        }
        Effect::None
    }

    fn write_svr(&mut self, svr: Svr) {
        self.page.set(Register::SpuriousVector, svr.bits());
        self.lend();
        if !svr.contains(Svr::SOFTWARE_ENABLE) {
            for lvt in Lvt::ALL {
                self.page.set(Register::Lvt(lvt), self.lvt(lvt) | LVT_MASK);
            }
        }
    }

    fn write_lvt(&mut self, lvt: Lvt, value: u32) {
        let forced = if self.svr().contains(Svr::SOFTWARE_ENABLE) { 0 } else { LVT_MASK };
        self.page.set(Register::Lvt(lvt), value & lvt.writable() | forced);
        if lvt == Lvt::Timer {
            self.timer.set_mode(timer::Mode::from_lvt(value));
            if self.timer.mode() == timer::Mode::TscDeadline {
                self.page.set(Register::InitialCount, 0);
            }
        }
    }

    /// EOI (SDM 3A 10.8.5): ends the highest interrupt in service.
    fn end_interrupt(&mut self) -> Effect {
        let Some(vector) = self.page.highest(VectorSet::InService) else {
            return Effect::None;
        };
        self.page.remove(VectorSet::InService, vector);
        self.update_processor_priority();
        self.ended(vector)
    }

    /// A local source interrupts by its LVT entry. Those modelled deliver a vector only.
    fn raise_local(&mut self, lvt: Lvt) {
        let entry = self.lvt(lvt);
        if entry & LVT_MASK == 0 {
            let [vector, ..] = entry.to_le_bytes();
            self.accept(vector, false);
        }
    }

    fn raise_error(&mut self, error: Esr) {
        self.errors |= error;
        let [vector, ..] = self.lvt(Lvt::Error).to_le_bytes();
        if vector < FIRST_LEGAL_VECTOR && self.lvt(Lvt::Error) & LVT_MASK == 0 {
            // Delivering this would be an error again, without end.
            self.errors |= Esr::RECEIVED_ILLEGAL_VECTOR;
        } else {
            self.raise_local(Lvt::Error);
        }
    }

    fn svr(&self) -> Svr {
        Svr::from_bits_truncate(self.page.get(Register::SpuriousVector))
    }

    fn lvt(&self, lvt: Lvt) -> u32 {
        self.page.get(Register::Lvt(lvt))
    }

    fn task_priority(&self) -> u8 {
        let [tpr, ..] = self.page.get(Register::TaskPriority).to_le_bytes();
        tpr
    }

    fn set_task_priority(&mut self, tpr: u8) {
        self.page.set(Register::TaskPriority, u32::from(tpr));
        self.update_processor_priority();
    }

    fn update_processor_priority(&mut self) {
        let tpr = self.task_priority();
        let in_service = self.page.highest(VectorSet::InService).unwrap_or(0) & 0xf0;
        let ppr = if tpr >> 4 >= in_service >> 4 { tpr } else { in_service };
        self.page.set(Register::ProcessorPriority, u32::from(ppr));
        self.page.note_change();
    }

    fn reset_registers(&mut self) {
        self.page.clear();
        self.timer.reset();
        self.errors = Esr::empty();
        self.page.set(Register::Version, VERSION);
        self.page.set(Register::DestinationFormat, u32::MAX);
        self.page.set(Register::SpuriousVector, 0xff);
        for lvt in Lvt::ALL {
            self.page.set(Register::Lvt(lvt), LVT_MASK);
        }
        self.set_identity();
        self.lend();
    }

    /// Sets ID and logical destination as the mode shows them.
    fn set_identity(&mut self) {
        let id = self.apic_id;
        let (shown, logical) = match self.mode() {
            Mode::X2Apic => (id, (id >> 4) << 16 | 1 << (id & 0xf)),
            Mode::XApic | Mode::Disabled => (id << 24, 0),
        };
        self.page.set(Register::Id, shown);
        self.page.set(Register::LogicalDestination, logical);
    }
}
