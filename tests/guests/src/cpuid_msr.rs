//! What CPUID shows, and what the model-specific registers hold and refuse.

use trt::cpu::{cpuid, rdmsr, wrmsr};
use trt::trap::{self, GENERAL_PROTECTION, Trap};
use trt::{check, clock, cpu, is_nacre, lapic, msr, skip};

/// An MSR that no processor has.
const UNKNOWN_MSR: u32 = 0x3f00_1234;
/// CR4.MCE.
const CR4_MCE: u64 = 1 << 6;
/// CR4.VMXE.
const CR4_VMXE: u64 = 1 << 13;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// EFER.SVME.
const EFER_SVME: u64 = 1 << 12;

/// The guest.
pub fn run() {
    common_cpuid();
    apic_base();
    read_back();
    machine_check_enable();
    efer();
    if is_nacre() {
        hypervisor_cpuid();
        refusals();
    } else {
        skip!("what Nacre shows and refuses: this board is not Nacre's");
    }
}

fn is_gp(result: Result<(), Trap>) -> bool {
    matches!(result, Err(Trap { vector: GENERAL_PROTECTION, error_code: 0, .. }))
}

fn common_cpuid() {
    let leaf1 = cpuid(1, 0);
    let needed = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 24 | 1 << 25 | 1 << 26;
    check!(eq leaf1.edx & needed, needed, "CPUID has FPU, TSC, MSR, PAE, APIC, FXSR, SSE and SSE2");
    check!(cpuid(0x8000_0001, 0).edx >> 29 & 1 != 0, "CPUID has long mode");
    let bits = cpuid(0x8000_0008, 0).eax & 0xff;
    check!((36..=52).contains(&bits), "physical addresses have {bits} bits");
    check!(
        eq leaf1.ebx >> 24, lapic::Lapic::enable(lapic::Mode::Xapic).id(),
        "CPUID and the APIC agree on the APIC ID",
    );

    if leaf1.ecx >> 26 & 1 != 0 {
        let cr4 = cpu::cr4();
        // SAFETY: OSXSAVE makes instructions available that the runtime does not use.
        unsafe { cpu::set_cr4(cr4 | CR4_OSXSAVE) };
        let on = cpuid(1, 0).ecx >> 27 & 1;
        // SAFETY: as it was before.
        unsafe { cpu::set_cr4(cr4 & !CR4_OSXSAVE) };
        let off = cpuid(1, 0).ecx >> 27 & 1;
        check!(eq(on, off), (1, 0), "CPUID's OSXSAVE follows CR4");
    }
}

/// The bit is the guest's to see, whoever's it is in the CPU.
fn machine_check_enable() {
    let cr4 = cpu::cr4();
    for value in [cr4 | CR4_MCE, cr4 & !CR4_MCE, cr4 | CR4_MCE, cr4] {
        // SAFETY: without a machine check, MCE changes nothing for the runtime.
        unsafe { cpu::set_cr4(value) };
        check!(eq cpu::cr4(), value, "CR4 reads back as written, CR4.MCE included");
    }
}

fn apic_base() {
    let base = rdmsr(msr::APIC_BASE);
    check!(eq base & !0xfff, lapic::BASE, "IA32_APIC_BASE has the usual address");
    check!(base >> 11 & 1 != 0, "the APIC is enabled");
    check!(base >> 8 & 1 != 0, "the first CPU is the bootstrap processor");
}

fn read_back() {
    let address = tproto::exit::PORT.into();
    for (name, number, value) in [
        ("IA32_STAR", msr::STAR, 0x0018_0008_1234_5678),
        ("IA32_LSTAR", msr::LSTAR, 0xffff_8000_1234_5678),
        ("IA32_CSTAR", msr::CSTAR, 0x0000_7fff_1234_5678),
        ("IA32_FMASK", msr::SFMASK, 0x4_0700),
        ("IA32_KERNEL_GS_BASE", msr::KERNEL_GS_BASE, 0xffff_9000_8765_4321),
        ("IA32_GS_BASE", msr::GS_BASE, 0x0000_1000_8765_4321),
        ("IA32_FS_BASE", msr::FS_BASE, 0xffff_a000_0000_1000),
        ("IA32_SYSENTER_CS", msr::SYSENTER_CS, 8),
        ("IA32_SYSENTER_ESP", msr::SYSENTER_ESP, address),
        ("IA32_SYSENTER_EIP", msr::SYSENTER_EIP, 0x1234_5678),
        // Memory types WC, WP, WT, UC-, UC, WB in an order that no reset leaves.
        ("IA32_PAT", msr::PAT, 0x0001_0406_0500_0706),
    ] {
        let before = rdmsr(number);
        // SAFETY: none of these matters to the runtime; memory types only say how memory is cached.
        unsafe { wrmsr(number, value) };
        // An exit in between, so that it is not only the processor that remembers.
        let _ = cpuid(0, 0);
        check!(eq rdmsr(number), value, "{name} holds what was written");
        // SAFETY: as above.
        unsafe { wrmsr(number, before) };
    }
    if cpuid(0x8000_0001, 0).edx >> 27 & 1 != 0 {
        // SAFETY: only RDTSCP reads it.
        unsafe { wrmsr(msr::TSC_AUX, 0x1234_5678) };
        check!(eq trt::user::rdtscp().1, 0x1234_5678, "RDTSCP gives IA32_TSC_AUX");
    }
}

fn efer() {
    let efer = rdmsr(msr::EFER);
    check!(efer & msr::EFER_LMA != 0, "EFER says that long mode is active");
    for (name, bit) in [("SCE", msr::EFER_SCE), ("NXE", msr::EFER_NXE)] {
        // SAFETY: no page table entry has NX, and SYSCALL is not used.
        unsafe { wrmsr(msr::EFER, efer | bit) };
        let set = rdmsr(msr::EFER) & bit != 0;
        // SAFETY: as it was.
        unsafe { wrmsr(msr::EFER, efer & !bit) };
        let clear = rdmsr(msr::EFER) & bit == 0;
        check!(set && clear, "EFER.{name} can be set and cleared");
    }
    // SAFETY: as it was.
    unsafe { wrmsr(msr::EFER, efer) };
}

fn hypervisor_cpuid() {
    check!(cpuid(0x4000_0000, 0).eax >= 0x4000_0001, "KVM's CPUID leaves are there");
    check!(clock::has_kvmclock(), "KVM's CPUID leaf offers kvmclock");
    check!(cpuid(1, 0).ecx >> 5 & 1 == 0, "VMX is hidden");
    check!(cpuid(0x8000_0001, 0).ecx >> 2 & 1 == 0, "SVM is hidden");
    check!(lapic::has_x2apic(), "x2APIC is there");
    let before = cpu::rdtsc();
    let tsc = rdmsr(msr::TSC);
    let after = cpu::rdtsc();
    check!((before..=after).contains(&tsc), "IA32_TIME_STAMP_COUNTER is what RDTSC gives");
    if cpuid(0, 0).eax >= 0x15 && cpuid(0x15, 0).eax != 0 {
        let leaf = cpuid(0x15, 0);
        let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
        let kvmclock_hz = clock::tsc_hz();
        check!(
            hz.abs_diff(kvmclock_hz) <= kvmclock_hz / 100,
            "leaf 15H's TSC rate of {hz} Hz is kvmclock's of {kvmclock_hz} Hz"
        );
    } else {
        skip!("leaf 15H is not offered");
    }
}

/// Whether a WRMSR raises #GP.
fn is_refused(number: u32, value: u64) -> bool {
    // SAFETY: only for values that raise #GP, or else enable what the runtime does not use.
    let write = || unsafe { wrmsr(number, value) };
    is_gp(trap::catch(write))
}

fn refusals() {
    check!(is_gp(trap::catch(|| rdmsr(UNKNOWN_MSR)).map(|_| ())), "RDMSR of an unknown MSR raises #GP");
    check!(is_refused(UNKNOWN_MSR, 0), "WRMSR of an unknown MSR raises #GP");
    let efer = rdmsr(msr::EFER);
    check!(is_refused(msr::EFER, efer | EFER_SVME), "EFER.SVME cannot be set");
    check!(is_refused(msr::PAT, 2), "a reserved memory type in IA32_PAT raises #GP");
    let cr4 = cpu::cr4();
    // SAFETY: raises #GP, else enables what is not used.
    let set_vmxe = || unsafe { cpu::set_cr4(cr4 | CR4_VMXE) };
    check!(is_gp(trap::catch(set_vmxe)), "CR4.VMXE cannot be set");
    check!(eq cpu::cr4(), cr4, "CR4 is unchanged after a refused write");
    check!(eq rdmsr(msr::EFER), efer, "EFER is unchanged after a refused write");
}
