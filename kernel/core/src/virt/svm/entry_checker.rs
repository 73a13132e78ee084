//! The entry checker: everything that VMRUN checks, before the hardware does (APM 15.5.1), and what it does not check but
//! relies on (clean bits).
//!
//! QEMU makes few of the checks and ignores clean bits. Test and debug builds put the whole VMCB through all rules before every
//! VMRUN; the release build has none of this. A VMM cannot break a rule here: [`super::checks`] looks at the whole save
//! area whenever it changed.

use super::processor::{Processor, SvmFeatures};
use super::vmcb::{Clean, Control, NP_ENABLE, SaveArea, Vmcb, VmcbSegment};

/// A rule that the VMCB breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Section of APM 2.
    pub section: &'static str,
    /// The rule.
    pub rule: &'static str,
}

const CONSISTENCY: &str = "15.5.1";
const CR0_PE: u64 = 1 << 0;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_MCE: u64 = 1 << 6;
const CR4_PCIDE: u64 = 1 << 17;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_SVME: u64 = 1 << 12;
const LONG: u16 = 1 << 9;
const DEFAULT: u16 = 1 << 10;

fn holds(condition: bool, section: &'static str, rule: &'static str) -> Result<(), Broken> {
    if condition { Ok(()) } else { Err(Broken { section, rule }) }
}

/// Checks the VMCB for a VMRUN on a CPU like `processor`.
///
/// # Errors
/// The first rule that is broken.
pub fn check_entry(vmcb: &Vmcb, processor: &Processor) -> Result<(), Broken> {
    check_control_registers(&vmcb.save, processor)?;
    check_long_mode(&vmcb.save)?;
    check_other_registers(&vmcb.save)?;
    check_control(&vmcb.control, processor)?;
    check_nested_paging(vmcb, processor)?;
    check_event(vmcb)?;
    check_isolation(&vmcb.control)
}

fn check_control_registers(save: &SaveArea, processor: &Processor) -> Result<(), Broken> {
    holds(save.efer & EFER_SVME != 0, CONSISTENCY, "EFER.SVME is 1")?;
    holds(save.cr0 & CR0_CD != 0 || save.cr0 & CR0_NW == 0, CONSISTENCY, "CR0.NW needs CD")?;
    holds(save.cr0 >> 32 == 0, CONSISTENCY, "bits 63 to 32 of CR0")?;
    holds(save.cr3 >> processor.physical_bits == 0, CONSISTENCY, "reserved bits of CR3")?;
    holds(save.cr4 & !processor.cr4 == 0, CONSISTENCY, "reserved bits of CR4")?;
    // No rule of VMRUN.
    holds(save.cr4 & CR4_MCE != 0, "15.9", "CR4.MCE is the host's, and set")?;
    holds(save.dr6 >> 32 == 0, CONSISTENCY, "bits 63 to 32 of DR6")?;
    holds(save.dr7 >> 32 == 0, CONSISTENCY, "bits 63 to 32 of DR7")?;
    holds(save.efer & !processor.efer == 0, CONSISTENCY, "reserved bits of EFER")
}

fn check_long_mode(save: &SaveArea) -> Result<(), Broken> {
    let has_paging = save.cr0 & CR0_PG != 0;
    let is_long = save.efer & EFER_LME != 0 && has_paging;
    holds(!is_long || save.cr4 & CR4_PAE != 0, CONSISTENCY, "EFER.LME and CR0.PG need CR4.PAE")?;
    holds(!is_long || save.cr0 & CR0_PE != 0, CONSISTENCY, "EFER.LME and CR0.PG need CR0.PE")?;
    holds(
        !is_long || save.cs.attributes & (LONG | DEFAULT) != LONG | DEFAULT,
        CONSISTENCY,
        "CS.L and CS.D exclude each other in long mode",
    )?;
    holds(is_long == (save.efer & EFER_LMA != 0), CONSISTENCY, "EFER.LMA is LME and CR0.PG")?;
    holds(is_long || save.cr4 & CR4_PCIDE == 0, CONSISTENCY, "CR4.PCIDE needs long mode")
}

/// What VMRUN loads without a check, and CPUs without a defined outcome.
fn check_other_registers(save: &SaveArea) -> Result<(), Broken> {
    const RFLAGS_RESERVED: u64 = !0x3f_7fd7;
    let is_canonical = |address: u64| address.wrapping_add(1 << 47) >> 48 == 0;
    holds(
        save.rflags & RFLAGS_RESERVED == 0 && save.rflags & 2 != 0,
        CONSISTENCY,
        "reserved bits of RFLAGS",
    )?;
    holds(
        [save.fs, save.gs, save.tr, save.ldtr, save.gdtr, save.idtr]
            .iter()
            .all(|segment| is_canonical(segment.base)),
        CONSISTENCY,
        "bases are canonical",
    )?;
    holds(
        [save.lstar, save.cstar, save.kernel_gs_base, save.sysenter_esp, save.sysenter_eip]
            .into_iter()
            .all(is_canonical),
        CONSISTENCY,
        "addresses in MSRs are canonical",
    )?;
    holds(save.sfmask >> 32 == 0, CONSISTENCY, "bits 63 to 32 of SFMASK")
}

fn check_control(control: &Control, processor: &Processor) -> Result<(), Broken> {
    const VMRUN: u32 = 1 << 0;
    const MAP_PAGES: u64 = 3 << 12;
    let is_map = |base: u64, bytes: u64| {
        base & 0xfff == 0
            && base.checked_add(bytes - 1).is_some_and(|last| last >> processor.physical_bits == 0)
    };
    holds(control.intercepts[1] & VMRUN != 0, CONSISTENCY, "the VMRUN intercept is set")?;
    holds(
        is_map(control.msrpm_base, 2 << 12) && is_map(control.iopm_base, MAP_PAGES),
        CONSISTENCY,
        "permission maps lie in physical memory",
    )?;
    holds(
        control.asid != 0 && control.asid < processor.asids,
        CONSISTENCY,
        "ASID is not 0, and one that the CPU has",
    )?;
    let can_flush_asid = processor.svm.contains(SvmFeatures::FLUSH_BY_ASID);
    holds(
        match control.tlb_control {
            0 | 1 => true,
            3 | 7 => can_flush_asid,
            _ => false,
        },
        "15.16.1",
        "TLB_CONTROL is an encoding that the CPU has",
    )?;
    holds(
        control.clean == 0 || processor.svm.contains(SvmFeatures::VMCB_CLEAN),
        "15.15.1",
        "clean bits are used where the CPU has them",
    )
}

fn check_nested_paging(vmcb: &Vmcb, processor: &Processor) -> Result<(), Broken> {
    const NESTED: &str = "15.25.4";
    let control = &vmcb.control;
    holds(control.nested_control & NP_ENABLE != 0, NESTED, "nested paging is on")?;
    holds(
        control.nested_cr3 & 0xfff == 0
            && control.nested_cr3 != 0
            && control.nested_cr3 >> processor.physical_bits == 0,
        NESTED,
        "reserved bits of nCR3",
    )?;
    holds(
        (0..8).all(|index| matches!(vmcb.save.g_pat >> (8 * index) & 0xff, 0 | 1 | 4..=7)),
        NESTED,
        "G_PAT has memory types only",
    )
}

/// EVENTINJ (APM 15.20).
fn check_event(vmcb: &Vmcb) -> Result<(), Broken> {
    const SECTION: &str = "15.20";
    const VALID: u64 = 1 << 31;
    const HAS_CODE: u64 = 1 << 11;
    const EXCEPTION: u64 = 3;
    let event = vmcb.control.event_injection;
    if event & VALID == 0 {
        return Ok(());
    }
    let (vector, kind) = (event & 0xff, event >> 8 & 7);
    holds(matches!(kind, 0 | 2 | 3 | 4), SECTION, "type of the event")?;
    holds(event & 0x7fff_f000 == 0, SECTION, "reserved bits of the event")?;
    if kind != EXCEPTION {
        return Ok(());
    }
    holds(vector != 2 && vector < 32, SECTION, "an exception has the vector of one")?;
    let is_long = vmcb.save.efer & EFER_LMA != 0 && vmcb.save.cs.attributes & LONG != 0;
    holds(!(is_long && matches!(vector, 4 | 5)), SECTION, "an exception is one that the mode has")?;
    let wants_code = vmcb.save.cr0 & CR0_PE != 0 && matches!(vector, 8 | 10..=14 | 17);
    holds((event & HAS_CODE != 0) == wants_code, SECTION, "error code of the event")
}

/// Without these intercepts a guest reaches what is the host's. No hardware checks them.
fn check_isolation(control: &Control) -> Result<(), Broken> {
    /// INTR, NMI, INIT, RDPMC, INVD, INVLPGA, IOIO, MSR, task switch, shutdown.
    const WORD_3: u32 =
        1 | 1 << 1 | 1 << 3 | 1 << 15 | 1 << 22 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
    /// VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, WBINVD, MONITOR, MWAIT, XSETBV.
    const WORD_4: u32 = 0x7f | 1 << 9 | 1 << 10 | 3 << 11 | 1 << 13;
    const MACHINE_CHECK: u32 = 1 << 18;
    const CR4: u16 = 1 << 4;
    const V_INTR_MASKING: u64 = 1 << 24;
    holds(
        control.intercepts[0] & WORD_3 == WORD_3
            && control.intercepts[1] & WORD_4 == WORD_4
            && control.intercept_exceptions & MACHINE_CHECK != 0
            && control.intercept_cr_writes & CR4 != 0
            && control.interrupt_control & V_INTR_MASKING != 0,
        "15.9",
        "the intercepts that isolation needs are set",
    )
}

/// What the VMCB held in each group of fields that has a clean bit, after the last exit.
#[derive(Clone, Debug, Default)]
pub struct CleanShadow(Option<[u64; GROUPS]>);

const GROUPS: usize = 11;

impl CleanShadow {
    /// No exit yet.
    pub const fn new() -> Self {
        CleanShadow(None)
    }

    /// The CPU has just written the VMCB: it may have cached all of it.
    pub fn record(&mut self, vmcb: &Vmcb) {
        self.0 = Some(digests(vmcb));
    }

    /// A clean bit promises that nothing in its group changed since the last exit (APM 15.15.3).
    ///
    /// # Errors
    /// The group that changed.
    pub fn check(&self, vmcb: &Vmcb, clean: Clean) -> Result<(), Clean> {
        if clean.is_empty() {
            return Ok(());
        }
        let Some(before) = self.0 else { return Err(clean) };
        let changed = before
            .iter()
            .zip(digests(vmcb))
            .enumerate()
            .filter(|&(_, (before, now))| *before != now)
            .fold(0, |bits, (group, _)| bits | 1 << group);
        let broken = clean & Clean::from_bits_truncate(changed);
        if broken.is_empty() { Ok(()) } else { Err(broken) }
    }
}

/// One digest for each clean bit, in the order of the bits.
fn digests(vmcb: &Vmcb) -> [u64; GROUPS] {
    let (control, save) = (&vmcb.control, &vmcb.save);
    let register = |segment: &VmcbSegment| {
        [
            segment.selector as u64 | (segment.attributes as u64) << 16 | (segment.limit as u64) << 32,
            segment.base,
        ]
    };
    let words = [
        control.intercept_cr_reads,
        control.intercept_cr_writes,
        control.intercept_dr_reads,
        control.intercept_dr_writes,
        control.pause_threshold,
        control.pause_count,
    ];
    // V_TPR changes while the guest runs, and V_IRQ when its interrupt is taken: the CPU has the newest of both.
    const INTERRUPT: u64 = !0x1ff;
    let segments = [&save.es, &save.cs, &save.ss, &save.ds].map(register);
    [
        digest(
            words
                .into_iter()
                .map(u64::from)
                .chain(control.intercepts.map(u64::from))
                .chain([control.intercept_exceptions as u64, control.tsc_offset]),
        ),
        digest([control.iopm_base, control.msrpm_base]),
        digest([control.asid as u64]),
        digest([control.interrupt_control & INTERRUPT]),
        digest([control.nested_control, control.nested_cr3, save.g_pat]),
        digest([save.cr0, save.cr3, save.cr4, save.efer]),
        digest([save.dr6, save.dr7]),
        digest(register(&save.gdtr).into_iter().chain(register(&save.idtr))),
        digest(segments.into_iter().flatten().chain([save.cpl as u64])),
        digest([save.cr2]),
        digest([save.debugctl]),
    ]
}

/// FNV-1a over words.
fn digest(words: impl IntoIterator<Item = u64>) -> u64 {
    words
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(29))
}

#[cfg(test)]
#[path = "entry_checker_tests.rs"]
mod tests;
