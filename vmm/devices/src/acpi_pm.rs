//! Power management registers of hardware-reduced ACPI (ACPI 6.5, 4.8.3.6, 4.8.3.7), and the chipset's reset
//! control.
//!
//! | Port | Register |
//! |---|---|
//! | 600H | sleep control, sleep status and reset register in one byte, as the FADT says |
//! | 608H-60BH | power management timer, 32 bits at 3.579545 MHz |
//! | CF9H | reset control of Intel's chipsets (ICH9 data sheet 13.7.5) |

use crate::{Request, tick::convert};

/// Sleep control, sleep status and reset.
pub const SLEEP_PORT: u16 = 0x600;
/// Value that resets when written to [`SLEEP_PORT`]; for the FADT.
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of the soft-off state; for the \_S5_ package.
pub const S5_SLEEP_TYPE: u8 = 5;
/// First of the four ports of the power management timer.
pub const PM_TIMER_PORT: u16 = 0x608;
/// Ports of the power management timer.
pub const PM_TIMER_PORTS: u16 = 4;
/// Reset control.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;

/// Rate of the power management timer.
pub const PM_TIMER_HZ: u64 = 3_579_545;

/// Sleep control: SLP_EN, enter the state in SLP_TYP (bits 4:2).
const SLEEP_ENABLE: u8 = 1 << 5;
/// Reset control: RST_CPU, resets when it rises.
const RESET_CPU: u8 = 1 << 2;
/// Reset control: SYS_RST and FULL_RST, which only say how.
const RESET_KIND: u8 = 1 << 1 | 1 << 3;

/// The power management registers.
#[derive(Clone)]
pub struct AcpiPm {
    tsc_hz: u64,
    reset_control: u8,
}

impl AcpiPm {
    /// Registers whose timer is 0 at TSC 0.
    pub fn new(tsc_hz: u64) -> Self {
        Self { tsc_hz, reset_control: 0 }
    }

    /// Reads a byte; ports that are none of these float. Bytes read at one time belong to one timer value.
    pub fn read(&self, port: u16, now: u64) -> u8 {
        match port {
            // WAK_STS: the machine never slept.
            SLEEP_PORT => 0,
            RESET_CONTROL_PORT => self.reset_control,
            _ => {
                let bytes = self.pm_timer(now).to_le_bytes();
                let index = port.checked_sub(PM_TIMER_PORT).map(usize::from);
                index.and_then(|index| bytes.get(index)).copied().unwrap_or(0xff)
            }
        }
    }

    /// Writes a byte.
    pub fn write(&mut self, port: u16, value: u8) -> Option<Request> {
        match port {
            SLEEP_PORT if value == RESET_VALUE => Some(Request::Reset),
            SLEEP_PORT if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == S5_SLEEP_TYPE => {
                Some(Request::PowerOff)
            }
            RESET_CONTROL_PORT => {
                let does_rise = value & !self.reset_control & RESET_CPU != 0;
                self.reset_control = value & (RESET_KIND | RESET_CPU);
                does_rise.then_some(Request::Reset)
            }
            _ => None,
        }
    }

    /// The power management timer; wraps every 20 minutes.
    pub fn pm_timer(&self, now: u64) -> u32 {
        // The register is the lower half.
        convert(now, self.tsc_hz, PM_TIMER_HZ) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn soft_off_and_reset_are_told_apart() {
        let mut pm = AcpiPm::new(1_000_000_000);
        assert_eq!(pm.write(SLEEP_PORT, 0x34), Some(Request::PowerOff));
        assert_eq!(pm.write(SLEEP_PORT, 1), Some(Request::Reset));
        assert_eq!(pm.write(SLEEP_PORT, 5 << 2), None, "not enabled");
        assert_eq!(pm.write(SLEEP_PORT, 3 << 2 | SLEEP_ENABLE), None, "S3 does not exist");
        assert_eq!(pm.write(SLEEP_PORT, 0x80), None, "clears the wake status");
        assert_eq!(pm.read(SLEEP_PORT, 0), 0);
    }

    #[test]
    fn reset_control_resets_when_the_cpu_bit_rises() {
        let mut pm = AcpiPm::new(1_000_000_000);
        assert_eq!(pm.write(RESET_CONTROL_PORT, 0x02), None);
        assert_eq!(pm.read(RESET_CONTROL_PORT, 0), 0x02);
        assert_eq!(pm.write(RESET_CONTROL_PORT, 0x06), Some(Request::Reset));
        assert_eq!(pm.write(RESET_CONTROL_PORT, 0x06), None);
    }

    #[test]
    fn the_timer_counts_at_its_rate_and_reads_bytewise() {
        let pm = AcpiPm::new(2_000_000_000);
        assert_eq!(pm.pm_timer(2_000_000_000), 3_579_545);
        let bytes = [0, 1, 2, 3].map(|i| pm.read(PM_TIMER_PORT + i, 2_000_000_000));
        assert_eq!(u32::from_le_bytes(bytes), 3_579_545);
        assert_eq!(pm.read(PM_TIMER_PORT + 4, 0), 0xff);
    }

    proptest! {
        #[test]
        fn any_access_is_survived(port: u16, value: u8, now: u64, tsc_hz: u64) {
            let mut pm = AcpiPm::new(tsc_hz);
            let _ = pm.read(port, now);
            let _ = pm.read(PM_TIMER_PORT, now);
            let request = pm.write(port, value);
            prop_assert!(request.is_none() || port == SLEEP_PORT || port == RESET_CONTROL_PORT);
        }
    }
}
