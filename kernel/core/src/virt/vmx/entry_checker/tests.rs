use super::super::controls::tests::skylake;
use super::super::controls::{Capabilities, entry, exit, primary, secondary};
use super::super::fields::{self, Field, GUEST_LDTR, GUEST_SEGMENTS, GUEST_TR, Width};
use super::*;
use hypercall_abi::vcpu::{CS, DS, FS, SS};
use std::collections::HashMap;

/// A VMCS, field by field; what was not written is 0.
#[derive(Clone)]
struct Vmcs(HashMap<u32, u64>);

impl Fields for Vmcs {
    fn read<W: Width>(&self, field: Field<W>) -> W {
        W::from_raw(self.0.get(&field.encoding()).copied().unwrap_or(0))
    }
}

impl Vmcs {
    fn set<W: Width>(&mut self, field: Field<W>, value: W) -> &mut Self {
        self.0.insert(field.encoding(), value.into_raw());
        self
    }

    fn raw(&mut self, encoding: u32, value: u64) -> &mut Self {
        self.0.insert(encoding, value);
        self
    }

    fn or<W: Width>(&mut self, field: Field<W>, bits: u64) -> &mut Self {
        let old = self.read(field).into_raw();
        self.0.insert(field.encoding(), old | bits);
        self
    }

    fn and_not<W: Width>(&mut self, field: Field<W>, bits: u64) -> &mut Self {
        let old = self.read(field).into_raw();
        self.0.insert(field.encoding(), old & !bits);
        self
    }

    fn segment(&mut self, fields: &fields::SegmentFields, access: u32, limit: u32) -> &mut Self {
        self.set(fields.access, access).set(fields.limit, limit)
    }
}

/// A guest in 64-bit mode, as the kernel sets it up.
fn long_mode() -> Vmcs {
    let controls = Capabilities::read(skylake).choose().unwrap();
    let mut vmcs = Vmcs(HashMap::new());
    vmcs.set(fields::PIN_CONTROLS, controls.pin)
        .set(fields::PRIMARY_CONTROLS, controls.primary)
        .set(fields::SECONDARY_CONTROLS, controls.secondary)
        .set(fields::EXIT_CONTROLS, controls.exit)
        .set(fields::ENTRY_CONTROLS, controls.entry | entry::IA32E_MODE_GUEST)
        .set(fields::VPID, 1)
        .set(fields::MSR_BITMAP, 0x5000)
        .set(fields::EPT_POINTER, 0x601e)
        .set(fields::VMCS_LINK_POINTER, u64::MAX)
        .set(fields::HOST_CR0, 0x8001_0033)
        .set(fields::HOST_CR4, 0x2020)
        .set(fields::HOST_CR3, 0x7000)
        .set(fields::HOST_EFER, 0xd01)
        .set(fields::HOST_PAT, 0x0007_0406_0007_0406)
        .set(fields::HOST_CS_SELECTOR, 0x8)
        .set(fields::HOST_SS_SELECTOR, 0x10)
        .set(fields::HOST_TR_SELECTOR, 0x28)
        .set(fields::HOST_RIP, 0xffff_ffff_8010_0000)
        .set(fields::HOST_GS_BASE, 0xffff_8000_0000_0000)
        .set(fields::GUEST_CR0, 0x8000_0031)
        .set(fields::GUEST_CR4, 0x2060)
        .set(fields::GUEST_EFER, 0xd00)
        .set(fields::GUEST_PAT, 0x0007_0406_0007_0406)
        .set(fields::GUEST_RFLAGS, 0x202)
        .set(fields::GUEST_DR7, 0x400)
        .segment(&GUEST_SEGMENTS[CS], 0xa09b, u32::MAX)
        .segment(&GUEST_TR, 0x8b, 0x67)
        .segment(&GUEST_LDTR, 0x82, 0xffff);
    for (index, segment) in GUEST_SEGMENTS.iter().enumerate() {
        if index != CS {
            vmcs.segment(segment, 0xc093, u32::MAX);
        }
    }
    vmcs
}

/// A guest in real mode after reset.
fn real_mode() -> Vmcs {
    let mut vmcs = long_mode();
    vmcs.and_not(fields::ENTRY_CONTROLS, entry::IA32E_MODE_GUEST as u64)
        .set(fields::GUEST_CR0, 0x30)
        .set(fields::GUEST_CR4, 0x2040)
        .set(fields::GUEST_EFER, 0)
        .set(fields::GUEST_RFLAGS, 2);
    for (index, segment) in GUEST_SEGMENTS.iter().enumerate() {
        let access = if index == CS { 0x9b } else { 0x93 };
        vmcs.segment(segment, access, 0xffff);
    }
    vmcs
}

fn result(vmcs: &Vmcs) -> Result<(), Broken> {
    let capabilities = Capabilities::read(skylake);
    let machine = Machine { capabilities: &capabilities, physical_bits: 40 };
    check_entry(vmcs, &machine)
}

/// The rule that a change of a valid VMCS breaks: its section and its words.
#[track_caller]
fn breaks_in(mut vmcs: Vmcs, section: &str, words: &str, change: impl FnOnce(&mut Vmcs)) -> Broken {
    assert_eq!(result(&vmcs), Ok(()));
    change(&mut vmcs);
    let broken = result(&vmcs).expect_err("the rule should fail");
    assert_eq!(broken.section, section, "{broken:?}");
    assert!(broken.rule.contains(words), "{broken:?}");
    broken
}

#[track_caller]
fn breaks(section: &str, words: &str, change: impl FnOnce(&mut Vmcs)) -> Broken {
    breaks_in(long_mode(), section, words, change)
}

const HOLE: u64 = 1 << 47;
const BEYOND: u64 = 1 << 40;

#[test]
fn what_the_kernel_sets_up_is_accepted() {
    assert_eq!(result(&long_mode()), Ok(()));
    assert_eq!(result(&real_mode()), Ok(()));
}

#[test]
fn each_control_word_is_held_against_its_capability_msr() {
    let words: [(Field<u32>, u64, u64, &str); 5] = [
        (fields::PIN_CONTROLS, 1 << 7, 1 << 1, "pin-based"),
        (fields::PRIMARY_CONTROLS, 1 << 27, 1 << 1, "primary"),
        (fields::SECONDARY_CONTROLS, 1 << 22, 0, "secondary"),
        (fields::EXIT_CONTROLS, 1 << 30, 1 << 0, "VM-exit"),
        (fields::ENTRY_CONTROLS, 1 << 20, 1 << 0, "VM-entry"),
    ];
    for (field, not_allowed, must, words) in words {
        let vmcs = long_mode();
        let section = match words {
            "VM-exit" => "26.2.1.2",
            "VM-entry" => "26.2.1.3",
            _ => "26.2.1.1",
        };
        breaks_in(vmcs.clone(), section, words, |vmcs| {
            vmcs.or(field, not_allowed);
        });
        if must != 0 {
            breaks_in(vmcs, section, words, |vmcs| {
                vmcs.and_not(field, must);
            });
        }
    }
}

#[test]
fn a_control_without_rules_is_no_control_to_use() {
    let broken = breaks("24.6", "does not know", |vmcs| {
        vmcs.or(fields::SECONDARY_CONTROLS, 1 << 13);
    });
    assert_eq!(broken.cause, Cause::Kernel);
}

#[test]
fn addresses_of_control_structures_are_aligned_and_physical() {
    for bad in [0x5001, BEYOND] {
        breaks("26.2.1.1", "MSR bitmap", |vmcs| {
            vmcs.set(fields::MSR_BITMAP, bad);
        });
        breaks("26.2.1.1", "I/O bitmaps", |vmcs| {
            vmcs.or(fields::PRIMARY_CONTROLS, 1 << 25).raw(0x2002, bad);
        });
        breaks("26.2.1.1", "virtual-APIC page", |vmcs| {
            vmcs.or(fields::PRIMARY_CONTROLS, 1 << 21).raw(0x2012, bad);
        });
        breaks("26.2.1.1", "modification log", |vmcs| {
            vmcs.or(fields::SECONDARY_CONTROLS, 1 << 17).raw(0x200e, bad);
        });
        breaks("26.2.1.1", "APIC-access page", |vmcs| {
            vmcs.or(fields::SECONDARY_CONTROLS, 1 << 0).raw(0x2014, bad);
        });
    }
    for (count, address, words) in [
        (fields::EXIT_MSR_STORE_COUNT, 0x2006, "MSR-store list"),
        (fields::EXIT_MSR_LOAD_COUNT, 0x2008, "VM-exit MSR-load"),
        (fields::ENTRY_MSR_LOAD_COUNT, 0x200a, "VM-entry MSR-load"),
    ] {
        let section = if words.contains("entry") { "26.2.1.3" } else { "26.2.1.2" };
        for bad in [8, BEYOND, BEYOND - 16] {
            breaks(section, words, |vmcs| {
                vmcs.set(count, 2).raw(address, bad);
            });
        }
    }
}

#[test]
fn nmi_controls_depend_on_each_other() {
    breaks("26.2.1.1", "need NMI exiting", |vmcs| {
        vmcs.and_not(fields::PIN_CONTROLS, 1 << 3);
    });
    breaks("26.2.1.1", "needs virtual NMIs", |vmcs| {
        vmcs.and_not(fields::PIN_CONTROLS, 1 << 5)
            .or(fields::PRIMARY_CONTROLS, primary::NMI_WINDOW_EXITING as u64);
    });
}

#[test]
fn apic_virtualization_needs_what_the_manual_says() {
    breaks("26.2.1.1", "needs the TPR shadow", |vmcs| {
        vmcs.or(fields::SECONDARY_CONTROLS, 1 << 9);
    });
    breaks("26.2.1.1", "not virtualized together", |vmcs| {
        vmcs.or(fields::PRIMARY_CONTROLS, 1 << 21).or(fields::SECONDARY_CONTROLS, 1 << 0 | 1 << 4);
    });
    breaks("26.2.1.1", "needs external-interrupt exiting", |vmcs| {
        vmcs.or(fields::PRIMARY_CONTROLS, 1 << 21)
            .or(fields::SECONDARY_CONTROLS, 1 << 9)
            .and_not(fields::PIN_CONTROLS, 1);
    });
    breaks("26.2.1.1", "TPR threshold", |vmcs| {
        vmcs.or(fields::PRIMARY_CONTROLS, 1 << 21).raw(0x401c, 16);
    });
}

#[test]
fn nested_paging_fields_are_checked() {
    breaks("26.2.1.1", "VPID", |vmcs| {
        vmcs.set(fields::VPID, 0);
    });
    breaks("26.2.1.1", "need EPT", |vmcs| {
        vmcs.and_not(fields::SECONDARY_CONTROLS, secondary::EPT as u64);
    });
    for (pointer, words) in [
        (0x6019, "memory type"),
        (0x6006, "page-walk length"),
        (0x6026, "page-walk length"),
        (0x609e, "reserved bits"),
        (BEYOND | 0x601e, "reserved bits"),
    ] {
        breaks("26.2.1.1", words, |vmcs| {
            vmcs.set(fields::EPT_POINTER, pointer);
        });
    }
    breaks("26.2.1.1", "CR3 targets", |vmcs| {
        vmcs.set(fields::CR3_TARGET_COUNT, 5);
    });
    breaks("26.2.1.2", "preemption timer", |vmcs| {
        vmcs.and_not(fields::PIN_CONTROLS, 1 << 6).or(fields::EXIT_CONTROLS, 1 << 22);
    });
}

#[test]
fn injected_events_are_checked() {
    const VALID: u32 = 1 << 31;
    let with = |info: u32, words: &str| {
        breaks("26.2.1.3", words, |vmcs| {
            vmcs.set(fields::ENTRY_INTERRUPTION_INFO, VALID | info).set(fields::ENTRY_INSTRUCTION_LENGTH, 16);
        });
    };
    with(1 << 8, "type");
    with(7 << 8, "type");
    with(2 << 8 | 3, "vector");
    with(3 << 8 | 32, "vector");
    with(3 << 8 | 13, "error code");
    with(3 << 8 | 6 | 1 << 11, "error code");
    with(32 | 1 << 11, "error code");
    with(32 | 1 << 12, "reserved bits");
    with(4 << 8 | 3, "instruction length");
    breaks("26.2.1.3", "injected error code", |vmcs| {
        vmcs.set(fields::ENTRY_INTERRUPTION_INFO, VALID | 3 << 8 | 13 | 1 << 11)
            .set(fields::ENTRY_ERROR_CODE, 1 << 15);
    });
    breaks_in(real_mode(), "26.2.1.3", "error code", |vmcs| {
        vmcs.set(fields::ENTRY_INTERRUPTION_INFO, VALID | 3 << 8 | 13 | 1 << 11);
    });
    breaks_in(real_mode(), "26.3.1.4", "external interrupt", |vmcs| {
        vmcs.set(fields::ENTRY_INTERRUPTION_INFO, VALID | 32);
    });
    breaks("26.3.1.5", "no external interrupt", |vmcs| {
        vmcs.set(fields::ENTRY_INTERRUPTION_INFO, VALID | 32).set(fields::GUEST_INTERRUPTIBILITY, 1);
    });
    for (state, words) in [(2, "NMI is injected in a shadow"), (8, "NMIs are blocked")] {
        breaks("26.3.1.5", words, |vmcs| {
            vmcs.set(fields::ENTRY_INTERRUPTION_INFO, VALID | 2 << 8 | 2)
                .set(fields::GUEST_INTERRUPTIBILITY, state);
        });
    }
}

#[test]
fn host_state_is_checked() {
    breaks("26.2.2", "host CR0", |vmcs| {
        vmcs.and_not(fields::HOST_CR0, 1 << 5);
    });
    breaks("26.2.2", "host CR4", |vmcs| {
        vmcs.and_not(fields::HOST_CR4, 1 << 13);
    });
    breaks("26.2.2", "host CR3", |vmcs| {
        vmcs.or(fields::HOST_CR3, BEYOND);
    });
    breaks("26.2.2", "SYSENTER", |vmcs| {
        vmcs.set(fields::HOST_SYSENTER_EIP, HOLE);
    });
    breaks("26.2.2", "PAT", |vmcs| {
        vmcs.set(fields::HOST_PAT, 2);
    });
    for efer in [0x901, 0xc01, 0x1d01] {
        breaks("26.2.2", "EFER", |vmcs| {
            vmcs.set(fields::HOST_EFER, efer);
        });
    }
    breaks("26.2.3", "RPL and TI", |vmcs| {
        vmcs.set(fields::HOST_DS_SELECTOR, 3);
    });
    breaks("26.2.3", "not null", |vmcs| {
        vmcs.set(fields::HOST_TR_SELECTOR, 0);
    });
    for field in [fields::HOST_GS_BASE, fields::HOST_TR_BASE, fields::HOST_IDTR_BASE] {
        breaks("26.2.3", "bases", |vmcs| {
            vmcs.set(field, HOLE);
        });
    }
    breaks("26.2.4", "host RIP", |vmcs| {
        vmcs.set(fields::HOST_RIP, HOLE);
    });
    breaks("26.2.4", "CR4.PAE", |vmcs| {
        vmcs.and_not(fields::HOST_CR4, 1 << 5);
    });
    breaks("26.2.4", "address-space size", |vmcs| {
        vmcs.and_not(fields::EXIT_CONTROLS, exit::HOST_64_BIT as u64).set(fields::HOST_EFER, 0);
    });
}

#[test]
fn guest_control_registers_and_msrs_are_checked() {
    const SECTION: &str = "26.3.1.1";
    for (field, bits, words) in [
        (fields::GUEST_CR0, 1 << 32, "fixed bits of guest CR0"),
        (fields::GUEST_CR4, 1 << 23, "fixed bits of guest CR4"),
        (fields::GUEST_CR3, BEYOND, "CR3"),
        (fields::GUEST_DEBUGCTL, 1 << 16, "DEBUGCTL"),
        (fields::GUEST_DR7, 1 << 32, "DR7"),
        (fields::GUEST_SYSENTER_ESP, HOLE, "SYSENTER"),
        (fields::GUEST_PAT, 8 << 8, "PAT"),
        (fields::GUEST_EFER, 1 << 12, "reserved bits of guest IA32_EFER"),
    ] {
        let broken = breaks(SECTION, words, |vmcs| {
            vmcs.or(field, bits);
        });
        assert_eq!(broken.cause, Cause::Kernel);
    }
    breaks(SECTION, "fixed bits of guest CR0", |vmcs| {
        vmcs.and_not(fields::GUEST_CR0, 1 << 5);
    });
    breaks(SECTION, "PG needs PE", |vmcs| {
        vmcs.and_not(fields::GUEST_CR0, 1);
    });
    breaks(SECTION, "PAE paging", |vmcs| {
        vmcs.and_not(fields::GUEST_CR4, 1 << 5);
    });
    breaks(SECTION, "CR4.MCE", |vmcs| {
        vmcs.and_not(fields::GUEST_CR4, 1 << 6);
    });
    breaks(SECTION, "LMA", |vmcs| {
        vmcs.and_not(fields::GUEST_EFER, 1 << 8);
    });
    breaks_in(real_mode(), SECTION, "PCIDE", |vmcs| {
        vmcs.or(fields::GUEST_CR4, 1 << 17);
    });
}

#[test]
fn guest_segments_are_checked_against_the_mode() {
    const SECTION: &str = "26.3.1.2";
    let code = &GUEST_SEGMENTS[CS];
    for (access, words) in [
        (0xa093, "type of CS"),
        (0xa0fb, "DPL of CS"),
        (0xa01b, "access rights of CS"),
        (0xa19b, "access rights of CS"),
        (0xe09b, "64 and 32 bits"),
        (0x209b, "granularity of CS"),
    ] {
        let broken = breaks(SECTION, words, |vmcs| {
            // Type 3 is fine for an unrestricted guest with DPL 0; 2 is not.
            let access = if access == 0xa093 { 0xa092 } else { access };
            vmcs.set(code.access, access);
        });
        assert_eq!(broken.cause, Cause::Combination);
    }
    for (access, words) in [(0xc09b, "type of SS"), (0xc013, "access rights of SS"), (0x4093, "granularity")]
    {
        breaks(SECTION, words, |vmcs| {
            vmcs.set(GUEST_SEGMENTS[SS].access, access);
        });
    }
    breaks_in(real_mode(), SECTION, "0 in real mode", |vmcs| {
        vmcs.set(GUEST_SEGMENTS[SS].access, 0xf3).set(code.access, 0xfb);
    });
    for (access, words) in
        [(0xc092, "type of a data"), (0xc013, "rights of a data"), (0x4093, "granularity of a data")]
    {
        breaks(SECTION, words, |vmcs| {
            vmcs.set(GUEST_SEGMENTS[DS].access, access);
        });
    }
    breaks(SECTION, "FS and GS", |vmcs| {
        vmcs.set(GUEST_SEGMENTS[FS].base, HOLE);
    });
    breaks(SECTION, "32 bits", |vmcs| {
        vmcs.set(GUEST_SEGMENTS[DS].base, 1 << 32);
    });
    breaks(SECTION, "base of CS", |vmcs| {
        vmcs.set(code.base, 1 << 32);
    });
    breaks_in(real_mode(), SECTION, "virtual-8086", |vmcs| {
        vmcs.set(fields::GUEST_CR0, 0x31).or(fields::GUEST_RFLAGS, 1 << 17);
    });
    let unusable = long_mode().set(GUEST_SEGMENTS[DS].access, 1 << 16).clone();
    assert_eq!(result(&unusable), Ok(()));
}

#[test]
fn guest_system_registers_are_checked() {
    const SECTION: &str = "26.3.1.2";
    breaks(SECTION, "busy TSS", |vmcs| {
        vmcs.set(GUEST_TR.access, 0x83);
    });
    breaks(SECTION, "TI of TR", |vmcs| {
        vmcs.set(GUEST_TR.selector, 4);
    });
    breaks(SECTION, "base of TR", |vmcs| {
        vmcs.set(GUEST_TR.base, HOLE);
    });
    breaks(SECTION, "granularity of TR", |vmcs| {
        vmcs.set(GUEST_TR.access, 1 << 16 | 0x8b);
    });
    breaks(SECTION, "of LDTR", |vmcs| {
        vmcs.set(GUEST_LDTR.access, 0x89);
    });
    breaks("26.3.1.3", "bases", |vmcs| {
        vmcs.set(fields::GUEST_IDTR_BASE, HOLE);
    });
    breaks("26.3.1.3", "limits", |vmcs| {
        vmcs.set(fields::GUEST_GDTR_LIMIT, 0x1_0000);
    });
}

#[test]
fn guest_rip_and_flags_are_checked() {
    breaks("26.3.1.4", "canonical", |vmcs| {
        vmcs.set(fields::GUEST_RIP, HOLE);
    });
    let broken = breaks_in(real_mode(), "26.3.1.4", "32 bits", |vmcs| {
        vmcs.set(fields::GUEST_RIP, 1 << 32);
    });
    assert_eq!(broken.cause, Cause::Combination);
    for bit in [3, 5, 15, 22, 63] {
        breaks("26.3.1.4", "reserved bits of guest RFLAGS", |vmcs| {
            vmcs.or(fields::GUEST_RFLAGS, 1 << bit);
        });
    }
}

#[test]
fn guest_non_register_state_is_checked() {
    const SECTION: &str = "26.3.1.5";
    breaks(SECTION, "activity", |vmcs| {
        vmcs.set(fields::GUEST_ACTIVITY, 1);
    });
    for (state, words) in [(32, "reserved"), (3, "exclude"), (4, "SMM")] {
        breaks(SECTION, words, |vmcs| {
            vmcs.set(fields::GUEST_INTERRUPTIBILITY, state);
        });
    }
    breaks_in(real_mode(), SECTION, "needs RFLAGS.IF", |vmcs| {
        vmcs.set(fields::GUEST_INTERRUPTIBILITY, 1);
    });
    breaks(SECTION, "pending debug", |vmcs| {
        vmcs.set(fields::GUEST_PENDING_DEBUG, 1 << 4);
    });
    breaks(SECTION, "single-step", |vmcs| {
        vmcs.set(fields::GUEST_INTERRUPTIBILITY, 1).or(fields::GUEST_RFLAGS, 1 << 8);
    });
    breaks(SECTION, "linked VMCS", |vmcs| {
        vmcs.set(fields::VMCS_LINK_POINTER, 0);
    });
    breaks_in(real_mode(), "26.3.1.6", "PDPTEs", |vmcs| {
        vmcs.set(fields::GUEST_CR0, 0x8000_0031)
            .or(fields::GUEST_CR4, 1 << 5)
            .set(fields::GUEST_PDPTES[2], 3);
    });
}
