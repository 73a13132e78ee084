//! What the processor offers, from CPUID, and where an emulator differs from the manual.

bitflags::bitflags! {
    /// CPUID 8000_000AH EDX (APM 3 E.4.9).
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SvmFeatures: u32 {
        /// Nested paging.
        const NP = 1 << 0;
        /// Last-branch records and DEBUGCTL are switched on demand.
        const LBR_VIRT = 1 << 1;
        /// Exits of instructions say where the next one is.
        const NRIPS = 1 << 3;
        /// VMCB clean bits.
        const VMCB_CLEAN = 1 << 5;
        /// TLB_CONTROL can flush one ASID.
        const FLUSH_BY_ASID = 1 << 6;
        /// Exits carry operands and instruction bytes.
        const DECODE_ASSISTS = 1 << 7;
    }
}

/// Where QEMU's TCG and Bochs depart from the manual in a way that the kernel has to answer. All are false on hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// VMRUN ignores the interrupt shadow in the VMCB (7.2; later ones are the same to CPUID): a virtual interrupt
    /// would come between STI and HLT. Answered in [`super::event`].
    pub loses_shadow: bool,
    /// An external interrupt injected by EVENTINJ may be delivered twice: V_IRQ is used instead.
    pub repeats_injected_interrupt: bool,
    /// The guest's writes of the PAT change the host's: they exit.
    pub shares_pat: bool,
    /// 10.0 takes an access of any control register for one of CR0: it exits, as CR0's, if that one's intercept is set, and
    /// only then. So CR0's is always set, and the VMM reads the instruction.
    pub mistakes_control_registers: bool,
    /// Bochs 2.7 pushes RIP, not nRIP, as the return address of an injected INT n.
    pub injects_without_next_rip: bool,
    /// Bochs 2.7 does not load CR2 at VMRUN.
    pub leaves_cr2: bool,
}

/// The processor, as far as SVM is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Processor {
    /// SVM itself; nothing else means anything without.
    pub has_svm: bool,
    /// SVM features.
    pub svm: SvmFeatures,
    /// Number of ASIDs, the host's 0 included.
    pub asids: u32,
    /// CR4 bits that a guest may have.
    pub cr4: u64,
    /// EFER bits that a guest may have, SVME included.
    pub efer: u64,
    /// Bits of a physical address.
    pub physical_bits: u32,
    /// RDTSCP, and so TSC_AUX.
    pub has_rdtscp: bool,
    /// INVPCID.
    pub has_invpcid: bool,
    /// XSAVES.
    pub has_xsaves: bool,
    /// 1 GiB pages.
    pub has_1g_pages: bool,
    /// Departures from the manual.
    pub quirks: Quirks,
}

/// Registers that CPUID returns: EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// CR4.PKE.
const CR4_PKE: u64 = 1 << 22;
/// XCR0: PKRU is part of the state that the kernel switches.
const XCR0_PKRU: u64 = 1 << 9;

impl Processor {
    /// Reads the features through `cpuid` (leaf, subleaf), which returns zeros for leaves that the CPU does not have.
    /// `guest_xcr0` is the extended state that the kernel switches.
    pub fn from_cpuid(cpuid: impl Fn(u32, u32) -> Leaf, guest_xcr0: u64) -> Self {
        let bit = |leaf: &Leaf, register: usize, number: u32| leaf[register] >> number & 1 != 0;
        let (basic, extended) = (cpuid(1, 0), cpuid(0x8000_0001, 0));
        let (structured, svm) = (cpuid(7, 0), cpuid(0x8000_000a, 0));
        let cr4 = cr4_bits(&basic, &structured, guest_xcr0);
        let physical_bits = match cpuid(0x8000_0008, 0)[EAX] & 0xff {
            0 => 36,
            bits => bits.min(52),
        };
        let has_xsave = bit(&basic, ECX, 26);
        Processor {
            has_svm: bit(&extended, ECX, 2),
            svm: SvmFeatures::from_bits_truncate(svm[EDX]),
            asids: svm[EBX],
            cr4,
            efer: efer_bits(&extended),
            physical_bits,
            has_rdtscp: bit(&extended, EDX, 27),
            has_invpcid: bit(&structured, EBX, 10),
            has_xsaves: has_xsave && bit(&cpuid(0xd, 1), EAX, 3),
            has_1g_pages: bit(&extended, EDX, 26),
            quirks: quirks(&basic, svm[EDX], &cpuid(0x4000_0000, 0)),
        }
    }

    /// Whether exits of instructions say how long they are.
    pub fn has_next_rip(&self) -> bool {
        self.svm.contains(SvmFeatures::NRIPS)
    }
}

/// CR4 bits for guests: not what the kernel does not switch (CET, LA57).
fn cr4_bits(basic: &Leaf, structured: &Leaf, guest_xcr0: u64) -> u64 {
    // VME to PCE (8 is PCE: RDPMC exits anyway), OSFXSR, OSXMMEXCPT: every processor with SVM has them.
    const ALWAYS: u64 = 0x7ff;
    let mut allowed = ALWAYS;
    for (leaf, register, number, cr4_bit) in [
        (structured, ECX, 2, 11),  // UMIP
        (structured, EBX, 0, 16),  // FSGSBASE
        (basic, ECX, 17, 17),      // PCIDE
        (basic, ECX, 26, 18),      // OSXSAVE
        (structured, EBX, 7, 20),  // SMEP
        (structured, EBX, 20, 21), // SMAP
    ] {
        allowed |= ((leaf[register] >> number & 1) as u64) << cr4_bit;
    }
    // PKRU is switched with the extended state, if at all.
    if structured[ECX] >> 3 & 1 != 0 && guest_xcr0 & XCR0_PKRU != 0 {
        allowed |= CR4_PKE;
    }
    allowed
}

/// EFER bits for guests.
fn efer_bits(extended: &Leaf) -> u64 {
    const SCE_LME_LMA_SVME: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 12;
    let mut allowed = SCE_LME_LMA_SVME;
    for (register, number, efer_bit) in [
        (EDX, 20, 11), // NXE
        (EDX, 25, 14), // FFXSR
        (ECX, 17, 15), // TCE
    ] {
        allowed |= ((extended[register] >> number & 1) as u64) << efer_bit;
    }
    allowed
}

/// The one place that tells emulators from hardware. TCG says what it is. Bochs does not, but no processor has FlushByAsid
/// without decode assists; KVM's virtual ones have, which are hypervisors'.
fn quirks(basic: &Leaf, svm: u32, hypervisor: &Leaf) -> Quirks {
    let has_hypervisor = basic[ECX] >> 31 & 1 != 0;
    let signature = [hypervisor[EBX], hypervisor[ECX], hypervisor[EDX]];
    let tcg = signature.map(u32::to_le_bytes) == [*b"TCGT", *b"CGTC", *b"GTCG"];
    let is_tcg = has_hypervisor && tcg;
    let svm = SvmFeatures::from_bits_truncate(svm);
    let is_bochs = !has_hypervisor
        && svm.contains(SvmFeatures::NRIPS | SvmFeatures::FLUSH_BY_ASID)
        && !svm.contains(SvmFeatures::DECODE_ASSISTS);
    Quirks {
        loses_shadow: is_tcg,
        repeats_injected_interrupt: is_tcg,
        shares_pat: is_tcg,
        mistakes_control_registers: is_tcg,
        injects_without_next_rip: is_bochs,
        leaves_cr2: is_bochs,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const CR4_CET: u64 = 1 << 23;
    const CR4_LA57: u64 = 1 << 12;

    /// QEMU's `EPYC,+svm,+npt` under TCG, reduced to what is looked at.
    pub(crate) fn tcg() -> Processor {
        let cpuid = |leaf, _| match leaf {
            1 => [0, 0, 1 << 31 | 1 << 26, 0],
            7 => [0, 1 | 1 << 7 | 1 << 20, 4, 0],
            0x4000_0000 => [0x4000_0001, 0x5447_4354, 0x4354_4743, 0x4743_5447],
            0x8000_0001 => [0, 0, 1 << 2, 1 << 20 | 1 << 26 | 1 << 27],
            0x8000_0008 => [0x3028, 0, 0, 0],
            0x8000_000a => [1, 16, 0, 1],
            _ => [0; 4],
        };
        Processor::from_cpuid(cpuid, 7)
    }

    /// A processor of today with everything that the kernel uses.
    pub(crate) fn hardware() -> Processor {
        let cpuid = |leaf, _| match leaf {
            1 => [0, 0, 1 << 26 | 1 << 17, 0],
            7 => [0, 1 | 1 << 7 | 1 << 10 | 1 << 20, 1 << 2 | 1 << 3 | 1 << 7 | 1 << 16, 0],
            0x8000_0001 => [0, 0, 1 << 2 | 1 << 17, 1 << 20 | 1 << 25 | 1 << 26 | 1 << 27],
            0x8000_0008 => [0x3030, 0, 0, 0],
            0x8000_000a => [1, 32768, 0, 0xef],
            0xd => [0xf, 0, 0, 0],
            _ => [0; 4],
        };
        Processor::from_cpuid(cpuid, 0x2e7)
    }

    #[test]
    fn a_processor_without_svm_is_recognized() {
        assert!(!Processor::from_cpuid(|_, _| [0; 4], 0).has_svm);
        assert!(tcg().has_svm);
    }

    #[test]
    fn hardware_has_no_quirks() {
        let all = Quirks {
            loses_shadow: true,
            repeats_injected_interrupt: true,
            shares_pat: true,
            mistakes_control_registers: true,
            injects_without_next_rip: false,
            leaves_cr2: false,
        };
        assert_eq!(tcg().quirks, all);
        assert_eq!(hardware().quirks, Quirks::default());
    }

    #[test]
    fn bochs_is_known_by_its_features_and_kvm_is_not_taken_for_it() {
        let with = |basic_ecx, svm| {
            let cpuid = move |leaf, _| match leaf {
                1 => [0, 0, basic_ecx, 0],
                0x8000_0001 => [0, 0, 1 << 2, 0],
                0x8000_000a => [1, 32768, 0, svm],
                _ => [0; 4],
            };
            Processor::from_cpuid(cpuid, 7).quirks.injects_without_next_rip
        };
        assert!(with(0, 0x44f));
        assert!(!with(1 << 31, 0x44f));
        assert!(!with(0, 0x4cf));
    }

    #[test]
    fn tcg_has_nested_paging_and_sixteen_asids_and_nothing_else() {
        let tcg = tcg();
        assert_eq!((tcg.svm, tcg.asids, tcg.physical_bits), (SvmFeatures::NP, 16, 40));
        assert!(!tcg.has_next_rip());
    }

    #[test]
    fn guests_do_not_get_cr4_bits_that_the_kernel_does_not_switch() {
        assert_eq!(hardware().cr4 & (CR4_CET | CR4_LA57 | CR4_PKE), CR4_PKE);
    }
}
