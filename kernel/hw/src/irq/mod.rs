//! Interrupt controllers and the timer behind them.

pub mod ioapic;
pub mod lapic;
pub mod vector;

use crate::cpu::port;

/// Masks both 8259s after moving them off the exceptions: a spurious interrupt they might still raise lands on a vector that
/// is ignored.
pub fn disable_pics() {
    for (command, data, base) in [(0x20u16, 0x21u16, vector::PIC), (0xa0, 0xa1, vector::PIC + 8)] {
        port::write8(command, 0x11);
        port::write8(data, base);
        port::write8(data, if command == 0x20 { 4 } else { 2 });
        port::write8(data, 1);
        port::write8(data, 0xff);
    }
}
