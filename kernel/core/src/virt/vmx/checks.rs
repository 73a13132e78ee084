//! What a VMM may load into its guest: the entry checks of SDM 3C 26.2.1.3 and 26.3.1, and the values that would fault
//! when the kernel loads them itself. Control registers are in [`super::control_registers`].
//!
//! Rules that join groups of state (segments and mode, say) are checked when the group with the constrained value
//! changes. A combination that slips through is refused by the hardware, as [`EntryRule::Hardware`].

use super::exit::is_software_event;
use hypercall_abi::exit::EntryRule;
use hypercall_abi::vcpu::{
    ACTIVITY_HALTED, CS, DS, DescriptorTable, ES, Event, FS, GS, Interruptibility, SS, Segment,
};

/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.VM.
pub const RFLAGS_VM: u64 = 1 << 17;
/// DEBUGCTL.BTF.
pub const DEBUGCTL_BTF: u64 = 1 << 1;

/// What mode the guest is in, as far as other state depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// CR0.PE.
    pub is_protected: bool,
    /// EFER.LMA.
    pub is_long: bool,
    /// RFLAGS.VM.
    pub is_v86: bool,
}

const fn holds(condition: bool, rule: EntryRule) -> Result<(), EntryRule> {
    if condition { Ok(()) } else { Err(rule) }
}

/// Whether a linear address is canonical with 48 bits.
pub const fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

/// Fails if one of the addresses is not canonical.
///
/// # Errors
/// [`EntryRule::Canonical`].
pub fn check_canonical(addresses: &[u64]) -> Result<(), EntryRule> {
    holds(addresses.iter().all(|&address| is_canonical(address)), EntryRule::Canonical)
}

/// RIP, RFLAGS, interruptibility and activity (SDM 3C 26.3.1.4, 26.3.1.5).
///
/// # Errors
/// The rule that is broken.
pub fn check_rip_group(rip: u64, rflags: u64, interruptibility: u32, activity: u32) -> Result<(), EntryRule> {
    const RESERVED: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;
    const ALWAYS_1: u64 = 1 << 1;
    check_canonical(&[rip])?;
    holds(rflags & (RESERVED | ALWAYS_1) == ALWAYS_1, EntryRule::Rflags)?;
    let shadow = Interruptibility::SHADOW;
    let state = Interruptibility::from_bits(interruptibility).ok_or(EntryRule::Activity)?;
    holds(activity <= ACTIVITY_HALTED, EntryRule::Activity)?;
    holds(!state.contains(shadow), EntryRule::Activity)?;
    holds(!state.contains(Interruptibility::STI) || rflags & RFLAGS_IF != 0, EntryRule::Activity)
}

/// Virtual-8086 mode exists in protected mode outside of long mode only (SDM 3C 26.3.1.4).
///
/// # Errors
/// [`EntryRule::Rflags`].
pub fn check_v86(mode: Mode) -> Result<(), EntryRule> {
    holds(!mode.is_v86 || mode.is_protected && !mode.is_long, EntryRule::Rflags)
}

/// What limits the events that can be injected.
#[derive(Clone, Copy, Debug)]
pub struct EventContext {
    /// RFLAGS.
    pub rflags: u64,
    /// Interruptibility.
    pub interruptibility: Interruptibility,
    /// CR0.PE.
    pub is_protected: bool,
    /// Instruction length of a software event.
    pub length: u32,
    /// The machine takes a length of 0.
    pub can_inject_length_0: bool,
}

/// Whether the exception has an error code (outside of real mode).
const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

/// An event to inject, which is valid (SDM 3C 26.2.1.3, 26.3.1.4, 26.3.1.5).
///
/// # Errors
/// The rule that is broken.
pub fn check_event(event: Event, context: &EventContext) -> Result<(), EntryRule> {
    const RESERVED: u64 = 0x7fff_f000;
    const NMI_VECTOR: u8 = 2;
    const LAST_EXCEPTION: u8 = 31;
    const LONGEST_INSTRUCTION: u32 = 15;
    let (kind, vector) = (event.kind(), event.vector());
    holds(event.0 & RESERVED == 0, EntryRule::Event)?;
    let needs_error_code = kind == Event::EXCEPTION && context.is_protected && has_error_code(vector);
    holds(event.error_code().is_some() == needs_error_code, EntryRule::Event)?;
    // SDM 3C 26.2.1.3: bits 15 to 31 of an error code are zero.
    holds(event.error_code().unwrap_or(0) >> 15 == 0, EntryRule::Event)?;
    let shadow = Interruptibility::SHADOW;
    match kind {
        Event::EXTERNAL => {
            holds(context.rflags & RFLAGS_IF != 0, EntryRule::Rflags)?;
            holds(!context.interruptibility.intersects(shadow), EntryRule::Activity)
        }
        Event::NMI => {
            holds(vector == NMI_VECTOR, EntryRule::Event)?;
            // STI blocks NMIs on some processors only; refusing is right on all of them.
            holds(!context.interruptibility.intersects(shadow | Interruptibility::NMI), EntryRule::Activity)
        }
        // SVM refuses an exception with the vector of NMIs.
        Event::EXCEPTION => holds(vector <= LAST_EXCEPTION && vector != NMI_VECTOR, EntryRule::Event),
        kind if is_software_event(kind) => {
            let shortest = if context.can_inject_length_0 { 0 } else { 1 };
            holds((shortest..=LONGEST_INSTRUCTION).contains(&context.length), EntryRule::Event)
        }
        _ => Err(EntryRule::Event),
    }
}

/// Fields of segment access rights (SDM 3C table 24-2).
#[derive(Clone, Copy)]
struct Access(u32);

impl Access {
    /// Accessed, in the type of a code or data segment.
    const ACCESSED: u32 = 1 << 0;
    /// Writable data or readable code.
    const READABLE: u32 = 1 << 1;
    /// Code, in the type of a code or data segment.
    const CODE: u32 = 1 << 3;

    const fn segment_type(self) -> u32 {
        self.0 & 15
    }

    const fn is_code_or_data(self) -> bool {
        self.0 >> 4 & 1 != 0
    }

    const fn dpl(self) -> u32 {
        self.0 >> 5 & 3
    }

    const fn is_present(self) -> bool {
        self.0 >> 7 & 1 != 0
    }

    const fn is_64_bit(self) -> bool {
        self.0 >> 13 & 1 != 0
    }

    const fn is_32_bit(self) -> bool {
        self.0 >> 14 & 1 != 0
    }

    const fn has_page_granularity(self) -> bool {
        self.0 >> 15 & 1 != 0
    }

    const fn is_unusable(self) -> bool {
        self.0 & Segment::UNUSABLE != 0
    }

    const fn has_reserved_bits(self) -> bool {
        self.0 & 0xfffe_0f00 != 0
    }
}

/// Present, without reserved bits, and a limit that its granularity can express.
fn is_well_formed(segment: &Segment, is_code_or_data: bool) -> bool {
    let access = Access(segment.access);
    let limit_fits =
        if access.has_page_granularity() { segment.limit & 0xfff == 0xfff } else { segment.limit >> 20 == 0 };
    access.is_present()
        && access.is_code_or_data() == is_code_or_data
        && !access.has_reserved_bits()
        && limit_fits
}

fn is_v86_segment(segment: &Segment) -> bool {
    segment.base == (segment.selector as u64) << 4 && segment.limit == 0xffff && segment.access == 0xf3
}

fn is_code_segment(cs: &Segment, ss: &Segment) -> bool {
    let (access, stack_dpl) = (Access(cs.access), Access(ss.access).dpl());
    let privilege_fits = match access.segment_type() {
        3 => access.dpl() == 0,
        9 | 11 => access.dpl() == stack_dpl,
        13 | 15 => access.dpl() <= stack_dpl,
        _ => false,
    };
    privilege_fits && is_well_formed(cs, true)
}

fn is_stack_segment(ss: &Segment) -> bool {
    let access = Access(ss.access);
    access.is_unusable() || matches!(access.segment_type(), 3 | 7) && is_well_formed(ss, true)
}

fn is_data_segment(segment: &Segment) -> bool {
    let access = Access(segment.access);
    let is_readable = access.0 & Access::CODE == 0 || access.0 & Access::READABLE != 0;
    access.is_unusable() || access.0 & Access::ACCESSED != 0 && is_readable && is_well_formed(segment, true)
}

/// Whether the upper half of the base is zero, as it must be in all but FS, GS and the system segments.
fn has_low_base(segment: &Segment) -> bool {
    Access(segment.access).is_unusable() || segment.base >> 32 == 0
}

/// CS and SS (SDM 3C 26.3.1.2, with "unrestricted guest").
///
/// # Errors
/// [`EntryRule::Segment`].
pub fn check_code_and_stack(segments: &[Segment; 6], mode: Mode) -> Result<(), EntryRule> {
    let (cs, ss) = (&segments[CS], &segments[SS]);
    if mode.is_v86 {
        return holds(is_v86_segment(cs) && is_v86_segment(ss), EntryRule::Segment);
    }
    let code = Access(cs.access);
    let needs_ring_0 = code.segment_type() == 3 || !mode.is_protected;
    holds(
        is_code_segment(cs, ss)
            && is_stack_segment(ss)
            && cs.base >> 32 == 0
            && has_low_base(ss)
            && !(needs_ring_0 && Access(ss.access).dpl() != 0)
            && !(mode.is_long && code.is_64_bit() && code.is_32_bit()),
        EntryRule::Segment,
    )
}

/// DS, ES, FS and GS (SDM 3C 26.3.1.2, with "unrestricted guest").
///
/// # Errors
/// [`EntryRule::Segment`], or [`EntryRule::Canonical`] for the base of FS or GS.
pub fn check_data_segments(segments: &[Segment; 6], mode: Mode) -> Result<(), EntryRule> {
    check_canonical(&[segments[FS].base, segments[GS].base])?;
    let data = [&segments[ES], &segments[DS], &segments[FS], &segments[GS]];
    if mode.is_v86 {
        return holds(data.into_iter().all(is_v86_segment), EntryRule::Segment);
    }
    holds(
        data.into_iter().all(is_data_segment) && has_low_base(&segments[ES]) && has_low_base(&segments[DS]),
        EntryRule::Segment,
    )
}

/// LDTR, TR, GDTR and IDTR (SDM 3C 26.3.1.2, 26.3.1.3).
///
/// # Errors
/// [`EntryRule::Segment`], or [`EntryRule::Canonical`] for a base.
pub fn check_tables(
    ldtr: &Segment,
    tr: &Segment,
    gdtr: &DescriptorTable,
    idtr: &DescriptorTable,
    mode: Mode,
) -> Result<(), EntryRule> {
    const TABLE_INDICATOR: u16 = 1 << 2;
    const LDT: u32 = 2;
    const BUSY_TSS_16: u32 = 3;
    const BUSY_TSS: u32 = 11;
    check_canonical(&[tr.base, gdtr.base, idtr.base])?;
    let tr_access = Access(tr.access);
    let is_tss = match tr_access.segment_type() {
        BUSY_TSS => true,
        BUSY_TSS_16 => !mode.is_long,
        _ => false,
    };
    let is_in_gdt = |segment: &Segment| segment.selector & TABLE_INDICATOR == 0;
    holds(
        is_tss && !tr_access.is_unusable() && is_well_formed(tr, false) && is_in_gdt(tr),
        EntryRule::Segment,
    )?;
    let ldtr_access = Access(ldtr.access);
    if !ldtr_access.is_unusable() {
        check_canonical(&[ldtr.base])?;
        let is_ldt = ldtr_access.segment_type() == LDT && is_well_formed(ldtr, false) && is_in_gdt(ldtr);
        holds(is_ldt, EntryRule::Segment)?;
    }
    holds(gdtr.limit <= 0xffff && idtr.limit <= 0xffff, EntryRule::Segment)
}

/// DR6 and DR7: MOV to either faults if the upper half is not zero.
///
/// # Errors
/// [`EntryRule::Msr`].
pub const fn check_debug(dr6: u64, dr7: u64) -> Result<(), EntryRule> {
    holds(dr6 >> 32 == 0 && dr7 >> 32 == 0, EntryRule::Msr)
}

/// PAT and DEBUGCTL. Of the latter a guest may have LBR and BTF: the others freeze or redirect what is the host's.
///
/// # Errors
/// [`EntryRule::Msr`].
pub fn check_pat(pat: u64, debugctl: u64) -> Result<(), EntryRule> {
    const LBR: u64 = 1 << 0;
    let are_memory_types = pat.to_le_bytes().into_iter().all(|entry| matches!(entry, 0 | 1 | 4..=7));
    holds(are_memory_types && debugctl & !(LBR | DEBUGCTL_BTF) == 0, EntryRule::Msr)
}

/// SYSENTER_CS, SYSENTER_ESP and SYSENTER_EIP.
///
/// # Errors
/// [`EntryRule::Msr`] or [`EntryRule::Canonical`].
pub fn check_sysenter(cs: u64, esp: u64, eip: u64) -> Result<(), EntryRule> {
    holds(cs >> 32 == 0, EntryRule::Msr)?;
    check_canonical(&[esp, eip])
}

/// The MSRs of SYSCALL and SWAPGS: WRMSR faults on what is refused here. STAR takes every value.
///
/// # Errors
/// [`EntryRule::Msr`] or [`EntryRule::Canonical`].
pub fn check_syscall(
    targets: [u64; 2],
    sfmask: u64,
    kernel_gs_base: u64,
    tsc_aux: u64,
) -> Result<(), EntryRule> {
    holds(sfmask >> 32 == 0 && tsc_aux >> 32 == 0, EntryRule::Msr)?;
    check_canonical(&[targets[0], targets[1], kernel_gs_base])
}

#[cfg(test)]
mod tests;
