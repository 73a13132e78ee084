use super::*;

const ALL: u32 = u32::MAX;

/// A host with every feature there is.
fn intel(leaf: u32, subleaf: u32) -> CpuidRegs {
    match (leaf, subleaf) {
        (0, _) => CpuidRegs::new(0x1f, u32::from_le_bytes(*b"Genu"), 0x6c65_746e, 0x4965_6e69),
        (4, 0..3) => CpuidRegs::new(0xfc00_4121, 1, 2, 3),
        (4, _) => CpuidRegs::default(),
        (7, 0) => CpuidRegs::new(2, ALL, ALL, ALL),
        (0xa, _) => CpuidRegs::new(0x0830_0805, 0, 15, 0x8603),
        (0xd, 2) => CpuidRegs::new(256, 576, 0, 0),
        (0xd, 5) => CpuidRegs::new(64, 1088, 0, 0),
        (0xd, 6) => CpuidRegs::new(512, 1152, 0, 0),
        (0xd, 7) => CpuidRegs::new(1024, 1664, 0, 0),
        (0xd, 9) => CpuidRegs::new(8, 2688, 0, 0),
        (0x15, _) => CpuidRegs::new(2, 292, 24_000_000, 0),
        (0x8000_0000, _) => CpuidRegs::new(0x8000_0008, 0, 0, 0),
        (0x8000_0008, _) => CpuidRegs::new(0x0000_3028, 0, 0, 0),
        _ => CpuidRegs::new(ALL, ALL, ALL, ALL),
    }
}

fn amd(leaf: u32, subleaf: u32) -> CpuidRegs {
    match leaf {
        0 => CpuidRegs::new(0xd, u32::from_le_bytes(*b"Auth"), 0x444d_4163, 0x6974_6e65),
        0x8000_0000 => CpuidRegs::new(0x8000_001f, 0, 0, 0),
        _ => intel(leaf, subleaf),
    }
}

const FACTS: HostFacts = HostFacts { machine: Machine::all(), guest_xcr0: 0x2e7, tsc_hz: 3_000_000_000 };

fn cpu(host: &dyn HostCpuid, facts: &HostFacts) -> GuestCpu {
    GuestCpu::new(host, facts, &[]).unwrap()
}

#[test]
fn virtualization_and_performance_counters_are_hidden() {
    let state = CpuidState::default();
    let guest = cpu(&intel, &FACTS);
    let leaf1 = guest.cpuid(1, 0, &state);
    assert_eq!(leaf1.ecx & (1 << 5 | 1 << 3 | 1 << 15), 0);
    assert_eq!(guest.cpuid(0xa, 0, &state), CpuidRegs::default());
    assert_eq!(cpu(&amd, &FACTS).cpuid(0x8000_0001, 0, &state).ecx & 1 << 2, 0);
}

#[test]
fn the_guest_finds_the_hypervisor_its_clock_and_its_timers() {
    let state = CpuidState::default();
    let guest = cpu(&intel, &FACTS);
    let leaf1 = guest.cpuid(1, 0, &state);
    assert_eq!(leaf1.ecx & (1 << 21 | 1 << 24 | 1 << 31), 1 << 21 | 1 << 24 | 1 << 31);
    let signature = guest.cpuid(0x4000_0000, 0, &state);
    assert_eq!(signature, CpuidRegs::new(0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d));
    assert_eq!(guest.cpuid(0x4000_0001, 0, &state).eax, 0x0100_002a);
    let facts = HostFacts { machine: FACTS.machine - Machine::APIC_VIRTUALIZATION, ..FACTS };
    let guest = cpu(&intel, &facts);
    assert_eq!(
        guest.cpuid(0x4000_0001, 0, &state).eax,
        0x0100_006a,
        "by a word, where only that spares an exit"
    );
}

#[test]
fn the_frequency_leaf_is_about_the_real_tsc_on_intel_and_absent_on_amd() {
    for tsc_hz in [50_000_000, 1_000_000_000, 5_000_000_001] {
        let facts = HostFacts { tsc_hz, ..FACTS };
        let leaf = cpu(&intel, &facts).cpuid(0x15, 0, &CpuidState::default());
        let told = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
        assert!(tsc_hz - told < 2);
    }
    assert_eq!(cpu(&amd, &FACTS).cpuid(0x15, 0, &CpuidState::default()), CpuidRegs::default());
}

#[test]
fn osxsave_and_the_apic_id_follow_the_cpu() {
    let guest = cpu(&intel, &FACTS);
    let state = CpuidState { cr4: CR4_OSXSAVE, xcr0: 3, apic_id: 7 };
    let leaf1 = guest.cpuid(1, 0, &state);
    assert_eq!((leaf1.ecx >> 27 & 1, leaf1.ebx >> 24), (1, 7));
    assert_eq!(guest.cpuid(1, 0, &CpuidState::default()).ecx >> 27 & 1, 0);
    assert_eq!(guest.cpuid(0xb, 1, &state), CpuidRegs::new(0, 1, 0x201, 7));
    assert_eq!(guest.cpuid(0xb, 9, &state), CpuidRegs::new(0, 0, 9, 7));
}

#[test]
fn an_answer_depends_on_no_other_state_than_it_says() {
    let guest = cpu(&intel, &FACTS);
    let with = |cr4, xcr0| CpuidState { cr4, xcr0, apic_id: 0 };
    for leaf in (0..0x20).chain(0x4000_0000..0x4000_0003).chain(0x8000_0000..0x8000_000a) {
        for subleaf in 0..10 {
            let answer = |cr4, xcr0| guest.cpuid(leaf, subleaf, &with(cr4, xcr0));
            if !depends_on(leaf).contains(Groups::CONTROL) {
                assert_eq!(answer(0, 1), answer(u64::MAX, 1), "{leaf:#x}");
            }
            if !depends_on(leaf).contains(Groups::XCR0) {
                assert_eq!(answer(0, 1), answer(0, 0x2e7), "{leaf:#x}");
            }
        }
    }
}

#[test]
fn the_xsave_leaf_tells_the_size_for_what_is_enabled() {
    let guest = cpu(&intel, &FACTS);
    let with = |xcr0| guest.cpuid(0xd, 0, &CpuidState { xcr0, ..CpuidState::default() });
    assert_eq!(with(3), CpuidRegs::new(0x2e7, 576, 2696, 0));
    assert_eq!(with(7).ebx, 832);
    assert_eq!(with(0xe7).ebx, 2688);
    assert_eq!(guest.cpuid(0xd, 3, &CpuidState::default()), CpuidRegs::default());
}

#[test]
fn what_the_kernel_does_not_switch_is_not_offered() {
    let facts = HostFacts { machine: Machine::XSAVE, guest_xcr0: 3, ..FACTS };
    let features = *cpu(&intel, &facts).features();
    for name in ["avx", "avx512f", "pku", "xsavec", "xsaves", "invpcid", "pcid", "rdtscp", "rdpid"] {
        assert!(!features.has(name), "{name}");
    }
    assert!(features.has("xsave") && features.has("xsaveopt"));
    let none = HostFacts { machine: Machine::empty(), ..FACTS };
    assert_eq!(cpu(&intel, &none).xcr0(), 0);
}

#[test]
fn hidden_features_are_gone() {
    let hide = ["x2apic".into(), "avx2".into()];
    let guest = GuestCpu::new(&intel, &FACTS, &hide).unwrap();
    let state = CpuidState::default();
    assert_eq!(guest.cpuid(1, 0, &state).ecx >> 21 & 1, 0);
    assert_eq!(guest.cpuid(7, 0, &state).ebx & (1 << 5 | 1 << 16), 0);
    assert!(GuestCpu::new(&intel, &FACTS, &["avx9".into()]).is_err());
}

#[test]
fn a_feature_is_never_invented_for_a_host_that_lacks_it() {
    let poor = |leaf, _| match leaf {
        0 => CpuidRegs::new(1, 0, 0, 0),
        0x8000_0000 => CpuidRegs::new(0x8000_0001, 0, 0, 0),
        // What an Intel CPU answers beyond its last leaf.
        _ => CpuidRegs::new(ALL, ALL, ALL, ALL),
    };
    let guest = cpu(&poor, &FACTS);
    assert!(!guest.features().has("avx2") && !guest.features().has("clzero"));
}

#[test]
fn caches_and_cores_of_the_host_are_not_shared_by_the_guest() {
    let leaf = cpu(&intel, &FACTS).cpuid(4, 0, &CpuidState::default());
    assert_eq!((leaf.eax, leaf.ebx), (0x121, 1));
}
