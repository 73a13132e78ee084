//! KVM's paravirtual clock and steal time (Linux: Documentation/virt/kvm/x86/msr.rst).
//!
//! Data path: the guest registers a structure in its memory by an MSR; we write there how to turn its TSC
//! into nanoseconds, and it never asks again. The rate is constant and the TSCs of a VM's vCPUs agree, so
//! every vCPU gets the same numbers, and time is monotonic across vCPUs.
//!
//! A structure carries a version that is odd while it is being written. Structures that lie outside of memory
//! are not written; that is the guest's loss.

use crate::{
    guest_mem::{GuestMemory, OutOfRange},
    tick::convert,
};

/// Time of day at which the VM's clock was 0.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
/// Where this vCPU's clock is.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// Old number of [`MSR_WALL_CLOCK`].
pub const MSR_WALL_CLOCK_OLD: u32 = 0x11;
/// Old number of [`MSR_SYSTEM_TIME`].
pub const MSR_SYSTEM_TIME_OLD: u32 = 0x12;
/// Where this vCPU's steal time is.
pub const MSR_STEAL_TIME: u32 = 0x4b56_4d03;

const NANOSECONDS: u64 = 1_000_000_000;

/// System time MSR and steal time MSR, bit 0: write the structure.
const ENABLE: u64 = 1;

/// Clock flag: the clock is monotonic across vCPUs.
const FLAG_STABLE: u8 = 1 << 0;
/// Clock flag: the guest was paused. The guest clears it when it has seen it.
const FLAG_PAUSED: u8 = 1 << 1;

/// Bytes of the clock structure: version, padding, TSC, system time, multiplier, shift, flags, padding.
const CLOCK_BYTES: usize = 32;
const CLOCK_FLAGS_AT: u64 = 29;
/// Steal time structure: steal, version, flags, preempted.
const STEAL_VERSION_AT: u64 = 8;
const STEAL_PREEMPTED_AT: u64 = 16;

/// Factor from TSC ticks to nanoseconds: `((ticks << shift) * mul) >> 32`, a negative shift going right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scale {
    /// 32-bit fraction.
    pub mul: u32,
    /// Power of two that is applied first.
    pub shift: i8,
}

impl Scale {
    /// The most exact factor for a TSC of `tsc_hz`: `mul` has its top bit set.
    pub fn from_hz(tsc_hz: u64) -> Self {
        // mul / 2^32 * 2^shift = 10^9 / tsc_hz, with mul / 2^32 in [1/2, 1).
        let tsc_hz = u128::from(tsc_hz.max(1));
        let factor = (u128::from(NANOSECONDS) << 64) / tsc_hz;
        // `factor` has 64 fraction bits; it is never 0, not even for 2^64 Hz.
        let zeros = factor.leading_zeros();
        // The shift leaves 32 bits, and 64 minus at most 128 fits.
        Self { mul: (factor << zeros >> 96) as u32, shift: (64 - zeros as i32) as i8 }
    }

    /// Nanoseconds in `ticks`, as the guest computes them; wraps after 2^64 ticks or nanoseconds.
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let distance = u32::from(self.shift.unsigned_abs());
        let shifted = if self.shift < 0 {
            ticks.checked_shr(distance).unwrap_or(0)
        } else {
            ticks.checked_shl(distance).unwrap_or(0)
        };
        ((u128::from(shifted) * u128::from(self.mul)) >> 32) as u64
    }
}

/// The clock of a VM.
#[derive(Clone, Debug)]
pub struct PvClock {
    tsc_hz: u64,
    scale: Scale,
    /// Guest TSC at which the clock was 0.
    zero_tsc: u64,
    /// Unix time then.
    zero_unix_ns: u64,
    is_stable: bool,
}

impl PvClock {
    /// A clock that was 0 at guest TSC `zero_tsc`, which was at `zero_unix_ns` of Unix time.
    ///
    /// `is_stable` promises that the vCPUs' TSCs agree; the guest heeds it if CPUID 40000001H:EAX bit 24 says
    /// so too.
    pub fn new(tsc_hz: u64, zero_tsc: u64, zero_unix_ns: u64, is_stable: bool) -> Self {
        Self { tsc_hz, scale: Scale::from_hz(tsc_hz), zero_tsc, zero_unix_ns, is_stable }
    }

    /// Nanoseconds on the clock at guest TSC `now`, exactly; the guest's own result may differ by the scale's
    /// rounding.
    pub fn nanoseconds(&self, now: u64) -> u64 {
        // Wrapping: the guest may have set its TSC to less than it was at 0.
        convert(now.wrapping_sub(self.zero_tsc), self.tsc_hz, NANOSECONDS)
    }

    /// Nanoseconds in which the TSC counts `ticks`, as the guest computes them.
    pub fn duration_ns(&self, ticks: u64) -> u64 {
        self.scale.nanoseconds(ticks)
    }

    /// Unix time in nanoseconds at guest TSC `now`.
    pub fn unix_nanoseconds(&self, now: u64) -> u64 {
        self.zero_unix_ns.saturating_add(self.nanoseconds(now))
    }

    fn write_wall_clock(&self, memory: &mut impl GuestMemory, gpa: u64) -> Result<(), OutOfRange> {
        let version = memory.read_u32(gpa)?.wrapping_add(1) | 1;
        // The format has 32 bits for seconds.
        let seconds = (self.zero_unix_ns / NANOSECONDS) as u32;
        let nanoseconds = (self.zero_unix_ns % NANOSECONDS) as u32;
        let mut time = [0; 8];
        time[..4].copy_from_slice(&seconds.to_le_bytes());
        time[4..].copy_from_slice(&nanoseconds.to_le_bytes());
        write_versioned(memory, gpa, version, gpa.wrapping_add(4), &time)
    }

    fn write_clock(
        &self,
        memory: &mut impl GuestMemory,
        gpa: u64,
        extra_flags: u8,
    ) -> Result<(), OutOfRange> {
        let version = memory.read_u32(gpa)?.wrapping_add(1) | 1;
        let stable = if self.is_stable { FLAG_STABLE } else { 0 };
        let mut body = [0; CLOCK_BYTES - 4];
        body[4..12].copy_from_slice(&self.zero_tsc.to_le_bytes());
        // System time is 0 at `zero_tsc`.
        body[20..24].copy_from_slice(&self.scale.mul.to_le_bytes());
        body[24..25].copy_from_slice(&self.scale.shift.to_le_bytes());
        body[25] = stable | extra_flags;
        write_versioned(memory, gpa, version, gpa.wrapping_add(4), &body)
    }
}

/// Writes `body` at `body_gpa` between an odd and an even version at `version_gpa`.
fn write_versioned(
    memory: &mut impl GuestMemory,
    version_gpa: u64,
    odd_version: u32,
    body_gpa: u64,
    body: &[u8],
) -> Result<(), OutOfRange> {
    memory.write_u32(version_gpa, odd_version)?;
    memory.write(body_gpa, body)?;
    memory.write_u32(version_gpa, odd_version.wrapping_add(1))
}

/// One vCPU's registrations.
#[derive(Clone, Default, Debug)]
pub struct VcpuClock {
    /// The MSRs as last written.
    wall_clock: u64,
    system_time: u64,
    steal_time: u64,
}

impl VcpuClock {
    /// No structure is registered, as after reset.
    pub fn new() -> Self {
        Self::default()
    }

    /// The MSR belongs to this interface.
    pub fn owns_msr(index: u32) -> bool {
        matches!(
            index,
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_OLD | MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_OLD | MSR_STEAL_TIME
        )
    }

    /// RDMSR; `None` means #GP.
    pub fn msr_read(&self, index: u32) -> Option<u64> {
        match index {
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_OLD => Some(self.wall_clock),
            MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_OLD => Some(self.system_time),
            MSR_STEAL_TIME => Some(self.steal_time),
            _ => None,
        }
    }

    /// WRMSR; `None` means #GP, for misaligned addresses too.
    pub fn msr_write(
        &mut self,
        index: u32,
        value: u64,
        clock: &PvClock,
        memory: &mut impl GuestMemory,
    ) -> Option<()> {
        let (reserved, register) = match index {
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_OLD => (0b11, &mut self.wall_clock),
            MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_OLD => (0b10, &mut self.system_time),
            MSR_STEAL_TIME => (0b11_1110, &mut self.steal_time),
            _ => return None,
        };
        if value & reserved != 0 {
            return None;
        }
        *register = value;
        // Outside of memory nothing is written, and that is no fault.
        match index {
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_OLD => _ = clock.write_wall_clock(memory, value),
            MSR_STEAL_TIME => _ = self.start_steal_time(memory),
            _ => {
                if let Some(gpa) = self.system_time_gpa() {
                    _ = clock.write_clock(memory, gpa, 0);
                }
            }
        }
        Some(())
    }

    /// Tells the guest that it did not run for a while, so that its watchdogs forgive it.
    pub fn mark_paused(&self, clock: &PvClock, memory: &mut impl GuestMemory) {
        if let Some(gpa) = self.system_time_gpa() {
            _ = clock.write_clock(memory, gpa, FLAG_PAUSED);
        }
    }

    /// Writes the clock again after `clock` was replaced; a pause that the guest has not seen yet stays
    /// visible.
    pub fn refresh(&self, clock: &PvClock, memory: &mut impl GuestMemory) {
        if let Some(gpa) = self.system_time_gpa()
            && let Some(flags_gpa) = gpa.checked_add(CLOCK_FLAGS_AT)
            && let Ok(flags) = memory.read_u8(flags_gpa)
        {
            _ = clock.write_clock(memory, gpa, flags & FLAG_PAUSED);
        }
    }

    /// Whether the guest wants to be told of steal time.
    pub fn has_steal_time(&self) -> bool {
        self.steal_time_gpa().is_some()
    }

    /// Adds `stolen_ns`, during which the vCPU wanted to run and did not, and marks it as running.
    pub fn add_steal_time(&self, stolen_ns: u64, memory: &mut impl GuestMemory) {
        if let Some(gpa) = self.steal_time_gpa() {
            _ = add_steal_time(memory, gpa, stolen_ns);
        }
    }

    /// Says whether the vCPU is kept from running; the guest's spin locks then wait less eagerly for it.
    pub fn set_preempted(&self, is_preempted: bool, memory: &mut impl GuestMemory) {
        if let Some(gpa) = self.steal_time_gpa()
            && let Some(preempted_gpa) = gpa.checked_add(STEAL_PREEMPTED_AT)
        {
            _ = memory.write_u8(preempted_gpa, is_preempted.into());
        }
    }

    fn start_steal_time(&self, memory: &mut impl GuestMemory) -> Result<(), OutOfRange> {
        match self.steal_time_gpa() {
            // The guest zeroed the structure; adding nothing gives it a valid version.
            Some(gpa) => add_steal_time(memory, gpa, 0),
            None => Ok(()),
        }
    }

    fn system_time_gpa(&self) -> Option<u64> {
        (self.system_time & ENABLE != 0).then_some(self.system_time & !ENABLE)
    }

    fn steal_time_gpa(&self) -> Option<u64> {
        (self.steal_time & ENABLE != 0).then_some(self.steal_time & !ENABLE)
    }
}

fn add_steal_time(memory: &mut impl GuestMemory, gpa: u64, stolen_ns: u64) -> Result<(), OutOfRange> {
    // `gpa` is a multiple of 64, so no sum below overflows.
    let version_gpa = gpa + STEAL_VERSION_AT;
    let version = memory.read_u32(version_gpa)?.wrapping_add(1) | 1;
    let steal = memory.read_u64(gpa)?.wrapping_add(stolen_ns);
    memory.write_u8(gpa + STEAL_PREEMPTED_AT, 0)?;
    write_versioned(memory, version_gpa, version, gpa, &steal.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_mem::VecMemory;
    use proptest::prelude::*;

    /// The guest's side of the protocol: nanoseconds and flags, or `None` while a write is under way.
    fn guest_reads_clock(memory: &VecMemory, gpa: u64, tsc: u64) -> Option<(u64, u8)> {
        let version = memory.read_u32(gpa).unwrap();
        let tsc_timestamp = memory.read_u64(gpa + 8).unwrap();
        let system_time = memory.read_u64(gpa + 16).unwrap();
        let mul = memory.read_u32(gpa + 24).unwrap();
        let shift = memory.read_u8(gpa + 28).unwrap() as i8;
        let flags = memory.read_u8(gpa + 29).unwrap();
        let mut delta = tsc - tsc_timestamp;
        if shift < 0 {
            delta >>= -shift
        } else {
            delta <<= shift
        }
        let time = system_time + ((u128::from(delta) * u128::from(mul)) >> 32) as u64;
        (version.is_multiple_of(2) && version != 0).then_some((time, flags))
    }

    #[test]
    fn the_guest_reads_the_time_that_passed() {
        for tsc_hz in [1_000_000, 25_000_000, 999_999_999, 1_000_000_000, 2_394_453_000, 5_000_000_000] {
            let clock = PvClock::new(tsc_hz, 1000, 0, true);
            let mut memory = VecMemory::new(4096);
            let mut vcpu = VcpuClock::new();
            assert_eq!(vcpu.msr_write(MSR_SYSTEM_TIME, 0x100 | 1, &clock, &mut memory), Some(()));
            let (hour, flags) = guest_reads_clock(&memory, 0x100, 1000 + 3600 * tsc_hz).unwrap();
            let exact = 3600 * NANOSECONDS;
            // The multiplier has 32 bits: at most 2^-31 off, 2 us in an hour.
            assert!(hour.abs_diff(exact) < 2000, "{tsc_hz}: {hour}");
            assert_eq!(flags, 1);
            assert_eq!(vcpu.msr_read(MSR_SYSTEM_TIME_OLD), Some(0x101));
        }
    }

    #[test]
    fn the_wall_clock_is_the_time_at_clock_zero() {
        let clock = PvClock::new(1_000_000_000, 0, 1_700_000_000_123_456_789, true);
        let mut memory = VecMemory::new(4096);
        let mut vcpu = VcpuClock::new();
        vcpu.msr_write(MSR_WALL_CLOCK, 0x40, &clock, &mut memory).unwrap();
        assert_eq!(memory.read_u32(0x40), Ok(2));
        assert_eq!(memory.read_u32(0x44), Ok(1_700_000_000));
        assert_eq!(memory.read_u32(0x48), Ok(123_456_789));
        assert_eq!(clock.unix_nanoseconds(1), 1_700_000_000_123_456_790);
        let tsc_set_back = PvClock::new(1_000_000_000, 0u64.wrapping_sub(500), 1000, true);
        assert_eq!(tsc_set_back.unix_nanoseconds(7), 1507);
    }

    #[test]
    fn a_pause_stays_visible_until_the_guest_clears_it() {
        let clock = PvClock::new(1_000_000_000, 0, 0, false);
        let mut memory = VecMemory::new(4096);
        let mut vcpu = VcpuClock::new();
        vcpu.msr_write(MSR_SYSTEM_TIME, 1, &clock, &mut memory).unwrap();
        vcpu.mark_paused(&clock, &mut memory);
        vcpu.refresh(&clock, &mut memory);
        assert_eq!(guest_reads_clock(&memory, 0, 5), Some((5, 2)));
        memory.write_u8(29, 0).unwrap();
        vcpu.refresh(&clock, &mut memory);
        assert_eq!(guest_reads_clock(&memory, 0, 5), Some((5, 0)));
        assert_eq!(memory.read_u32(0), Ok(8), "each of four writes moves the version by two");
    }

    #[test]
    fn a_guest_that_unregisters_is_left_alone() {
        let clock = PvClock::new(1_000_000_000, 0, 0, true);
        let mut memory = VecMemory::new(4096);
        let mut vcpu = VcpuClock::new();
        for msr in [MSR_SYSTEM_TIME, MSR_STEAL_TIME] {
            vcpu.msr_write(msr, 0x40 | 1, &clock, &mut memory).unwrap();
            vcpu.msr_write(msr, 0, &clock, &mut memory).unwrap();
        }
        memory.write(0x40, &[0; 64]).unwrap();
        vcpu.mark_paused(&clock, &mut memory);
        vcpu.add_steal_time(5, &mut memory);
        vcpu.set_preempted(true, &mut memory);
        let mut area = [1; 64];
        memory.read(0x40, &mut area).unwrap();
        assert_eq!(area, [0; 64]);
    }

    #[test]
    fn steal_time_adds_up_and_preemption_shows() {
        let clock = PvClock::new(1_000_000_000, 0, 0, true);
        let mut memory = VecMemory::new(4096);
        let mut vcpu = VcpuClock::new();
        vcpu.msr_write(MSR_STEAL_TIME, 0x80 | 1, &clock, &mut memory).unwrap();
        vcpu.set_preempted(true, &mut memory);
        assert_eq!(memory.read_u8(0x90), Ok(1));
        vcpu.add_steal_time(700, &mut memory);
        vcpu.add_steal_time(300, &mut memory);
        assert_eq!(memory.read_u64(0x80), Ok(1000));
        assert_eq!(memory.read_u32(0x88).unwrap() % 2, 0);
        assert_eq!(memory.read_u8(0x90), Ok(0));
    }

    #[test]
    fn misaligned_structures_fault_and_missing_memory_does_not() {
        let clock = PvClock::new(1_000_000_000, 0, 0, true);
        let mut memory = VecMemory::new(64);
        let mut vcpu = VcpuClock::new();
        assert_eq!(vcpu.msr_write(MSR_SYSTEM_TIME, 0b11, &clock, &mut memory), None);
        assert_eq!(vcpu.msr_write(MSR_WALL_CLOCK, 1, &clock, &mut memory), None);
        assert_eq!(vcpu.msr_write(MSR_STEAL_TIME, 0x20 | 1, &clock, &mut memory), None);
        assert_eq!(vcpu.msr_write(0x4b56_4d02, 0, &clock, &mut memory), None);
        assert_eq!(vcpu.msr_write(MSR_SYSTEM_TIME, 0x10_0001, &clock, &mut memory), Some(()));
    }

    proptest! {
        #[test]
        fn the_scale_is_as_exact_as_its_width_allows(tsc_hz in 1u64..1 << 40, ticks in 0u64..1 << 45) {
            let scale = Scale::from_hz(tsc_hz);
            prop_assert!(scale.mul >= 1 << 31);
            let exact = u128::from(ticks) * u128::from(NANOSECONDS) / u128::from(tsc_hz);
            prop_assume!(exact < 1 << 62);
            let (got, exact) = (scale.nanoseconds(ticks), exact as u64);
            prop_assert!(got <= exact + 1);
            // One part of the multiplier, and the ticks that a right shift drops.
            prop_assert!(exact - got.min(exact) <= (exact >> 31) + 2);
        }

        #[test]
        fn any_msr_write_is_survived(
            writes in prop::collection::vec((0usize..6, any::<u64>()), 0..50),
            tsc_hz: u64, zero: u64, now: u64,
        ) {
            let clock = PvClock::new(tsc_hz, zero, zero, true);
            let mut memory = VecMemory::new(256);
            let mut vcpu = VcpuClock::new();
            let indices =
                [MSR_WALL_CLOCK, MSR_WALL_CLOCK_OLD, MSR_SYSTEM_TIME, MSR_SYSTEM_TIME_OLD, MSR_STEAL_TIME, 0];
            for (msr, value) in writes {
                for value in [value, value & 0xff] {
                    let did_take = vcpu.msr_write(indices[msr], value, &clock, &mut memory).is_some();
                    prop_assert!(!did_take || vcpu.msr_read(indices[msr]) == Some(value));
                }
                vcpu.mark_paused(&clock, &mut memory);
                vcpu.refresh(&clock, &mut memory);
                vcpu.add_steal_time(value, &mut memory);
                vcpu.set_preempted(true, &mut memory);
            }
            let _ = clock.unix_nanoseconds(now);
        }
    }
}
