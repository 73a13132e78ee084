use super::super::intercepts::Choice;
use super::super::processor::tests::{hardware, tcg};
use super::*;
use hypercall_abi::vcpu::Intercepts;

/// A guest in 64-bit mode, as the kernel sets it up.
fn long_mode() -> Vmcb {
    let mut vmcb = Vmcb::after_reset();
    Choice {
        optional: Intercepts::empty(),
        exceptions: 0,
        cr0: false,
        cr4_reads: false,
        debug_registers: false,
        window: false,
        iret: false,
    }
    .apply(&mut vmcb.control);
    vmcb.control.interrupt_control = super::super::vmcb::V_INTR_MASKING;
    vmcb.control.nested_control = NP_ENABLE;
    vmcb.control.nested_cr3 = 0x5000;
    vmcb.control.msrpm_base = 0x6000;
    vmcb.control.iopm_base = 0x8000;
    vmcb.control.asid = 1;
    vmcb.save.cr0 |= CR0_PE | CR0_PG;
    vmcb.save.cr4 |= CR4_PAE;
    vmcb.save.efer |= EFER_LME | EFER_LMA;
    vmcb.save.cs.attributes = 0xa9b;
    vmcb
}

#[track_caller]
fn breaks(words: &str, change: impl FnOnce(&mut Vmcb)) {
    let mut vmcb = long_mode();
    change(&mut vmcb);
    let broken = check_entry(&vmcb, &hardware()).expect_err("the rule should fail");
    assert!(broken.rule.contains(words), "{broken:?}");
}

#[test]
fn what_the_kernel_sets_up_is_accepted() {
    assert_eq!(check_entry(&long_mode(), &hardware()), Ok(()));
    assert_eq!(check_entry(&long_mode(), &tcg()), Ok(()));
}

#[test]
fn registers_that_vmrun_refuses_are_named() {
    breaks("SVME", |vmcb| vmcb.save.efer &= !EFER_SVME);
    breaks("NW", |vmcb| vmcb.save.cr0 |= CR0_NW);
    breaks("of CR0", |vmcb| vmcb.save.cr0 |= 1 << 32);
    breaks("CR3", |vmcb| vmcb.save.cr3 |= 1 << 60);
    breaks("CR4", |vmcb| vmcb.save.cr4 |= 1 << 31);
    breaks("CR4.MCE", |vmcb| vmcb.save.cr4 &= !CR4_MCE);
    breaks("DR6", |vmcb| vmcb.save.dr6 |= 1 << 32);
    breaks("DR7", |vmcb| vmcb.save.dr7 |= 1 << 32);
    breaks("EFER", |vmcb| vmcb.save.efer |= 1 << 9);
    breaks("need CR4.PAE", |vmcb| vmcb.save.cr4 &= !CR4_PAE);
    breaks("need CR0.PE", |vmcb| vmcb.save.cr0 &= !CR0_PE);
    breaks("CS.L", |vmcb| vmcb.save.cs.attributes |= DEFAULT);
    breaks("LMA", |vmcb| vmcb.save.efer &= !EFER_LMA);
    breaks("RFLAGS", |vmcb| vmcb.save.rflags = 0);
    breaks("bases", |vmcb| vmcb.save.tr.base = 1 << 47);
    breaks("MSRs", |vmcb| vmcb.save.lstar = 1 << 47);
    breaks("SFMASK", |vmcb| vmcb.save.sfmask = 1 << 32);
    breaks("G_PAT", |vmcb| vmcb.save.g_pat = 2);
}

#[test]
fn controls_that_vmrun_refuses_are_named() {
    breaks("VMRUN intercept", |vmcb| vmcb.control.intercepts[1] &= !1);
    breaks("permission maps", |vmcb| vmcb.control.msrpm_base = 1 << 52);
    breaks("permission maps", |vmcb| vmcb.control.iopm_base = (1 << 48) - 0x2000);
    breaks("ASID", |vmcb| vmcb.control.asid = 0);
    breaks("ASID", |vmcb| vmcb.control.asid = hardware().asids);
    breaks("TLB_CONTROL", |vmcb| vmcb.control.tlb_control = 2);
    breaks("nested paging", |vmcb| vmcb.control.nested_control = 0);
    breaks("nCR3", |vmcb| vmcb.control.nested_cr3 = 0x5001);
    let mut vmcb = long_mode();
    vmcb.control.tlb_control = 3;
    assert!(check_entry(&vmcb, &tcg()).is_err());
}

#[test]
fn events_that_vmrun_refuses_are_named() {
    const VALID: u64 = 1 << 31;
    let with = |info: u64, words: &str| breaks(words, |vmcb| vmcb.control.event_injection = VALID | info);
    with(1 << 8, "type");
    with(3 << 8 | 2, "vector");
    with(3 << 8 | 32, "vector");
    with(3 << 8 | 5, "mode");
    with(3 << 8 | 13, "error code");
    with(3 << 8 | 6 | 1 << 11, "error code");
    with(3 << 8 | 6 | 1 << 12, "reserved");
}

#[test]
fn an_intercept_that_isolation_needs_is_missed() {
    breaks("isolation", |vmcb| vmcb.control.intercepts[0] &= !(1 << 31));
    breaks("isolation", |vmcb| vmcb.control.intercept_exceptions = 0);
    breaks("isolation", |vmcb| vmcb.control.interrupt_control = 0);
}

#[test]
fn a_clean_bit_over_a_changed_field_is_found() {
    type Change = fn(&mut Vmcb);
    let changes: [(Clean, Change); 11] = [
        (Clean::INTERCEPTS, |vmcb| vmcb.control.tsc_offset += 1),
        (Clean::PERMISSION_MAPS, |vmcb| vmcb.control.iopm_base += 0x1000),
        (Clean::ASID, |vmcb| vmcb.control.asid += 1),
        (Clean::VIRTUAL_INTERRUPT, |vmcb| vmcb.control.interrupt_control |= 1 << 32),
        (Clean::NESTED_PAGING, |vmcb| vmcb.control.nested_cr3 += 0x1000),
        (Clean::CONTROL_REGISTERS, |vmcb| vmcb.save.cr3 += 0x1000),
        (Clean::DEBUG_REGISTERS, |vmcb| vmcb.save.dr7 |= 1),
        (Clean::DESCRIPTOR_TABLES, |vmcb| vmcb.save.idtr.limit -= 1),
        (Clean::SEGMENTS, |vmcb| vmcb.save.ss.attributes ^= 0x60),
        (Clean::CR2, |vmcb| vmcb.save.cr2 += 1),
        (Clean::LAST_BRANCH, |vmcb| vmcb.save.debugctl |= 1),
    ];
    for (group, change) in changes {
        let (mut vmcb, mut shadow) = (long_mode(), CleanShadow::default());
        shadow.record(&vmcb);
        assert_eq!(shadow.check(&vmcb, Clean::all()), Ok(()));
        change(&mut vmcb);
        assert_eq!(shadow.check(&vmcb, Clean::all()), Err(group));
        assert_eq!(shadow.check(&vmcb, Clean::all() - group), Ok(()));
    }
    assert!(CleanShadow::default().check(&long_mode(), Clean::CR2).is_err());
}
