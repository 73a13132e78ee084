//! The local APIC's MSRs: IA32_APIC_BASE, IA32_TSC_DEADLINE and the registers in x2APIC mode (SDM 3A 10.12).

use super::{
    Effect, Lapic, MSR_PV_EOI, Mode, NOWHERE,
    ipi::ICR_WRITABLE,
    register::{Register, Svr},
};

/// IA32_APIC_BASE.
pub const IA32_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// First of the 256 MSRs of x2APIC mode.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last of them.
pub const X2APIC_LAST: u32 = 0x8ff;

/// IA32_APIC_BASE: the CPU is the bootstrap processor.
pub(super) const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub(super) const BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: the local APIC is enabled.
pub(super) const BASE_ENABLE: u64 = 1 << 11;
/// IA32_APIC_BASE: page of the registers, up to the architecture's 52 address bits.
pub(super) const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// ICR bit 12 is no status in x2APIC mode; processors differ on whether it is reserved, so it is ignored.
const ICR_IGNORED: u32 = 1 << 12;

impl Lapic {
    /// The MSR belongs to the local APIC.
    pub fn owns_msr(index: u32) -> bool {
        matches!(index, IA32_APIC_BASE | IA32_TSC_DEADLINE | MSR_PV_EOI | X2APIC_FIRST..=X2APIC_LAST)
    }

    /// RDMSR; `None` means #GP.
    pub fn msr_read(&self, index: u32, now: u64) -> Option<u64> {
        match index {
            IA32_APIC_BASE => Some(self.base),
            IA32_TSC_DEADLINE => Some(self.timer.deadline(now)),
            MSR_PV_EOI => Some(self.pv_eoi()),
            X2APIC_FIRST..=X2APIC_LAST if self.mode() == Mode::X2Apic => self.read_x2apic(index, now),
            _ => None,
        }
    }

    /// WRMSR; `None` means #GP.
    pub fn msr_write(&mut self, index: u32, value: u64, now: u64) -> Option<Effect> {
        match index {
            IA32_APIC_BASE => self.write_base(value).then_some(Effect::None),
            IA32_TSC_DEADLINE => {
                self.advance(now);
                self.timer.set_deadline(value);
                self.advance(now);
                Some(Effect::None)
            }
            MSR_PV_EOI => self.write_pv_eoi(value).then_some(Effect::None),
            X2APIC_FIRST..=X2APIC_LAST if self.mode() == Mode::X2Apic => {
                self.advance(now);
                self.write_x2apic(index, value, now)
            }
            _ => None,
        }
    }

    fn read_x2apic(&self, index: u32, now: u64) -> Option<u64> {
        match Register::from_index(index - X2APIC_FIRST)? {
            Register::ArbitrationPriority
            | Register::Eoi
            | Register::RemoteRead
            | Register::DestinationFormat
            | Register::IcrHigh
            | Register::SelfIpi => None,
            Register::IcrLow => {
                let high = u64::from(self.page.get(Register::IcrHigh));
                Some(high << 32 | u64::from(self.page.get(Register::IcrLow)))
            }
            register => Some(u64::from(self.read_register(register, now))),
        }
    }

    fn write_x2apic(&mut self, index: u32, value: u64, now: u64) -> Option<Effect> {
        let register = Register::from_index(index - X2APIC_FIRST)?;
        // Both halves by shifts that leave 32 bits.
        let (high, low) = ((value >> 32) as u32, value as u32);
        if register == Register::IcrLow {
            if low & !(ICR_WRITABLE | ICR_IGNORED) != 0 {
                return None;
            }
            self.page.set(Register::IcrHigh, high);
            self.page.set(Register::IcrLow, low & ICR_WRITABLE);
            return Some(self.send_ipi(low, high));
        }
        let reserved = match register {
            Register::TaskPriority | Register::SelfIpi => !0xff,
            Register::SpuriousVector => !Svr::all().bits(),
            Register::Eoi | Register::ErrorStatus => !0,
            Register::Lvt(lvt) => lvt.reserved(),
            Register::InitialCount => 0,
            Register::DivideConfiguration => !0b1011,
            // Read-only, or not there in x2APIC mode.
            _ => return None,
        };
        if high != 0 || low & reserved != 0 {
            return None;
        }
        if register == Register::SelfIpi {
            let [vector, ..] = low.to_le_bytes();
            self.accept(vector, false);
            return Some(Effect::None);
        }
        Some(self.write_register(register, low, now))
    }

    /// Writes IA32_APIC_BASE; false for what raises #GP (SDM 3A 10.12.5.1).
    fn write_base(&mut self, value: u64) -> bool {
        if value & !(BASE_BSP | BASE_EXTD | BASE_ENABLE | BASE_ADDRESS) != 0 {
            return false;
        }
        let Some(next) = Mode::from_base(value) else {
            return false;
        };
        let previous = self.mode();
        if matches!((previous, next), (Mode::Disabled, Mode::X2Apic) | (Mode::X2Apic, Mode::XApic)) {
            return false;
        }
        // Which CPU is the bootstrap processor is not the guest's to say.
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        self.window = if next == Mode::XApic { value & BASE_ADDRESS } else { NOWHERE };
        match (previous, next) {
            (Mode::XApic | Mode::X2Apic, Mode::Disabled) => self.reset_registers(),
            (Mode::XApic, Mode::X2Apic) => {
                self.page.set(Register::IcrHigh, 0);
                self.set_identity();
            }
            // Registers were reset when it was disabled, and have the layout of xAPIC mode now.
            (Mode::Disabled, Mode::XApic) => self.set_identity(),
            _ => {}
        }
        self.lend();
        true
    }
}
