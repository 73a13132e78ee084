//! What CPUID tells a guest: the host's answers, masked by the CPU model, with the VMM's own leaves.
//!
//! The table is made once, when the VM starts; only what depends on control registers is computed at each exit.

mod leaves;

use alloc::string::String;
use hypercall_abi::boot_info::Machine;
use hypercall_abi::guest::cpuid as guest;
use hypercall_abi::vcpu::Groups;

use self::leaves::Leaves;
use crate::cpu_model::{Features, Register, UnknownFeature, WORDS, word};
use crate::facts::{CpuidRegs, HostCpuid, HostFacts};
use crate::vcpu::{CR4_OSXSAVE, CR4_PKE};

/// First leaf of the hypervisor's range.
const HYPERVISOR: u32 = 0x4000_0000;
/// Last leaf of KVM's interface that is there.
const HYPERVISOR_MAX: u32 = HYPERVISOR + 1;
/// KVM features (Linux Documentation/virt/kvm/x86/cpuid.rst): NOP_IO_DELAY, CLOCKSOURCE2, STEAL_TIME,
/// CLOCKSOURCE_STABLE.
const KVM_FEATURES: u32 = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 24;
/// KVM feature: PV_EOI. Where the hardware ends interrupts without an exit, the guest needs no other way.
const KVM_PV_EOI: u32 = 1 << 6;

/// Last basic leaf for Intel guests: the frequency leaves are synthesised.
const INTEL_MAX: u32 = 0x16;
/// Last basic leaf for other guests: XSAVE.
const OTHER_MAX: u32 = 0xd;
const EXTENDED: u32 = 0x8000_0000;
const EXTENDED_MAX: u32 = 0x8000_0008;
/// AMD repeats these bits of leaf 1 EDX in leaf 0x8000_0001.
const AMD_REPEATED: u32 = 0x0183_f3ff;

/// Leaf 1 ECX: the local APIC has x2APIC mode.
const X2APIC: u32 = 1 << 21;
/// Leaf 1 ECX: the local APIC's timer has TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: there is a hypervisor.
const HYPERVISOR_PRESENT: u32 = 1 << 31;

/// XCR0: x87 and SSE, which XSAVE always has.
const XCR0_LEGACY: u64 = 0x3;
const XCR0_AVX: u64 = 1 << 2;
const XCR0_AVX512: u64 = 0x7 << 5;
const XCR0_PKRU: u64 = 1 << 9;
/// Legacy region and header of an XSAVE area, in bytes.
const XSAVE_LEGACY_BYTES: u32 = 576;

/// The state of the CPU that a leaf's answer depends on: what [`CpuidState`] has to be right about.
pub const fn depends_on(leaf: u32) -> Groups {
    match leaf {
        1 | 7 => Groups::CONTROL,
        0xd => Groups::XCR0,
        _ => Groups::empty(),
    }
}

/// What CPUID depends on beside leaf and subleaf, as [`depends_on`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidState {
    /// CR4 of the guest.
    pub cr4: u64,
    /// XCR0 of the guest.
    pub xcr0: u64,
    /// Its local APIC's id.
    pub apic_id: u32,
}

/// The CPU that a guest sees.
#[derive(Clone, Debug)]
pub struct GuestCpu {
    leaves: Leaves,
    features: Features,
    xcr0: u64,
    crystal_hz: u32,
    is_intel: bool,
    has_pv_eoi: bool,
}

impl GuestCpu {
    /// The CPU that the model makes of this host.
    ///
    /// # Errors
    /// `hide` names a feature that does not exist.
    pub fn new(host: &dyn HostCpuid, facts: &HostFacts, hide: &[String]) -> Result<GuestCpu, UnknownFeature> {
        let (features, xcr0) = choose_features(host, facts, hide)?;
        let leaf0 = host.cpuid(0, 0);
        let is_intel = leaf0.ebx == u32::from_le_bytes(*b"Genu");
        let crystal_hz = crystal_hz(facts.tsc_hz);
        let has_pv_eoi = !facts.machine.contains(Machine::APIC_VIRTUALIZATION);
        let mut cpu = GuestCpu { leaves: Leaves::new(), features, xcr0, crystal_hz, is_intel, has_pv_eoi };
        let max = if is_intel { INTEL_MAX } else { leaf0.eax.min(OTHER_MAX) };
        cpu.set(0, 0, CpuidRegs { eax: max, ..leaf0 });
        cpu.add_basic(host);
        cpu.add_xsave(host);
        if is_intel {
            cpu.add_intel(host, facts.tsc_hz);
        }
        cpu.add_extended(host, facts);
        cpu.add_hypervisor();
        Ok(cpu)
    }

    /// Tells the guest of paravirtual devices: their pages begin at this guest-physical address (SPEC.md 11.1).
    pub fn add_devices(&mut self, address: u64, count: u32) {
        let [ebx, ecx, edx] = [0, 4, 8].map(|at| {
            let bytes = core::array::from_fn(|byte| guest::SIGNATURE[at + byte]);
            u32::from_le_bytes(bytes)
        });
        self.set(guest::BASE, 0, CpuidRegs::new(guest::BASE + guest::DEVICES, ebx, ecx, edx));
        let (low, high) = (address as u32, (address >> 32) as u32);
        self.set(guest::BASE + guest::DEVICES, 0, CpuidRegs::new(guest::VERSION, count, low, high));
    }

    /// Its features.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Whether it says that it is Intel's.
    pub fn is_intel(&self) -> bool {
        self.is_intel
    }

    /// The XCR0 bits that it has; 0 without XSAVE.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Rate of the crystal clock, which the local APIC's timer counts (SDM 3A 11.5.4), in Hz.
    pub fn crystal_hz(&self) -> u32 {
        self.crystal_hz
    }

    /// Whether the local APIC has x2APIC mode.
    pub fn has_x2apic(&self) -> bool {
        self.word(word::LEAF1_ECX) & X2APIC != 0
    }

    /// Whether the local APIC's timer has TSC-deadline mode.
    pub fn has_tsc_deadline(&self) -> bool {
        self.word(word::LEAF1_ECX) & TSC_DEADLINE != 0
    }

    /// Whether interrupts can be ended by a word of memory, as KVM has it.
    pub fn has_pv_eoi(&self) -> bool {
        self.has_pv_eoi
    }

    /// Whether there is IA32_TSC_AUX.
    pub fn has_tsc_aux(&self) -> bool {
        self.features.has("rdtscp") || self.features.has("rdpid")
    }

    /// Bits in a physical address.
    pub fn physical_bits(&self) -> u32 {
        self.leaves.get(EXTENDED_MAX, 0).map_or(36, |regs| regs.eax & 0xff)
    }

    /// Executes CPUID.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, state: &CpuidState) -> CpuidRegs {
        let Some(mut regs) = self.leaves.get(leaf, subleaf) else {
            return CpuidRegs::default();
        };
        match (leaf, subleaf) {
            (1, _) => {
                regs.ebx |= state.apic_id << 24;
                regs.ecx |= if state.cr4 & CR4_OSXSAVE != 0 { 1 << 27 } else { 0 };
            }
            (0xb, _) => regs = topology(subleaf, state.apic_id),
            (7, 0) => regs.ecx |= if state.cr4 & CR4_PKE != 0 { 1 << 4 } else { 0 },
            (0xd, 0) if self.xcr0 != 0 => regs.ebx = self.xsave_bytes(state.xcr0),
            (0xd, 1) if self.xcr0 != 0 => regs.ebx = self.compacted_bytes(state.xcr0),
            _ => {}
        }
        regs
    }

    fn set(&mut self, leaf: u32, subleaf: u32, regs: CpuidRegs) {
        self.leaves.set(leaf, subleaf, regs);
    }

    fn word(&self, index: usize) -> u32 {
        self.features.0[index]
    }

    fn add_basic(&mut self, host: &dyn HostCpuid) {
        let leaf1 = host.cpuid(1, 0);
        // EBX keeps the size that CLFLUSH works on; one logical CPU; the APIC id comes in at each exit.
        let ebx = leaf1.ebx & 0xff00 | 1 << 16;
        let (ecx, edx) = (self.word(word::LEAF1_ECX), self.word(word::LEAF1_EDX));
        self.set(1, 0, CpuidRegs::new(leaf1.eax, ebx, ecx, edx));
        // ARAT: the APIC timer goes on in every sleep state.
        self.set(6, 0, CpuidRegs::new(1 << 2, 0, 0, 0));
        let subleaves = u32::from(self.word(word::LEAF7_1_EAX) != 0);
        let (ebx, ecx) = (self.word(word::LEAF7_EBX), self.word(word::LEAF7_ECX));
        self.set(7, 0, CpuidRegs::new(subleaves, ebx, ecx, self.word(word::LEAF7_EDX)));
        self.set(7, 1, CpuidRegs::new(self.word(word::LEAF7_1_EAX), 0, 0, 0));
        if host.cpuid(0, 0).eax >= 0xb {
            self.set(0xb, 0, CpuidRegs::default());
        }
    }

    fn add_xsave(&mut self, host: &dyn HostCpuid) {
        if self.xcr0 == 0 {
            return;
        }
        for component in 2..63 {
            if self.xcr0 >> component & 1 != 0 {
                let CpuidRegs { eax, ebx, ecx, .. } = host.cpuid(0xd, component);
                self.set(0xd, component, CpuidRegs::new(eax, ebx, ecx, 0));
            }
        }
        let size = self.xsave_bytes(self.xcr0);
        self.set(0xd, 0, CpuidRegs::new(self.xcr0 as u32, 0, size, (self.xcr0 >> 32) as u32));
        self.set(0xd, 1, CpuidRegs::new(self.word(word::LEAFD_1_EAX), 0, 0, 0));
    }

    fn add_intel(&mut self, host: &dyn HostCpuid, tsc_hz: u64) {
        self.set(2, 0, host.cpuid(2, 0));
        for subleaf in 0..8 {
            let regs = host.cpuid(4, subleaf);
            if regs.eax & 0x1f == 0 {
                break;
            }
            // One core of one thread, which shares no cache.
            self.set(4, subleaf, CpuidRegs { eax: regs.eax & 0x3fff, ..regs });
        }
        let ratio = (tsc_hz / u64::from(self.crystal_hz.max(1))) as u32;
        self.set(0x15, 0, CpuidRegs::new(1, ratio, self.crystal_hz, 0));
        let mhz = (tsc_hz / 1_000_000).min(0xffff) as u32;
        self.set(0x16, 0, CpuidRegs::new(mhz, mhz, 100, 0));
    }

    fn add_extended(&mut self, host: &dyn HostCpuid, facts: &HostFacts) {
        let max = host.cpuid(EXTENDED, 0);
        self.set(EXTENDED, 0, CpuidRegs { eax: max.eax.clamp(EXTENDED, EXTENDED_MAX), ..max });
        let signature = if self.is_intel { 0 } else { host.cpuid(0x8000_0001, 0).eax };
        let repeated = if self.is_intel { 0 } else { self.word(word::LEAF1_EDX) & AMD_REPEATED };
        let (ecx, edx) = (self.word(word::EXT1_ECX), self.word(word::EXT1_EDX) | repeated);
        self.set(0x8000_0001, 0, CpuidRegs::new(signature, 0, ecx, edx));
        // Brand string, caches and TLBs.
        for leaf in 0x8000_0002..=0x8000_0006 {
            self.set(leaf, 0, host.cpuid(leaf, 0));
        }
        let invariant = u32::from(facts.machine.contains(Machine::INVARIANT_TSC)) << 8;
        self.set(0x8000_0007, 0, CpuidRegs::new(0, 0, 0, invariant));
        let widths = host.cpuid(EXTENDED_MAX, 0).eax & 0xffff;
        self.set(EXTENDED_MAX, 0, CpuidRegs::new(widths, self.word(word::EXT8_EBX), 0, 0));
    }

    fn add_hypervisor(&mut self) {
        let [ebx, ecx, edx] = [*b"KVMK", *b"VMKV", *b"M\0\0\0"].map(u32::from_le_bytes);
        self.set(HYPERVISOR, 0, CpuidRegs::new(HYPERVISOR_MAX, ebx, ecx, edx));
        let pv_eoi = if self.has_pv_eoi { KVM_PV_EOI } else { 0 };
        self.set(HYPERVISOR_MAX, 0, CpuidRegs::new(KVM_FEATURES | pv_eoi, 0, 0, 0));
    }

    /// Bytes of an XSAVE area in standard format with these components.
    fn xsave_bytes(&self, xcr0: u64) -> u32 {
        self.components(xcr0).map(|regs| regs.ebx.saturating_add(regs.eax)).fold(XSAVE_LEGACY_BYTES, u32::max)
    }

    /// Bytes of an XSAVE area in compacted format with these components (SDM 1 13.4.3).
    fn compacted_bytes(&self, xcr0: u64) -> u32 {
        self.components(xcr0).fold(XSAVE_LEGACY_BYTES, |end, regs| {
            let is_aligned = regs.ecx & 2 != 0;
            let start = if is_aligned { end.checked_next_multiple_of(64).unwrap_or(end) } else { end };
            start.saturating_add(regs.eax)
        })
    }

    fn components(&self, xcr0: u64) -> impl Iterator<Item = CpuidRegs> {
        (2..63)
            .filter(move |component| xcr0 >> component & 1 != 0)
            .filter_map(|component| self.leaves.get(0xd, component))
    }
}

/// The features and the XCR0 that a guest gets on this host.
fn choose_features(
    host: &dyn HostCpuid,
    facts: &HostFacts,
    hide: &[String],
) -> Result<(Features, u64), UnknownFeature> {
    let mut features = Features::model();
    for (index, word) in WORDS.iter().enumerate() {
        features.0[index] &= host_word(host, word.leaf, word.subleaf, word.register);
    }
    // What the VMM emulates, whatever the host has: x2APIC, the APIC's TSC-deadline mode, and its own presence.
    features.0[word::LEAF1_ECX] |= X2APIC | TSC_DEADLINE | HYPERVISOR_PRESENT;
    let offered = [
        ("xsave", facts.machine.contains(Machine::XSAVE) && facts.guest_xcr0 & XCR0_LEGACY == XCR0_LEGACY),
        ("avx", facts.guest_xcr0 & XCR0_AVX != 0),
        ("avx512f", facts.guest_xcr0 & XCR0_AVX512 == XCR0_AVX512),
        ("pku", facts.guest_xcr0 & XCR0_PKRU != 0),
        ("xsavec", facts.machine.contains(Machine::XSAVES)),
        ("invpcid", facts.machine.contains(Machine::INVPCID)),
        ("rdtscp", facts.machine.contains(Machine::RDTSCP)),
        ("rdpid", facts.machine.contains(Machine::RDTSCP)),
    ];
    for (name, _) in offered.iter().filter(|(_, is_offered)| !is_offered) {
        features.hide(name)?;
    }
    for name in hide {
        features.hide(name)?;
    }
    features.drop_dependents();
    let components =
        [("xsave", XCR0_LEGACY), ("avx", XCR0_AVX), ("avx512f", XCR0_AVX512), ("pku", XCR0_PKRU)];
    let xcr0 =
        components.iter().filter(|(name, _)| features.has(name)).fold(0, |xcr0, (_, bits)| xcr0 | bits);
    Ok((features, xcr0 & facts.guest_xcr0))
}

/// A register of the host's CPUID; 0 for a leaf or subleaf that the host does not have.
fn host_word(host: &dyn HostCpuid, leaf: u32, subleaf: u32, register: Register) -> u32 {
    let has_leaf = host.cpuid(leaf & EXTENDED, 0).eax >= leaf;
    if !has_leaf || leaf == 7 && subleaf > host.cpuid(7, 0).eax {
        return 0;
    }
    let regs = host.cpuid(leaf, subleaf);
    match register {
        Register::Eax => regs.eax,
        Register::Ebx => regs.ebx,
        Register::Ecx => regs.ecx,
        Register::Edx => regs.edx,
    }
}

/// Leaf 0xB for one CPU: a thread level and a core level, both of width 0.
fn topology(subleaf: u32, apic_id: u32) -> CpuidRegs {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let (count, kind) = match subleaf {
        0 => (1, THREAD),
        1 => (1, CORE),
        _ => (0, 0),
    };
    CpuidRegs::new(0, count, subleaf & 0xff | kind << 8, apic_id)
}

/// The largest whole fraction of the TSC's rate that fits leaf 0x15.
fn crystal_hz(tsc_hz: u64) -> u32 {
    let ratio = tsc_hz.div_ceil(u32::MAX.into()).max(1);
    (tsc_hz / ratio) as u32
}

#[cfg(test)]
mod tests;
