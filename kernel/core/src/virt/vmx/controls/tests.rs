use super::*;

/// Bochs' corei7_skylake_x: all capability MSRs as they read there.
pub(in super::super) fn skylake(msr: u32) -> u64 {
    match msr {
        0x480 => 0x00d8_1000_0000_002b,
        0x481 | 0x48d => 0x0000_007f_0000_0016,
        0x482 => 0xf7f9_fffe_0401_e172,
        0x483 | 0x48f => 0x007f_ffff_0003_6dfb,
        0x484 | 0x490 => 0x0000_ffff_0000_11fb,
        0x485 => 0x6004_01e0,
        0x486 => 0x8000_0021,
        0x487 => 0xffff_ffff,
        0x488 => 0x2000,
        0x489 => 0x0037_67ff,
        0x48b => 0x0217_7fff_0000_0000,
        0x48c => 0x0000_0f01_0633_4141,
        0x48e => 0xf7f9_fffe_0400_6172,
        _ => panic!("MSR {msr:#x} does not exist here"),
    }
}

fn choose_with(change: impl Fn(u32, u64) -> u64) -> Result<Controls, Missing> {
    Capabilities::read(|msr| change(msr, skylake(msr))).choose()
}

#[test]
fn a_complete_machine_gets_every_control() {
    let controls = choose_with(|_, value| value).unwrap();
    assert_eq!(controls.pin, 0x16 | 0x69);
    assert_eq!(controls.primary & primary::CR3_LOAD_EXITING, 0);
    assert_eq!(controls.primary & primary::INTERRUPT_WINDOW_EXITING, 0);
    assert_ne!(controls.primary & primary::UNCONDITIONAL_IO_EXITING, 0);
    assert_eq!(controls.exit & exit::ACKNOWLEDGE_INTERRUPT, 0);
    assert_eq!(controls.entry & entry::IA32E_MODE_GUEST, 0);
    assert!(controls.has_secondary(secondary::EPT | secondary::UNRESTRICTED_GUEST | secondary::VPID));
    assert!(controls.has_secondary(secondary::XSAVES | secondary::INVPCID | secondary::RDTSCP));
    assert!(controls.has_nested_1g && controls.has_string_io_info && controls.can_inject_length_0);
}

#[test]
fn only_controls_that_the_machine_allows_are_set() {
    let capabilities = Capabilities::read(skylake);
    let controls = capabilities.choose().unwrap();
    for (word, allowed) in [
        (controls.pin, capabilities.pin),
        (controls.primary, capabilities.primary),
        (controls.secondary, capabilities.secondary),
        (controls.exit, capabilities.exit),
        (controls.entry, capabilities.entry),
    ] {
        assert_eq!(word & !allowed.may_be_one(), 0);
        assert_eq!(word & allowed.must_be_one(), allowed.must_be_one());
    }
}

#[test]
fn a_machine_without_ept_is_refused_without_reading_its_capability_msr() {
    let missing = choose_with(|msr, value| match msr {
        0x48b => (secondary::WBINVD_EXITING as u64) << 32,
        0x48c => panic!("does not exist without EPT and VPID"),
        _ => value,
    });
    assert_eq!(missing, Err(Missing::Ept));
}

#[test]
fn a_machine_without_unrestricted_guest_is_refused() {
    let bit = (secondary::UNRESTRICTED_GUEST as u64) << 32;
    let missing = choose_with(|msr, value| if msr == 0x48b { value & !bit } else { value });
    assert_eq!(missing, Err(Missing::UnrestrictedGuest));
}

#[test]
fn the_missing_control_is_named() {
    let bit = (pin::PREEMPTION_TIMER as u64) << 32;
    let missing = choose_with(|msr, value| if msr == 0x48d { value & !bit } else { value });
    assert_eq!(missing, Err(Missing::Control("activate VMX-preemption timer")));
}

#[test]
fn without_true_capabilities_cr3_exits_cannot_be_avoided_and_the_machine_is_refused() {
    let missing = choose_with(|msr, value| match msr {
        0x480 => value & !(1 << 55),
        0x48d..=0x490 => panic!("does not exist without bit 55 of the basic capabilities"),
        _ => value,
    });
    assert_eq!(missing, Err(Missing::Control("CR3-store exiting off")));
}

#[test]
fn vpid_is_left_out_where_one_context_cannot_be_flushed() {
    let controls =
        choose_with(|msr, value| if msr == 0x48c { value & !EptVpid::INVVPID_SINGLE } else { value })
            .unwrap();
    assert!(!controls.has_secondary(secondary::VPID));
}

#[test]
fn timer_values_are_never_early_and_saturate() {
    let mut controls = choose_with(|_, value| value).unwrap();
    controls.timer_shift = 5;
    assert_eq!(controls.timer_value(0), 1);
    assert_eq!(controls.timer_value(31), 1);
    assert_eq!(controls.timer_value(32), 2);
    assert_eq!(controls.timer_value(65), 3);
    assert_eq!(controls.timer_value(u64::MAX), u32::MAX);
}
