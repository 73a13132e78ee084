//! The exit port, compatible with QEMU's `isa-debug-exit`.

/// I/O port a guest writes its exit value to.
pub const PORT: u16 = 0xf4;

/// Value of a guest all of whose checks held.
pub const PASS: u32 = 0x10;

/// Value of a guest with a failed check, an unexpected trap or a panic.
pub const FAIL: u32 = 0x11;

/// Exit status of `qemu-system-x86_64` and of `nacre run` for an exit value, as QEMU computes it.
pub const fn host_status(value: u32) -> u8 {
    (value << 1 | 1) as u8
}

#[cfg(test)]
mod tests {
    use super::{FAIL, PASS, host_status};

    #[test]
    fn exit_values_become_the_statuses_that_qemu_returns() {
        assert_eq!(host_status(PASS), 33);
        assert_eq!(host_status(FAIL), 35);
        assert_eq!(host_status(0x7f), 255);
        assert_eq!(host_status(0x80), 1);
    }
}
