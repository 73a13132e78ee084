//! Leaving long mode and coming back: the same instructions in every mode a processor boots through.

#[cfg(target_os = "none")]
core::arch::global_asm!(
    include_str!("modes.S"),
    EBX = const LOW_DATA + core::mem::offset_of!(Outcome, cpuid_ebx) as u64,
    PORT = const LOW_DATA + core::mem::offset_of!(Outcome, port_value) as u64,
    SOFT = const LOW_DATA + core::mem::offset_of!(Outcome, software_interrupts) as u64,
    TIMER = const LOW_DATA + core::mem::offset_of!(Outcome, timer_interrupts) as u64,
    DONE = const LOW_DATA + core::mem::offset_of!(Outcome, done) as u64,
    options(att_syntax)
);

/// Where the 16-bit code is copied to.
const LOW_CODE: u64 = 0x8000;
/// Where the code of all modes leaves its results: an [`Outcome`].
const LOW_DATA: u64 = 0x8f00;
/// The real-mode interrupt vector table, not at 0 so that IDTR counts.
const IVT: u64 = 0xa000;
/// The IDT of 8-byte gates for 16-bit and 32-bit protected mode.
const IDT32: u64 = 0xb000;

/// Vector of the software interrupt that each mode raises.
pub const SOFTWARE_VECTOR: u8 = 0x42;
/// Vector of the timer interrupt that ends each mode's HLT.
pub const TIMER_VECTOR: u8 = 0x43;

/// A mode other than 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A 32-bit segment in long mode.
    Compatibility = 0,
    /// 32-bit protected mode with PAE paging.
    Pae = 1,
    /// 32-bit protected mode without paging.
    Protected32 = 2,
    /// 16-bit protected mode.
    Protected16 = 3,
    /// Real mode.
    Real = 4,
}

/// What the code saw in its mode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// EBX of CPUID leaf 0.
    pub cpuid_ebx: u32,
    /// What IN from port E9H gave, in its low byte.
    pub port_value: u32,
    /// How often INT 42H arrived at its handler in this mode.
    pub software_interrupts: u32,
    /// How often the timer's vector did.
    pub timer_interrupts: u32,
    /// Whether the code reached its end.
    pub done: u32,
}

unsafe extern "C" {
    static trt_low_start: u8;
    static trt_low_end: u8;
    static trt_low_soft16: u8;
    static trt_low_timer16: u8;
    static trt_low_soft_real: u8;
    static trt_low_timer_real: u8;
    static trt_soft32: u8;
    static trt_timer32: u8;
    fn trt_run_mode(mode: u64);
}

/// Runs in `mode`: CPUID, OUT 80H, IN E9H, INT 42H, and STI; HLT; CLI, for which the caller has armed a timer with
/// [`TIMER_VECTOR`]; the caller ends that interrupt at the APIC. Interrupts have to be off.
///
/// In [`Mode::Compatibility`] interrupts come to the runtime's handlers, elsewhere to the mode's own.
pub fn run(mode: Mode) -> Outcome {
    // SAFETY: memory from 8000H to BFFFH is RAM that nothing else uses once the loader's information is copied.
    unsafe {
        let code = &raw const trt_low_start;
        let bytes = &raw const trt_low_end as usize - code as usize;
        core::ptr::copy_nonoverlapping(code, LOW_CODE as *mut u8, bytes);
        (LOW_DATA as *mut Outcome).write_volatile(Outcome::default());

        let low = |symbol: *const u8| (symbol as u64 - code as u64 + LOW_CODE) as u32;
        let ivt = IVT as *mut u32;
        ivt.add(SOFTWARE_VECTOR.into()).write_volatile(low(&raw const trt_low_soft_real));
        ivt.add(TIMER_VECTOR.into()).write_volatile(low(&raw const trt_low_timer_real));

        let (soft, timer) = if mode == Mode::Protected16 {
            (gate16(low(&raw const trt_low_soft16)), gate16(low(&raw const trt_low_timer16)))
        } else {
            (gate32(&raw const trt_soft32 as u32), gate32(&raw const trt_timer32 as u32))
        };
        let idt = IDT32 as *mut u64;
        idt.add(SOFTWARE_VECTOR.into()).write_volatile(soft);
        idt.add(TIMER_VECTOR.into()).write_volatile(timer);

        trt_run_mode(mode as u64);
        crate::desc::load_idt();
        (LOW_DATA as *const Outcome).read_volatile()
    }
}

/// A 16-bit interrupt gate.
fn gate16(offset: u32) -> u64 {
    u64::from(offset & 0xffff) | u64::from(crate::desc::KERNEL_CODE16) << 16 | 0x86 << 40
}

/// A 32-bit interrupt gate.
fn gate32(offset: u32) -> u64 {
    let offset = u64::from(offset);
    offset & 0xffff | u64::from(crate::desc::KERNEL_CODE32) << 16 | 0x8e << 40 | offset >> 16 << 48
}
