//! Which mitigations of side channels a CPU needs and has.
//!
//! A protection domain, with the guests whose vCPUs it runs, is one domain of trust: what a CPU remembers of it may influence it and nobody
//! else. So branch predictors, L1D and fill buffers are cleaned where the CPU goes from one domain to another, and nowhere else;
//! `kernel/doc/SECURITY.md` says what this does not cover. The kernel itself is kept apart from what runs below it by IBRS.
//!
//! Sources: Intel, "CPUID Enumeration and Architectural MSRs" (speculative execution guidance); AMD, "Software techniques for managing
//! speculation on AMD processors", "Technical guidance for mitigating transient scheduler attacks".

use bitflags::bitflags;
use core::fmt;

/// Who made a CPU: their features stand in different leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD and Hygon.
    Amd,
    /// Somebody else, of whose flaws nothing is known.
    Other,
}

impl Vendor {
    /// The vendor that EBX of CPUID leaf 0 names.
    pub fn of(ebx: u32) -> Self {
        match &ebx.to_le_bytes() {
            b"Genu" => Vendor::Intel,
            b"Auth" | b"Hygo" => Vendor::Amd,
            _ => Vendor::Other,
        }
    }
}

/// What a CPU says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Who made it.
    pub vendor: Vendor,
    /// CPUID 07H.0 EBX.
    pub ebx7: u32,
    /// CPUID 07H.0 EDX.
    pub edx7: u32,
    /// CPUID 07H.2 EDX.
    pub edx7_2: u32,
    /// CPUID 8000_0008H EBX.
    pub ebx8: u32,
    /// CPUID 8000_0021H EAX.
    pub eax21: u32,
    /// CPUID 8000_0021H ECX.
    pub ecx21: u32,
    /// IA32_ARCH_CAPABILITIES; 0 without it, which stands for every flaw.
    pub arch_capabilities: u64,
}

impl Facts {
    /// Whether CPUID announces IA32_ARCH_CAPABILITIES.
    pub const fn has_arch_capabilities(edx7: u32) -> bool {
        edx7 >> 29 & 1 != 0
    }
}

bitflags! {
    /// What is cleaned when a CPU goes from one domain to another.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Barriers: u8 {
        /// Indirect branch predictors, by IA32_PRED_CMD, and the return stack buffer.
        const IBPB = 1 << 0;
        /// The L1 data cache, by IA32_FLUSH_CMD.
        const L1D = 1 << 1;
        /// Fill, store and load buffers, by VERW.
        const VERW = 1 << 2;
    }

    /// Flaws against which the kernel does nothing on this CPU.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Gaps: u8 {
        /// User code reads kernel memory: needs page tables of its own.
        const MELTDOWN = 1 << 0;
        /// Guests and user code steer the kernel's indirect branches: the CPU cannot keep them apart by itself.
        const SPECTRE_V2 = 1 << 1;
        /// The CPU offers no IBPB.
        const NO_IBPB = 1 << 2;
    }
}

/// What to do on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// IA32_SPEC_CTRL, to be written once; `None` leaves it alone.
    pub spec_ctrl: Option<u64>,
    /// Set EFER.AutoIBRS.
    pub auto_ibrs: bool,
    /// What to clean between domains.
    pub barriers: Barriers,
    /// After a VM exit, the first RET may follow a prediction of the guest's.
    pub guards_exits: bool,
    /// What stays open.
    pub gaps: Gaps,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let enhanced_ibrs = self.spec_ctrl.is_some_and(|value| value & IBRS != 0);
        let stibp = self.spec_ctrl.is_some_and(|value| value & STIBP != 0);
        let done = [
            (enhanced_ibrs, "enhanced IBRS"),
            (self.auto_ibrs, "AutoIBRS"),
            (stibp, "STIBP"),
            (self.barriers.contains(Barriers::IBPB), "IBPB"),
            (self.barriers.contains(Barriers::L1D), "L1D flush"),
            (self.barriers.contains(Barriers::VERW), "VERW"),
            (self.guards_exits, "guarded exits"),
        ];
        let open = [
            (self.gaps.contains(Gaps::MELTDOWN), "Meltdown"),
            (self.gaps.contains(Gaps::SPECTRE_V2), "Spectre v2 in the kernel"),
            (self.gaps.contains(Gaps::NO_IBPB), "Spectre v2 between domains"),
        ];
        list(f, "", &done)?;
        list(f, "; not mitigated: ", &open)
    }
}

/// Writes the names of what is so; "none" for an empty list that has no title.
fn list(f: &mut fmt::Formatter<'_>, title: &str, names: &[(bool, &str)]) -> fmt::Result {
    let mut separator = title;
    for (_, name) in names.iter().filter(|(is_so, _)| *is_so) {
        write!(f, "{separator}{name}")?;
        separator = ", ";
    }
    if title.is_empty() && separator.is_empty() { f.write_str("none") } else { Ok(()) }
}

impl Plan {
    /// Nothing, as `mitigations=off` asks for.
    pub const OFF: Plan = Plan {
        spec_ctrl: None,
        auto_ibrs: false,
        barriers: Barriers::empty(),
        guards_exits: false,
        gaps: Gaps::empty(),
    };

    /// What a CPU needs.
    pub fn of(facts: &Facts) -> Plan {
        match facts.vendor {
            Vendor::Intel => intel(facts),
            Vendor::Amd => amd(facts),
            Vendor::Other => Plan { gaps: Gaps::all(), ..Plan::OFF },
        }
    }
}

const IBRS: u64 = 1 << 0;
const STIBP: u64 = 1 << 1;
const BHI_DIS_S: u64 = 1 << 10;

const fn bit(register: u32, number: u32) -> bool {
    register >> number & 1 != 0
}

fn intel(facts: &Facts) -> Plan {
    let says = |number: u32| facts.arch_capabilities >> number & 1 != 0;
    let (rdcl_no, ibrs_all, skips_l1d, mds_no, taa_no) = (says(0), says(1), says(3), says(5), says(8));
    let (has_ibpb, has_l1d_flush) = (bit(facts.edx7, 26), bit(facts.edx7, 28));
    let (has_tsx, clears_by_verw, has_bhi_control) =
        (bit(facts.ebx7, 11), bit(facts.edx7, 10), bit(facts.edx7_2, 4));
    let clears_fill_buffers = says(17); // FB_CLEAR: MMIO stale data
    let clears_register_files = says(28); // RFDS_CLEAR
    let pbrsb_no = says(24);
    let leaks_buffers = clears_by_verw && (!mds_no || has_tsx && !taa_no);
    let mut barriers = Barriers::empty();
    barriers.set(Barriers::IBPB, has_ibpb);
    barriers.set(Barriers::L1D, has_l1d_flush && !rdcl_no && !skips_l1d);
    barriers.set(Barriers::VERW, leaks_buffers || clears_fill_buffers || clears_register_files);
    let mut gaps = Gaps::empty();
    gaps.set(Gaps::MELTDOWN, !rdcl_no);
    gaps.set(Gaps::SPECTRE_V2, !ibrs_all);
    gaps.set(Gaps::NO_IBPB, !has_ibpb);
    let stibp = if bit(facts.edx7, 27) { STIBP } else { 0 };
    // With enhanced IBRS it also keeps two threads of a core apart; without, IBRS would have to be written at every entry.
    let spec_ctrl = if ibrs_all { IBRS | if has_bhi_control { BHI_DIS_S } else { 0 } } else { stibp };
    Plan {
        spec_ctrl: (spec_ctrl != 0).then_some(spec_ctrl),
        auto_ibrs: false,
        barriers,
        guards_exits: ibrs_all && !pbrsb_no,
        gaps,
    }
}

fn amd(facts: &Facts) -> Plan {
    let (has_ibpb, has_stibp, auto_ibrs) = (bit(facts.ebx8, 12), bit(facts.ebx8, 15), bit(facts.eax21, 8));
    let (clears_by_verw, tsa_sq_no, tsa_l1_no) =
        (bit(facts.eax21, 5), bit(facts.ecx21, 1), bit(facts.ecx21, 2));
    let mut barriers = Barriers::empty();
    barriers.set(Barriers::IBPB, has_ibpb);
    barriers.set(Barriers::VERW, clears_by_verw && !(tsa_sq_no && tsa_l1_no));
    let mut gaps = Gaps::empty();
    gaps.set(Gaps::SPECTRE_V2, !auto_ibrs);
    gaps.set(Gaps::NO_IBPB, !has_ibpb);
    // AutoIBRS also clears the return predictor at #VMEXIT.
    Plan { spec_ctrl: has_stibp.then_some(STIBP), auto_ibrs, barriers, guards_exits: false, gaps }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Facts = Facts {
        vendor: Vendor::Intel,
        ebx7: 0,
        edx7: 0,
        edx7_2: 0,
        ebx8: 0,
        eax21: 0,
        ecx21: 0,
        arch_capabilities: 0,
    };

    /// IBRS and IBPB, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
    const SKYLAKE_MICROCODE: u32 = 0x9c00_0000 | 1 << 10;

    #[test]
    fn a_vendor_is_known_by_the_first_four_letters_of_its_name() {
        assert_eq!(Vendor::of(0x756e_6547), Vendor::Intel);
        assert_eq!(Vendor::of(0x6874_7541), Vendor::Amd);
        assert_eq!(Vendor::of(0), Vendor::Other);
    }

    #[test]
    fn an_old_cpu_without_microcode_has_gaps_and_nothing_against_them() {
        let plan = Plan::of(&NOTHING);
        assert_eq!(plan, Plan { gaps: Gaps::all(), ..Plan::OFF });
    }

    #[test]
    fn an_old_cpu_with_microcode_cleans_everything_between_domains() {
        let plan = Plan::of(&Facts { edx7: SKYLAKE_MICROCODE, ..NOTHING });
        assert_eq!(plan.barriers, Barriers::all());
        assert_eq!(plan.spec_ctrl, Some(STIBP));
        assert_eq!(plan.gaps, Gaps::MELTDOWN | Gaps::SPECTRE_V2);
    }

    #[test]
    fn enhanced_ibrs_is_set_once_and_replaces_stibp() {
        let facts = Facts { edx7: SKYLAKE_MICROCODE, edx7_2: 1 << 4, arch_capabilities: 0x12b, ..NOTHING };
        let plan = Plan::of(&facts);
        assert_eq!(plan.spec_ctrl, Some(IBRS | BHI_DIS_S));
        assert_eq!(plan.barriers, Barriers::IBPB);
        assert!(plan.guards_exits, "without PBRSB_NO the first RET after an exit is the guest's");
        assert_eq!(plan.gaps, Gaps::empty());
    }

    #[test]
    fn a_cpu_with_pbrsb_no_needs_no_guard_after_exits() {
        let facts = Facts { edx7: SKYLAKE_MICROCODE, arch_capabilities: 0x3 | 1 << 24, ..NOTHING };
        assert!(!Plan::of(&facts).guards_exits);
    }

    #[test]
    fn tsx_counts_where_mds_does_not() {
        let mut facts = Facts { edx7: 1 << 10, arch_capabilities: 1 << 5, ..NOTHING };
        assert!(!Plan::of(&facts).barriers.contains(Barriers::VERW));
        facts.ebx7 = 1 << 11;
        assert!(Plan::of(&facts).barriers.contains(Barriers::VERW));
        facts.arch_capabilities |= 1 << 8;
        assert!(!Plan::of(&facts).barriers.contains(Barriers::VERW));
    }

    #[test]
    fn stale_data_and_register_files_are_cleared_by_verw() {
        for number in [17, 28] {
            let facts = Facts { arch_capabilities: 0x123 | 1 << number, ..NOTHING };
            assert_eq!(Plan::of(&facts).barriers, Barriers::VERW);
        }
    }

    #[test]
    fn the_l1_cache_is_flushed_only_where_l1tf_reaches_it() {
        for safe in [1 << 0, 1 << 3] {
            let facts = Facts { edx7: 1 << 28, arch_capabilities: safe | 1 << 5, ..NOTHING };
            assert!(!Plan::of(&facts).barriers.contains(Barriers::L1D));
        }
    }

    #[test]
    fn a_plan_says_what_it_does_and_what_it_leaves_open() {
        use std::string::ToString;
        assert_eq!(Plan::OFF.to_string(), "none");
        assert_eq!(
            Plan::of(&NOTHING).to_string(),
            "none; not mitigated: Meltdown, Spectre v2 in the kernel, Spectre v2 between domains"
        );
        let facts = Facts { edx7: SKYLAKE_MICROCODE, arch_capabilities: 0x12b, ..NOTHING };
        assert_eq!(Plan::of(&facts).to_string(), "enhanced IBRS, IBPB, guarded exits");
    }

    #[test]
    fn amd_has_its_own_leaves() {
        let zen4 = Facts { vendor: Vendor::Amd, ebx8: 1 << 12 | 1 << 15, eax21: 1 << 8 | 1 << 5, ..NOTHING };
        let plan = Plan::of(&zen4);
        assert_eq!((plan.spec_ctrl, plan.auto_ibrs), (Some(STIBP), true));
        assert_eq!(plan.barriers, Barriers::IBPB | Barriers::VERW);
        assert_eq!(plan.gaps, Gaps::empty());
        let fixed = Facts { ecx21: 0b110, ..zen4 };
        assert_eq!(Plan::of(&fixed).barriers, Barriers::IBPB);
        let zen1 = Facts { eax21: 0, ..zen4 };
        assert_eq!(Plan::of(&zen1).gaps, Gaps::SPECTRE_V2);
    }
}
