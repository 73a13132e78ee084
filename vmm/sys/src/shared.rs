//! Accesses to memory that others change meanwhile: by assembly, so that the compiler can neither split, merge nor repeat
//! them.

#[cfg(miri)]
pub(crate) use interpreted::{copy, flush_line, read_u64, read_words, zero};
#[cfg(not(miri))]
pub(crate) use native::{copy, flush_line, read_u64, read_words, zero};

#[cfg(not(miri))]
mod native {
    use core::arch::asm;

    /// Eight bytes, not necessarily aligned.
    ///
    /// # Safety
    ///
    /// Eight bytes are readable at `from`.
    #[inline]
    pub(crate) unsafe fn read_u64(from: *const u8) -> u64 {
        let value;
        // SAFETY: the caller vouches for the eight bytes; MOV needs no alignment.
        unsafe {
            asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) from, options(nostack, preserves_flags, readonly));
        }
        value
    }

    /// Twice eight bytes, not necessarily aligned, in order.
    ///
    /// # Safety
    ///
    /// Sixteen bytes are readable at `from`.
    #[inline]
    pub(crate) unsafe fn read_words(from: *const u8) -> [u64; 2] {
        let (first, second);
        // SAFETY: the caller vouches for the sixteen bytes; MOV needs no alignment. The first register is written before the
        // address was read for the last time, and is another one.
        unsafe {
            asm!(
                "mov {first}, qword ptr [{from}]",
                "mov {second}, qword ptr [{from} + 8]",
                first = out(reg) first,
                second = lateout(reg) second,
                from = in(reg) from,
                options(nostack, preserves_flags, readonly),
            );
        }
        [first, second]
    }

    /// Writes the cache line of an address back to memory, behind all older stores to it (SDM 2A, CLFLUSH) and before all that follows (APM
    /// 3, CLFLUSH: only MFENCE orders it).
    ///
    /// # Safety
    ///
    /// The byte is readable at `at`.
    #[inline]
    pub(crate) unsafe fn flush_line(at: *mut u8) {
        // SAFETY: the caller vouches for the byte; no byte changes.
        unsafe { asm!("clflush [{}]", "mfence", in(reg) at, options(nostack, preserves_flags)) };
    }

    /// Zeroes `len` bytes.
    ///
    /// # Safety
    ///
    /// `len` bytes are writable at `to`.
    #[inline]
    pub(crate) unsafe fn zero(to: *mut u8, len: usize) {
        // SAFETY: STOS writes `len / 8` words and `len % 8` bytes from `to` on, which the caller allows.
        unsafe {
            asm!(
                "rep stosq",
                "mov rcx, rdx",
                "rep stosb",
                inout("rcx") len / 8 => _,
                inout("rdi") to => _,
                in("rdx") len % 8,
                in("rax") 0u64,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Copies; aligned copies of 1, 2, 4 or 8 bytes are single accesses. Ranges that overlap end up with any mix of their
    /// bytes.
    ///
    /// # Safety
    ///
    /// `len` bytes are readable at `from` and writable at `to`.
    #[inline]
    pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
        macro_rules! move_once {
            ($class:ident, $register:literal, $size:literal) => {
                asm!(
                    concat!("mov {value", $register, "}, ", $size, " ptr [{from}]"),
                    concat!("mov ", $size, " ptr [{to}], {value", $register, "}"),
                    from = in(reg) from,
                    to = in(reg) to,
                    value = out($class) _,
                    options(nostack, preserves_flags),
                )
            };
        }
        // SAFETY: each touches `len` bytes on both sides, as the caller allows. The small sizes are for the accesses of
        // emulated devices and page walks; MOV needs no alignment.
        unsafe {
            match len {
                1 => move_once!(reg_byte, "", "byte"),
                2 => move_once!(reg, ":x", "word"),
                4 => move_once!(reg, ":e", "dword"),
                8 => move_once!(reg, "", "qword"),
                _ => asm!(
                    "rep movsq",
                    "mov rcx, rdx",
                    "rep movsb",
                    inout("rcx") len / 8 => _,
                    inout("rdi") to => _,
                    inout("rsi") from => _,
                    in("rdx") len % 8,
                    options(nostack, preserves_flags),
                ),
            }
        }
    }
}

/// The same for Miri, which runs no assembly: volatile accesses, a byte each.
#[cfg(miri)]
mod interpreted {
    /// As the native one: there is no cache.
    pub(crate) unsafe fn flush_line(_: *mut u8) {}

    /// As the native one.
    pub(crate) unsafe fn read_u64(from: *const u8) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: the caller vouches for the eight bytes.
        unsafe { copy(bytes.as_mut_ptr(), from, 8) };
        u64::from_ne_bytes(bytes)
    }

    /// As the native one.
    pub(crate) unsafe fn read_words(from: *const u8) -> [u64; 2] {
        // SAFETY: the caller vouches for the sixteen bytes.
        unsafe { [read_u64(from), read_u64(from.wrapping_add(8))] }
    }

    /// As the native one.
    pub(crate) unsafe fn zero(to: *mut u8, len: usize) {
        for offset in 0..len {
            // SAFETY: the caller vouches for the range.
            unsafe { to.add(offset).write_volatile(0) };
        }
    }

    /// As the native one.
    pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
        for offset in 0..len {
            // SAFETY: the caller vouches for both ranges.
            unsafe { to.add(offset).write_volatile(from.add(offset).read_volatile()) };
        }
    }
}
