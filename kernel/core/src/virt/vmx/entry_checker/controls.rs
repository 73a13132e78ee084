//! VM-execution, VM-exit and VM-entry controls (SDM 3C 26.2.1).

use super::super::control_registers::CR0_PE;
use super::super::controls::{Allowed, entry, exit, pin, primary, secondary};
use super::super::fields::{self, Field};
use super::{Broken, Fields, Machine, holds};

/// Controls that have rules below, or need none; every other one must be a reserved bit whose only setting is 1.
const KNOWN_PIN: u32 = pin::EXTERNAL_INTERRUPT_EXITING
    | pin::NMI_EXITING
    | pin::VIRTUAL_NMIS
    | pin::PREEMPTION_TIMER
    | POSTED_INTERRUPTS;
/// Bits 2, 3, 7, 9 to 12, 15, 16, 19 to 25 and 28 to 31; the monitor trap flag is not among them.
const KNOWN_PRIMARY: u32 = 0xf3f9_9e8c;
const KNOWN_SECONDARY: u32 = secondary::EPT
    | secondary::RDTSCP
    | secondary::VPID
    | secondary::WBINVD_EXITING
    | secondary::UNRESTRICTED_GUEST
    | secondary::INVPCID
    | secondary::ENCLS_EXITING
    | secondary::XSAVES
    | APIC_ACCESSES
    | secondary::X2APIC_MODE
    | APIC_REGISTERS
    | secondary::INTERRUPT_DELIVERY
    | PML;
const KNOWN_EXIT: u32 = exit::SAVE_DEBUG_CONTROLS
    | exit::HOST_64_BIT
    | exit::ACKNOWLEDGE_INTERRUPT
    | exit::SAVE_PAT
    | exit::LOAD_PAT
    | exit::SAVE_EFER
    | exit::LOAD_EFER
    | SAVE_TIMER;
const KNOWN_ENTRY: u32 =
    entry::LOAD_DEBUG_CONTROLS | entry::IA32E_MODE_GUEST | entry::LOAD_PAT | entry::LOAD_EFER;

const POSTED_INTERRUPTS: u32 = 1 << 7;
const IO_BITMAPS: u32 = 1 << 25;
const APIC_ACCESSES: u32 = 1 << 0;
const APIC_REGISTERS: u32 = 1 << 8;
const PML: u32 = 1 << 17;
const SAVE_TIMER: u32 = 1 << 22;

const IO_BITMAP_A: Field<u64> = Field::new(0x2000);
const IO_BITMAP_B: Field<u64> = Field::new(0x2002);
const EXIT_MSR_STORE: Field<u64> = Field::new(0x2006);
const EXIT_MSR_LOAD: Field<u64> = Field::new(0x2008);
const ENTRY_MSR_LOAD: Field<u64> = Field::new(0x200a);
const PML_ADDRESS: Field<u64> = Field::new(0x200e);
const APIC_ACCESS: Field<u64> = Field::new(0x2014);
const POSTED_INTERRUPT: Field<u64> = Field::new(0x2016);
const POSTED_VECTOR: Field<u16> = Field::new(0x0002);
const TPR_THRESHOLD: Field<u32> = Field::new(0x401c);

const EXECUTION: &str = "26.2.1.1";
const EXIT: &str = "26.2.1.2";
const ENTRY: &str = "26.2.1.3";

/// The control words.
struct Words {
    pin: u32,
    primary: u32,
    secondary: u32,
    exit: u32,
    entry: u32,
}

pub(super) fn check(vmcs: &impl Fields, machine: &Machine<'_>) -> Result<(), Broken> {
    let primary = vmcs.read(fields::PRIMARY_CONTROLS);
    let words = Words {
        pin: vmcs.read(fields::PIN_CONTROLS),
        primary,
        secondary: if primary & primary::SECONDARY_CONTROLS != 0 {
            vmcs.read(fields::SECONDARY_CONTROLS)
        } else {
            0
        },
        exit: vmcs.read(fields::EXIT_CONTROLS),
        entry: vmcs.read(fields::ENTRY_CONTROLS),
    };
    check_words(&words, machine)?;
    check_execution(vmcs, machine, &words)?;
    check_apic(vmcs, machine, &words)?;
    check_nested_paging(vmcs, machine, &words)?;
    check_msr_lists(vmcs, machine)?;
    holds(
        words.pin & pin::PREEMPTION_TIMER != 0 || words.exit & SAVE_TIMER == 0,
        EXIT,
        "the preemption timer is saved only where it is active",
    )?;
    check_event(vmcs, machine, &words)
}

/// Each word has the bits that must be 1, and only bits that may be 1.
fn check_words(words: &Words, machine: &Machine<'_>) -> Result<(), Broken> {
    let caps = machine.capabilities;
    let is_allowed = |word: u32, allowed: Allowed| {
        word & allowed.must_be_one() == allowed.must_be_one() && word & !allowed.may_be_one() == 0
    };
    let is_known = |word: u32, allowed: Allowed, known: u32| word & !known & !allowed.must_be_one() == 0;
    let has_secondary = words.primary & primary::SECONDARY_CONTROLS != 0;
    holds(is_allowed(words.pin, caps.pin), EXECUTION, "reserved bits of the pin-based controls")?;
    holds(
        is_allowed(words.primary, caps.primary),
        EXECUTION,
        "reserved bits of the primary processor-based controls",
    )?;
    holds(
        !has_secondary || is_allowed(words.secondary, caps.secondary),
        EXECUTION,
        "reserved bits of the secondary processor-based controls",
    )?;
    holds(is_allowed(words.exit, caps.exit), EXIT, "reserved bits of the VM-exit controls")?;
    holds(is_allowed(words.entry, caps.entry), ENTRY, "reserved bits of the VM-entry controls")?;
    holds(
        is_known(words.pin, caps.pin, KNOWN_PIN)
            && is_known(words.primary, caps.primary, KNOWN_PRIMARY)
            && is_known(words.secondary, caps.secondary, KNOWN_SECONDARY)
            && is_known(words.exit, caps.exit, KNOWN_EXIT)
            && is_known(words.entry, caps.entry, KNOWN_ENTRY),
        "24.6",
        "a control is on whose rules the entry checker does not know",
    )
}

fn check_execution(vmcs: &impl Fields, machine: &Machine<'_>, words: &Words) -> Result<(), Broken> {
    let targets = machine.capabilities.misc >> 16 & 0x1ff;
    holds(
        vmcs.read(fields::CR3_TARGET_COUNT) as u64 <= targets,
        EXECUTION,
        "no more CR3 targets than the CPU has",
    )?;
    if words.primary & IO_BITMAPS != 0 {
        holds(
            machine.is_address(vmcs.read(IO_BITMAP_A), 4096)
                && machine.is_address(vmcs.read(IO_BITMAP_B), 4096),
            EXECUTION,
            "addresses of the I/O bitmaps",
        )?;
    }
    if words.primary & primary::MSR_BITMAPS != 0 {
        holds(
            machine.is_address(vmcs.read(fields::MSR_BITMAP), 4096),
            EXECUTION,
            "address of the MSR bitmap",
        )?;
    }
    holds(
        words.pin & pin::VIRTUAL_NMIS == 0 || words.pin & pin::NMI_EXITING != 0,
        EXECUTION,
        "virtual NMIs need NMI exiting",
    )?;
    holds(
        words.primary & primary::NMI_WINDOW_EXITING == 0 || words.pin & pin::VIRTUAL_NMIS != 0,
        EXECUTION,
        "NMI-window exiting needs virtual NMIs",
    )
}

/// The virtual APIC.
fn check_apic(vmcs: &impl Fields, machine: &Machine<'_>, words: &Words) -> Result<(), Broken> {
    let has_shadow = words.primary & primary::TPR_SHADOW != 0;
    let has = |control: u32| words.secondary & control != 0;
    if has_shadow {
        holds(
            machine.is_address(vmcs.read(fields::VIRTUAL_APIC), 4096),
            EXECUTION,
            "address of the virtual-APIC page",
        )?;
        holds(
            has(secondary::INTERRUPT_DELIVERY) || vmcs.read(TPR_THRESHOLD) >> 4 == 0,
            EXECUTION,
            "reserved bits of the TPR threshold",
        )?;
    }
    holds(
        has_shadow || !has(secondary::X2APIC_MODE | APIC_REGISTERS | secondary::INTERRUPT_DELIVERY),
        EXECUTION,
        "APIC virtualization needs the TPR shadow",
    )?;
    holds(
        !has(APIC_ACCESSES) || machine.is_address(vmcs.read(APIC_ACCESS), 4096),
        EXECUTION,
        "address of the APIC-access page",
    )?;
    holds(
        !(has(secondary::X2APIC_MODE) && has(APIC_ACCESSES)),
        EXECUTION,
        "x2APIC mode and APIC accesses are not virtualized together",
    )?;
    holds(
        !has(secondary::INTERRUPT_DELIVERY) || words.pin & pin::EXTERNAL_INTERRUPT_EXITING != 0,
        EXECUTION,
        "virtual-interrupt delivery needs external-interrupt exiting",
    )?;
    holds(
        words.pin & POSTED_INTERRUPTS == 0
            || has(secondary::INTERRUPT_DELIVERY)
                && words.exit & exit::ACKNOWLEDGE_INTERRUPT != 0
                && vmcs.read(POSTED_VECTOR) < 256
                && machine.is_address(vmcs.read(POSTED_INTERRUPT), 64),
        EXECUTION,
        "what posted interrupts need",
    )
}

fn check_nested_paging(vmcs: &impl Fields, machine: &Machine<'_>, words: &Words) -> Result<(), Broken> {
    let has = |control: u32| words.secondary & control != 0;
    holds(!has(secondary::VPID) || vmcs.read(fields::VPID) != 0, EXECUTION, "a VPID is not 0")?;
    holds(
        has(secondary::EPT) || !has(secondary::UNRESTRICTED_GUEST | PML),
        EXECUTION,
        "unrestricted guest and page-modification logging need EPT",
    )?;
    holds(
        !has(PML) || machine.is_address(vmcs.read(PML_ADDRESS), 4096),
        EXECUTION,
        "address of the page-modification log",
    )?;
    if !has(secondary::EPT) {
        return Ok(());
    }
    let pointer = vmcs.read(fields::EPT_POINTER);
    let caps = machine.capabilities.ept_vpid;
    let is_type = match pointer & 7 {
        0 => caps >> 8 & 1 != 0,
        6 => caps >> 14 & 1 != 0,
        _ => false,
    };
    holds(is_type, EXECUTION, "memory type in the EPT pointer")?;
    let is_length = match pointer >> 3 & 7 {
        3 => caps >> 6 & 1 != 0,
        4 => caps >> 7 & 1 != 0,
        _ => false,
    };
    holds(is_length, EXECUTION, "page-walk length in the EPT pointer")?;
    holds(
        pointer >> 6 & 1 == 0 || caps >> 21 & 1 != 0,
        EXECUTION,
        "accessed and dirty flags in the EPT pointer",
    )?;
    holds(
        pointer & 0xf80 == 0 && pointer >> machine.physical_bits == 0,
        EXECUTION,
        "reserved bits of the EPT pointer",
    )
}

fn check_msr_lists(vmcs: &impl Fields, machine: &Machine<'_>) -> Result<(), Broken> {
    const ENTRY_BYTES: u64 = 16;
    let is_list = |count: u32, address: u64| {
        let last = (count as u64 * ENTRY_BYTES).checked_sub(1).map(|offset| address + offset);
        last.is_none_or(|last| machine.is_address(address, ENTRY_BYTES) && last >> machine.physical_bits == 0)
    };
    holds(
        is_list(vmcs.read(fields::EXIT_MSR_STORE_COUNT), vmcs.read(EXIT_MSR_STORE)),
        EXIT,
        "address of the VM-exit MSR-store list",
    )?;
    holds(
        is_list(vmcs.read(fields::EXIT_MSR_LOAD_COUNT), vmcs.read(EXIT_MSR_LOAD)),
        EXIT,
        "address of the VM-exit MSR-load list",
    )?;
    holds(
        is_list(vmcs.read(fields::ENTRY_MSR_LOAD_COUNT), vmcs.read(ENTRY_MSR_LOAD)),
        ENTRY,
        "address of the VM-entry MSR-load list",
    )
}

/// The event that the entry injects.
fn check_event(vmcs: &impl Fields, machine: &Machine<'_>, words: &Words) -> Result<(), Broken> {
    const NMI: u32 = 2;
    const EXCEPTION: u32 = 3;
    const OTHER: u32 = 7;
    let info = vmcs.read(fields::ENTRY_INTERRUPTION_INFO);
    if info >> 31 == 0 {
        return Ok(());
    }
    let (vector, kind, has_code) = (info & 0xff, info >> 8 & 7, info >> 11 & 1 != 0);
    let has_trap_flag = machine.capabilities.primary.may_be_one() >> 27 & 1 != 0;
    holds(kind != 1 && (kind != OTHER || has_trap_flag), ENTRY, "type of the injected event")?;
    let is_vector = match kind {
        NMI => vector == 2,
        EXCEPTION => vector < 32,
        OTHER => vector == 0,
        _ => true,
    };
    holds(is_vector, ENTRY, "vector of the injected event")?;
    let is_protected =
        words.secondary & secondary::UNRESTRICTED_GUEST == 0 || vmcs.read(fields::GUEST_CR0) & CR0_PE != 0;
    let wants_code = is_protected && kind == EXCEPTION && matches!(vector, 8 | 10..=14 | 17);
    // IA32_VMX_BASIC[56]: the CPU leaves the choice to software for exceptions in protected mode.
    let is_free = machine.capabilities.basic >> 56 & 1 != 0 && is_protected && kind == EXCEPTION;
    holds(has_code == wants_code || is_free, ENTRY, "error code of the injected event")?;
    holds(info & 0x7fff_f000 == 0, ENTRY, "reserved bits of the injected event")?;
    holds(
        !has_code || vmcs.read(fields::ENTRY_ERROR_CODE) >> 15 == 0,
        ENTRY,
        "reserved bits of the injected error code",
    )?;
    let shortest = if machine.capabilities.misc >> 30 & 1 != 0 { 0 } else { 1 };
    let length = vmcs.read(fields::ENTRY_INSTRUCTION_LENGTH);
    let is_software = matches!(kind, 4..=6);
    holds(
        !is_software || (shortest..=15).contains(&length),
        ENTRY,
        "instruction length of the injected event",
    )
}
