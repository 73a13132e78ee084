//! The local APIC, in xAPIC and x2APIC mode (SDM 3A 11).

use crate::{clock, cpu, irq, mmio, msr};

/// Where the registers are in xAPIC mode out of reset.
pub const BASE: u64 = 0xfee0_0000;

/// Register offsets in xAPIC mode; divided by 16 they count from MSR 800H in x2APIC mode.
pub mod reg {
    /// Local APIC ID.
    pub const ID: u32 = 0x20;
    /// Version.
    pub const VERSION: u32 = 0x30;
    /// Task priority.
    pub const TPR: u32 = 0x80;
    /// Processor priority.
    pub const PPR: u32 = 0xa0;
    /// End of interrupt.
    pub const EOI: u32 = 0xb0;
    /// Logical destination.
    pub const LDR: u32 = 0xd0;
    /// Spurious interrupt vector; bit 8 enables the APIC.
    pub const SVR: u32 = 0xf0;
    /// In service, 8 registers.
    pub const ISR: u32 = 0x100;
    /// Trigger mode, 8 registers.
    pub const TMR: u32 = 0x180;
    /// Requested, 8 registers.
    pub const IRR: u32 = 0x200;
    /// Error status.
    pub const ESR: u32 = 0x280;
    /// Interrupt command; 64 bits in x2APIC mode.
    pub const ICR: u32 = 0x300;
    /// Upper half of the interrupt command in xAPIC mode.
    pub const ICR_HIGH: u32 = 0x310;
    /// Timer entry of the local vector table.
    pub const LVT_TIMER: u32 = 0x320;
    /// LINT0 entry.
    pub const LVT_LINT0: u32 = 0x350;
    /// LINT1 entry.
    pub const LVT_LINT1: u32 = 0x360;
    /// Error entry.
    pub const LVT_ERROR: u32 = 0x370;
    /// Timer: initial count.
    pub const INITIAL_COUNT: u32 = 0x380;
    /// Timer: current count.
    pub const CURRENT_COUNT: u32 = 0x390;
    /// Timer: divide configuration.
    pub const DIVIDE: u32 = 0x3e0;
    /// Self IPI, in x2APIC mode only.
    pub const SELF_IPI: u32 = 0x3f0;
}

/// Local vector table: masked.
pub const LVT_MASKED: u32 = 1 << 16;
/// Timer entry: periodic.
pub const LVT_PERIODIC: u32 = 1 << 17;
/// Timer entry: the TSC-deadline mode.
pub const LVT_TSC_DEADLINE: u32 = 2 << 17;
/// Divide configuration for a divisor of 1.
pub const DIVIDE_BY_1: u32 = 0b1011;
/// ICR and LVT: delivery mode NMI.
pub const DELIVER_NMI: u32 = 4 << 8;
/// ICR: destination shorthand "self".
pub const TO_SELF: u32 = 1 << 18;
/// ICR: destination shorthand "all including self".
pub const TO_ALL: u32 = 2 << 18;
/// ICR: logical destination mode.
pub const LOGICAL: u32 = 1 << 11;
/// ICR: level assert, as every delivery mode but INIT de-assert has it.
pub const ASSERT: u32 = 1 << 14;

const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;

/// Which register interface is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Memory-mapped.
    Xapic,
    /// Model-specific registers.
    X2apic,
}

/// The local APIC in one of its modes.
#[derive(Clone, Copy, Debug)]
pub struct Lapic {
    mode: Mode,
}

/// Whether CPUID offers x2APIC mode.
pub fn has_x2apic() -> bool {
    cpu::cpuid(1, 0).ecx >> 21 & 1 != 0
}

/// Whether CPUID offers the timer's TSC-deadline mode.
pub fn has_tsc_deadline() -> bool {
    cpu::cpuid(1, 0).ecx >> 24 & 1 != 0
}

impl Lapic {
    /// Brings the APIC into `mode` from any other, by way of the disabled state that x2APIC mode must be left by,
    /// and enables it with its timer masked and spurious vector FFH.
    pub fn enable(mode: Mode) -> Self {
        let base = cpu::rdmsr(msr::APIC_BASE);
        let current = if base & BASE_X2APIC != 0 { Mode::X2apic } else { Mode::Xapic };
        let lapic = Lapic { mode };
        // SAFETY: interrupts that the change loses are those the caller has not asked for yet.
        unsafe {
            if current != mode || base & BASE_ENABLE == 0 {
                if current == Mode::X2apic {
                    cpu::wrmsr(msr::APIC_BASE, base & !(BASE_X2APIC | BASE_ENABLE));
                }
                let base = base & !BASE_X2APIC | BASE_ENABLE;
                cpu::wrmsr(msr::APIC_BASE, base);
                if mode == Mode::X2apic {
                    cpu::wrmsr(msr::APIC_BASE, base | BASE_X2APIC);
                }
            }
        }
        lapic.write(reg::SVR, 0x1ff);
        lapic.write(reg::LVT_TIMER, LVT_MASKED);
        lapic.write(reg::TPR, 0);
        lapic
    }

    /// The APIC in the best mode there is.
    pub fn enable_best() -> Self {
        Self::enable(if has_x2apic() { Mode::X2apic } else { Mode::Xapic })
    }

    /// The APIC in the mode it is in: for handlers.
    pub fn current() -> Self {
        let x2apic = cpu::rdmsr(msr::APIC_BASE) & BASE_X2APIC != 0;
        Lapic { mode: if x2apic { Mode::X2apic } else { Mode::Xapic } }
    }

    /// The mode it is in.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Reads a register.
    pub fn read(&self, register: u32) -> u32 {
        match self.mode {
            Mode::Xapic => mmio::read32(BASE + u64::from(register)),
            Mode::X2apic => cpu::rdmsr(msr::X2APIC + register / 16) as u32,
        }
    }

    /// Writes a register.
    pub fn write(&self, register: u32, value: u32) {
        match self.mode {
            Mode::Xapic => mmio::write32(BASE + u64::from(register), value),
            // SAFETY: what it leads to are interrupts, for which the runtime has handlers.
            Mode::X2apic => unsafe { cpu::wrmsr(msr::X2APIC + register / 16, u64::from(value)) },
        }
    }

    /// Sends an inter-processor interrupt; `destination` counts only without a shorthand.
    pub fn send(&self, destination: u32, command: u32) {
        match self.mode {
            Mode::Xapic => {
                self.write(reg::ICR_HIGH, destination << 24);
                self.write(reg::ICR, command | ASSERT);
            }
            Mode::X2apic => {
                let value = u64::from(destination) << 32 | u64::from(command | ASSERT);
                // SAFETY: as for `write`.
                unsafe { cpu::wrmsr(msr::X2APIC + reg::ICR / 16, value) };
            }
        }
    }

    /// Sends this CPU an interrupt.
    pub fn send_self(&self, vector: u8) {
        self.send(0, TO_SELF | u32::from(vector));
    }

    /// Ends the interrupt in service of highest priority.
    pub fn eoi(&self) {
        self.write(reg::EOI, 0);
    }

    /// This CPU's APIC ID.
    pub fn id(&self) -> u32 {
        match self.mode {
            Mode::Xapic => self.read(reg::ID) >> 24,
            Mode::X2apic => self.read(reg::ID),
        }
    }

    /// Whether `vector` is set in the 256-bit register that begins at `first`: ISR, TMR or IRR.
    pub fn vector_bit(&self, first: u32, vector: u8) -> bool {
        let word = self.read(first + u32::from(vector / 32) * 16);
        word >> (vector % 32) & 1 != 0
    }

    /// Starts the timer, which counts `ticks` down at its undivided rate.
    pub fn start_timer(&self, vector: u8, flags: u32, ticks: u32) {
        self.write(reg::DIVIDE, DIVIDE_BY_1);
        self.write(reg::LVT_TIMER, flags | u32::from(vector));
        self.write(reg::INITIAL_COUNT, ticks);
    }

    /// How far the timer counts in a millisecond, measured against the TSC.
    pub fn ticks_per_ms(&self) -> u32 {
        self.start_timer(0xff, LVT_MASKED, u32::MAX);
        let first = self.read(reg::CURRENT_COUNT);
        let start = cpu::rdtsc();
        clock::wait_until(2, || false);
        let ticks = u64::from(first - self.read(reg::CURRENT_COUNT));
        let passed = cpu::rdtsc() - start;
        self.stop_timer();
        (ticks * (clock::tsc_hz() / 1000) / passed.max(1)) as u32
    }

    /// Waits until `done`, for `ms` milliseconds of TSC time at most, and looks about once in a millisecond. In between the CPU is
    /// halted, which costs an emulator less than to wait by [`clock::wait_until`]. `vector` is counted anew, `ticks` are those of
    /// the timer in a millisecond.
    pub fn doze_until(&self, vector: u8, ticks: u32, ms: u64, mut done: impl FnMut() -> bool) -> bool {
        let end = cpu::rdtsc() + clock::tsc_hz() / 1000 * ms;
        irq::count(vector);
        while !done() {
            if cpu::rdtsc() >= end {
                return false;
            }
            irq::reset(vector);
            self.start_timer(vector, 0, ticks);
            while irq::seen(vector) == 0 {
                cpu::sti_hlt_cli();
            }
        }
        true
    }

    /// Stops the timer.
    pub fn stop_timer(&self) {
        self.write(reg::LVT_TIMER, LVT_MASKED);
        self.write(reg::INITIAL_COUNT, 0);
    }
}
