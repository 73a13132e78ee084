use super::*;
use crate::interrupt::{BROADCAST, DeliveryMode};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use proptest::prelude::*;

const ID: u64 = 0x20;
const VERSION_REGISTER: u64 = 0x30;
const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ESR: u64 = 0x280;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_ERROR: u64 = 0x370;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const BASE: u64 = DEFAULT_BASE;
const XAPIC: u64 = BASE | BASE_ENABLE;
const X2APIC: u64 = XAPIC | BASE_EXTD;

/// APIC ID 3, enabled, timer clock of the TSC's rate.
fn enabled() -> Lapic {
    let mut lapic = Lapic::new(3, false, 1_000_000_000, 1_000_000_000);
    write(&mut lapic, SVR, 0x1ff);
    lapic
}

fn enabled_x2apic() -> Lapic {
    let mut lapic = Lapic::new(0x23, true, 1_000_000_000, 1_000_000_000);
    assert_eq!(lapic.msr_write(IA32_APIC_BASE, X2APIC, 0), Some(Effect::None));
    assert_eq!(lapic.msr_write(0x80f, 0x1ff, 0), Some(Effect::None));
    lapic
}

/// A write that is expected to have no effect outside.
#[track_caller]
fn write(lapic: &mut Lapic, offset: u64, value: u32) {
    assert_eq!(lapic.mmio_write(offset, value, 0), Effect::None);
}

/// The CPU takes what is pending.
fn take(lapic: &mut Lapic) -> Option<u8> {
    let vector = lapic.pending()?;
    lapic.acknowledge(vector);
    Some(vector)
}

#[test]
fn after_power_up_everything_is_masked() {
    let mut lapic = Lapic::new(3, true, 1, 1);
    assert_eq!(lapic.mmio_base(), Some(BASE));
    assert_eq!(lapic.mmio_read(ID, 0), 3 << 24);
    assert_eq!(lapic.mmio_read(VERSION_REGISTER, 0), 0x0106_0014);
    assert_eq!(lapic.mmio_read(SVR, 0), 0xff);
    assert_eq!(lapic.mmio_read(DFR, 0), u32::MAX);
    for lvt in [0x2f0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370] {
        assert_eq!(lapic.mmio_read(lvt, 0), LVT_MASK);
    }
    assert_eq!(lapic.msr_read(IA32_APIC_BASE, 0), Some(BASE | BASE_ENABLE | BASE_BSP));
    assert!(!lapic.accept(0x40, false));
    assert_eq!(lapic.pending(), None);
}

#[test]
fn software_disable_masks_the_local_vector_table_and_keeps_it_masked() {
    let mut lapic = enabled();
    write(&mut lapic, LVT_LINT0, 0x700);
    assert_eq!(lapic.mmio_read(LVT_LINT0, 0), 0x700);
    assert!(lapic.accept(0x40, false));
    write(&mut lapic, SVR, 0xff);
    write(&mut lapic, LVT_LINT0, 0x700);
    assert_eq!(lapic.mmio_read(LVT_LINT0, 0), 0x1_0700);
    assert!(!lapic.accept(0x41, false));
    assert_eq!(lapic.pending(), Some(0x40), "what was accepted waits for the CPU");
}

#[test]
fn higher_classes_interrupt_lower_ones_and_eois_unwind_them() {
    let mut lapic = enabled();
    assert!(lapic.accept(0x41, false));
    assert_eq!(take(&mut lapic), Some(0x41));
    assert_eq!(lapic.mmio_read(PPR, 0), 0x40);
    assert!(lapic.accept(0x4f, false));
    assert_eq!(lapic.pending(), None, "same class");
    assert!(lapic.accept(0x51, false));
    assert_eq!(take(&mut lapic), Some(0x51));
    write(&mut lapic, EOI, 0);
    assert_eq!(lapic.pending(), None);
    write(&mut lapic, EOI, 0);
    assert_eq!(take(&mut lapic), Some(0x4f));
    write(&mut lapic, EOI, 0);
    assert_eq!((take(&mut lapic), lapic.processor_priority()), (None, 0));
}

#[test]
fn the_task_priority_holds_back_its_class_and_below() {
    let mut lapic = enabled();
    assert!(lapic.accept(0x55, false));
    lapic.set_cr8(5);
    assert_eq!((lapic.mmio_read(TPR, 0), lapic.pending()), (0x50, None));
    assert_eq!(lapic.highest_request(), Some(0x55));
    write(&mut lapic, TPR, 0x4f);
    assert_eq!((lapic.cr8(), lapic.pending()), (4, Some(0x55)));
}

#[test]
fn a_vector_that_is_not_requested_cannot_be_taken() {
    let mut lapic = enabled();
    lapic.acknowledge(0x40);
    assert_eq!(lapic.processor_priority(), 0);
    write(&mut lapic, EOI, 0);
}

#[test]
fn the_end_of_a_level_interrupt_is_broadcast_unless_suppressed() {
    let mut lapic = enabled();
    for (svr, is_level, effect) in [
        (0x1ff, true, Effect::EoiBroadcast(0x60)),
        (0x1ff, false, Effect::None),
        (0x11ff, true, Effect::None),
    ] {
        write(&mut lapic, SVR, svr);
        assert!(lapic.accept(0x60, is_level));
        assert_eq!(take(&mut lapic), Some(0x60));
        assert_eq!(lapic.mmio_write(EOI, 0, 0), effect);
    }
}

#[test]
fn errors_show_after_a_write_to_the_status_register() {
    let mut lapic = enabled();
    write(&mut lapic, LVT_ERROR, 0xfe);
    assert!(!lapic.accept(15, false));
    assert_eq!(lapic.mmio_read(0x50, 0), 0);
    assert_eq!(take(&mut lapic), Some(0xfe));
    assert_eq!(lapic.mmio_read(ESR, 0), 0);
    write(&mut lapic, ESR, 0);
    assert_eq!(lapic.mmio_read(ESR, 0), 0xc0);
    write(&mut lapic, ESR, 0);
    assert_eq!(lapic.mmio_read(ESR, 0), 0);
}

#[test]
fn an_error_vector_that_is_an_error_itself_ends_there() {
    let mut lapic = enabled();
    write(&mut lapic, LVT_ERROR, 0x05);
    write(&mut lapic, ICR_LOW, 0x05);
    write(&mut lapic, ESR, 0);
    assert_eq!(lapic.mmio_read(ESR, 0), 0x60);
    assert_eq!(lapic.pending(), None);
}

#[test]
fn a_write_to_icr_sends_what_it_says() {
    let mut lapic = enabled();
    write(&mut lapic, ICR_HIGH, 7 << 24);
    let fixed = IpiRequest {
        vector: 0xfd,
        mode: DeliveryMode::Fixed,
        shorthand: Shorthand::None,
        destination: 7,
        logical: false,
    };
    assert_eq!(lapic.mmio_write(ICR_LOW, 0x40fd, 0), Effect::Ipi(fixed));
    let init = IpiRequest { vector: 0, mode: DeliveryMode::Init, ..fixed };
    assert_eq!(lapic.mmio_write(ICR_LOW, 0xc500, 0), Effect::Ipi(init));
    assert_eq!(lapic.mmio_write(ICR_LOW, 0x8500, 0), Effect::None, "INIT level de-assert");
    let startup = IpiRequest { vector: 0x99, mode: DeliveryMode::Startup, ..fixed };
    assert_eq!(lapic.mmio_write(ICR_LOW, 0x4699, 0), Effect::Ipi(startup));
    assert_eq!(lapic.mmio_read(ICR_LOW, 0), 0x4699);
    write(&mut lapic, ICR_HIGH, 0xff00_0000);
    let logical = IpiRequest { destination: BROADCAST, logical: true, ..fixed };
    assert_eq!(lapic.mmio_write(ICR_LOW, 0x08fd, 0), Effect::Ipi(logical));
    let others = IpiRequest {
        mode: DeliveryMode::Nmi,
        shorthand: Shorthand::AllExcludingSelf,
        destination: BROADCAST,
        ..fixed
    };
    assert_eq!(lapic.mmio_write(ICR_LOW, 0xc_04fd, 0), Effect::Ipi(others));
    for invalid in [0x0700, 0x0300, 0x4_04fd, 0x8_05fd] {
        assert_eq!(lapic.mmio_write(ICR_LOW, invalid, 0), Effect::None, "{invalid:#x}");
    }
}

#[test]
fn an_ipi_to_oneself_arrives_without_help() {
    let mut lapic = enabled();
    write(&mut lapic, ICR_LOW, 0x4_0033);
    assert_eq!(take(&mut lapic), Some(0x33));
}

#[test]
fn shorthands_address_whom_they_name() {
    let lapic = enabled();
    let ipi = IpiRequest {
        vector: 0x40,
        mode: DeliveryMode::Fixed,
        shorthand: Shorthand::AllExcludingSelf,
        destination: 0,
        logical: false,
    };
    assert!(lapic.is_addressed_by(&ipi, 0) && !lapic.is_addressed_by(&ipi, 3));
    let ipi = IpiRequest { shorthand: Shorthand::AllIncludingSelf, ..ipi };
    assert!(lapic.is_addressed_by(&ipi, 0) && lapic.is_addressed_by(&ipi, 3));
    let ipi = IpiRequest { shorthand: Shorthand::None, destination: 3, ..ipi };
    assert!(lapic.is_addressed_by(&ipi, 0));
    assert!(!lapic.is_addressed_by(&IpiRequest { destination: 2, ..ipi }, 0));
}

#[test]
fn xapic_logical_destinations_are_flat_or_clustered() {
    let mut lapic = enabled();
    assert!(!lapic.is_destination(0x01, true), "no logical ID yet");
    assert!(lapic.is_destination(BROADCAST, true) && lapic.is_destination(BROADCAST, false));
    write(&mut lapic, LDR, 0x2400_0000);
    assert!(lapic.is_destination(0x04, true) && lapic.is_destination(0x20, true));
    assert!(!lapic.is_destination(0x13, true) && !lapic.is_destination(0x124, true));
    write(&mut lapic, DFR, 0);
    assert_eq!(lapic.mmio_read(DFR, 0), 0x0fff_ffff);
    assert!(lapic.is_destination(0x2f, true));
    assert!(!lapic.is_destination(0x1f, true) && !lapic.is_destination(0x2b, true));
}

#[test]
fn x2apic_ids_are_32_bits_wide_and_logical_ones_follow_from_them() {
    let lapic = enabled_x2apic();
    assert_eq!(lapic.msr_read(0x802, 0), Some(0x23));
    assert_eq!(lapic.msr_read(0x80d, 0), Some(0x2_0008));
    assert!(lapic.is_destination(0x2_000c, true));
    assert!(!lapic.is_destination(0x1_0008, true) && !lapic.is_destination(0x2_0007, true));
    assert!(lapic.is_destination(0x23, false) && !lapic.is_destination(0x123, false));
}

#[test]
fn mode_changes_that_the_manual_forbids_fault() {
    let faults = |from: &[u64], to: u64| {
        let mut lapic = Lapic::new(0, true, 1, 1);
        for base in from {
            assert_eq!(lapic.msr_write(IA32_APIC_BASE, *base, 0), Some(Effect::None));
        }
        lapic.msr_write(IA32_APIC_BASE, to, 0).is_none()
    };
    assert!(faults(&[], BASE | BASE_EXTD), "extended but not enabled");
    assert!(faults(&[BASE], X2APIC), "disabled to x2APIC");
    assert!(faults(&[X2APIC], XAPIC), "x2APIC to xAPIC");
    assert!(faults(&[], XAPIC | 1), "reserved bit");
    assert!(faults(&[], XAPIC | 1 << 52), "beyond the address bits");
    assert!(!faults(&[X2APIC, BASE, XAPIC, X2APIC], X2APIC));
}

#[test]
fn disabling_loses_the_state_and_the_bsp_bit_stays() {
    let mut lapic = enabled_x2apic();
    assert!(lapic.accept(0x40, false));
    assert_eq!(lapic.msr_write(IA32_APIC_BASE, BASE, 0), Some(Effect::None));
    assert_eq!((lapic.mode(), lapic.pending()), (Mode::Disabled, None));
    assert!(!lapic.is_destination(BROADCAST, false));
    assert_eq!(lapic.msr_read(IA32_APIC_BASE, 0), Some(BASE | BASE_BSP));
    assert_eq!(lapic.msr_write(IA32_APIC_BASE, 0xfed0_0000 | BASE_ENABLE, 0), Some(Effect::None));
    assert_eq!(lapic.mmio_base(), Some(0xfed0_0000));
    assert_eq!((lapic.mmio_read(ID, 0), lapic.mmio_read(SVR, 0)), (0x2300_0000, 0xff));
}

#[test]
fn each_way_of_addressing_works_in_its_mode_only() {
    let mut xapic = enabled();
    assert_eq!(xapic.msr_read(0x802, 0), None);
    assert_eq!(xapic.msr_write(0x80b, 0, 0), None);
    let mut x2apic = enabled_x2apic();
    assert_eq!(x2apic.mmio_base(), None);
    write(&mut x2apic, TPR, 0xff);
    assert_eq!((x2apic.mmio_read(ID, 0), x2apic.cr8()), (u32::MAX, 0));
}

#[test]
fn x2apic_mode_faults_on_reserved_bits_and_wrong_directions() {
    let mut lapic = enabled_x2apic();
    for (msr, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x808, 0x100),
        (0x80b, 1),
        (0x80d, 0),
        (0x80e, 0),
        (0x80f, 0x2ff),
        (0x810, 0),
        (0x828, 1),
        (0x830, 0x2_0040),
        (0x831, 0),
        (0x832, 1 << 11),
        (0x835, 1 << 17),
        (0x838, 1 << 32),
        (0x839, 0),
        (0x83e, 4),
        (0x83f, 0x133),
        (0x8ff, 0),
    ] {
        assert_eq!(lapic.msr_write(msr, value, 0), None, "{msr:#x} = {value:#x}");
    }
    for msr in [0x80b, 0x80e, 0x831, 0x83f, 0x800, 0x840] {
        assert_eq!(lapic.msr_read(msr, 0), None, "{msr:#x}");
    }
    // What was read from an LVT entry may be written back, status bits included.
    assert_eq!(lapic.msr_write(0x835, 0x1_7700, 0), Some(Effect::None));
    assert_eq!(lapic.msr_read(0x835, 0), Some(0x1_2700));
}

#[test]
fn x2apic_sends_with_one_write() {
    let mut lapic = enabled_x2apic();
    let effect = lapic.msr_write(0x830, 0x0001_0002_0000_08fb, 0).unwrap();
    let ipi = effect.ipi().unwrap();
    assert_eq!((ipi.destination, ipi.logical, ipi.vector), (0x1_0002, true, 0xfb));
    assert_eq!(lapic.msr_read(0x830, 0), Some(0x0001_0002_0000_08fb));
    assert_eq!(lapic.msr_write(0x83f, 0x77, 0), Some(Effect::None));
    assert_eq!(take(&mut lapic), Some(0x77));
    assert_eq!(lapic.msr_read(0x813, 0), Some(1 << (0x77 % 32)));
    assert_eq!(lapic.msr_write(0x80b, 0, 0), Some(Effect::None));
    assert_eq!(lapic.msr_read(0x813, 0), Some(0));
}

#[test]
fn the_timer_interrupts_when_its_count_ends() {
    let mut lapic = enabled();
    write(&mut lapic, LVT_TIMER, 0xec);
    write(&mut lapic, DIVIDE, 0b0011);
    write(&mut lapic, INITIAL_COUNT, 100);
    assert_eq!(lapic.mmio_read(CURRENT_COUNT, 160), 90);
    assert_eq!(lapic.next_event(0), Some(1600));
    assert_eq!(lapic.next_event(2000), Some(2000), "overdue is now");
    lapic.advance(1599);
    assert_eq!(lapic.pending(), None);
    lapic.advance(1600);
    assert_eq!(take(&mut lapic), Some(0xec));
    assert_eq!((lapic.next_event(1600), lapic.mmio_read(CURRENT_COUNT, 1600)), (None, 0));
}

#[test]
fn a_periodic_timer_goes_on_until_its_count_is_zeroed() {
    let mut lapic = enabled();
    write(&mut lapic, LVT_TIMER, 0x2_00ec);
    write(&mut lapic, INITIAL_COUNT, 500_000);
    for expiry in [1_000_000, 2_000_000, 3_000_000] {
        assert_eq!(lapic.next_event(expiry - 5), Some(expiry));
        lapic.advance(expiry);
        assert_eq!(take(&mut lapic), Some(0xec));
        write(&mut lapic, EOI, 0);
    }
    write(&mut lapic, INITIAL_COUNT, 0);
    assert_eq!(lapic.next_event(0), None);
}

#[test]
fn a_masked_timer_counts_in_silence() {
    let mut lapic = enabled();
    write(&mut lapic, LVT_TIMER, 0x3_00ec);
    write(&mut lapic, INITIAL_COUNT, 500_000);
    assert_eq!(lapic.next_event(0), None);
    assert_eq!(lapic.mmio_write(LVT_TIMER, 0x2_00ec, 2_500_000), Effect::None);
    assert_eq!((lapic.pending(), lapic.next_event(2_500_000)), (None, Some(3_000_000)));
}

#[test]
fn the_tsc_deadline_interrupts_once() {
    let mut lapic = enabled();
    assert_eq!(lapic.msr_write(IA32_TSC_DEADLINE, 500, 0), Some(Effect::None));
    assert_eq!(lapic.msr_read(IA32_TSC_DEADLINE, 0), Some(0), "another mode");
    write(&mut lapic, LVT_TIMER, 0x4_00ec);
    assert_eq!(lapic.msr_write(IA32_TSC_DEADLINE, 500, 0), Some(Effect::None));
    assert_eq!(lapic.next_event(0), Some(500));
    assert_eq!(lapic.msr_read(IA32_TSC_DEADLINE, 499), Some(500));
    lapic.advance(500);
    assert_eq!(take(&mut lapic), Some(0xec));
    assert_eq!((lapic.next_event(500), lapic.msr_read(IA32_TSC_DEADLINE, 500)), (None, Some(0)));
    write(&mut lapic, EOI, 0);
    assert_eq!(lapic.msr_write(IA32_TSC_DEADLINE, 400, 600), Some(Effect::None));
    assert_eq!(lapic.pending(), Some(0xec), "a deadline in the past is due at once");
}

#[test]
fn init_clears_the_registers_and_keeps_mode_and_id() {
    let mut lapic = enabled_x2apic();
    assert!(lapic.accept(0x40, false));
    lapic.init();
    assert_eq!((lapic.mode(), lapic.pending()), (Mode::X2Apic, None));
    assert_eq!((lapic.msr_read(0x802, 0), lapic.msr_read(0x80f, 0)), (Some(0x23), Some(0xff)));
    assert_eq!(lapic.msr_read(0x80d, 0), Some(0x2_0008));
}

#[test]
fn the_register_page_has_the_layout_of_a_virtual_apic_page() {
    let mut lapic = enabled();
    lapic.set_cr8(2);
    assert!(lapic.accept(0x45, true));
    let at = |offset: usize| lapic.registers()[offset / 4].load(Relaxed);
    assert_eq!((at(0x80), at(0xa0)), (0x20, 0x20));
    assert_eq!((at(0x220), at(0x1a0)), (1 << 5, 1 << 5));
}

#[test]
fn whoever_shares_the_page_delivers_and_ends_interrupts() {
    let page: &'static PageWords = Box::leak(Box::new([const { AtomicU32::new(0) }; PAGE_WORDS]));
    let mut lapic = enabled_x2apic();
    assert!(lapic.accept(0x45, true));
    assert!(!lapic.is_virtual());
    lapic.share(page);
    assert!(lapic.is_virtual() && lapic.take_has_changed() && !lapic.take_has_changed());
    assert_eq!((page[0x220 / 4].load(Relaxed), lapic.level_triggered()), (1 << 5, [0, 1 << 5, 0, 0]));
    // Delivered by the other, and ended.
    page[0x220 / 4].store(0, Relaxed);
    page[0x120 / 4].store(1 << 5, Relaxed);
    assert_eq!(lapic.pending(), None);
    page[0x120 / 4].store(0, Relaxed);
    assert_eq!(lapic.ended(0x45), Effect::EoiBroadcast(0x45));
    assert!(lapic.accept(0x45, false) && lapic.take_has_changed());
    assert_eq!((lapic.pending(), lapic.ended(0x45)), (Some(0x45), Effect::None));
    lapic.set_cr8(5);
    assert!(lapic.take_has_changed());
    assert_eq!(page[0xa0 / 4].load(Relaxed), 0x50);
}

proptest! {
    #[test]
    fn any_access_sequence_is_survived_and_keeps_the_order_of_priorities(
        accesses in prop::collection::vec((0u8..7, any::<u16>(), any::<u32>()), 0..300), is_x2apic: bool,
    ) {
        let mut lapic = if is_x2apic { enabled_x2apic() } else { enabled() };
        let mut now = 0u64;
        for (kind, address, value) in accesses {
            let near = u64::from(value & 0x3f);
            now += near;
            match kind {
                0 => _ = lapic.mmio_write(u64::from(address & 0x3f0), value, now),
                1 => _ = lapic.mmio_read(u64::from(address), now),
                2 => _ = lapic.msr_write(X2APIC_FIRST + u32::from(address & 0x3f), value.into(), now),
                3 => _ = lapic.msr_write(IA32_TSC_DEADLINE, now + near, now),
                4 => _ = lapic.accept(address as u8, value & 1 != 0),
                5 if value & 0xf == 0 => {
                    _ = lapic.msr_write(IA32_APIC_BASE, BASE | u64::from(address & 0xf00), now);
                }
                _ => _ = lapic.msr_read(X2APIC_FIRST + u32::from(address & 0xff), now),
            }
            lapic.advance(now);
            prop_assert!(lapic.next_event(now).is_none_or(|event| event >= now));
            let before = lapic.processor_priority();
            if let Some(vector) = take(&mut lapic) {
                prop_assert!(vector >= 16 && vector >> 4 > before >> 4);
                prop_assert_eq!(lapic.processor_priority(), vector & 0xf0);
            }
        }
    }
}

#[test]
fn an_interrupt_whose_delivery_failed_is_requested_again() {
    let mut lapic = enabled();
    assert!(lapic.accept(0x41, false));
    assert_eq!(take(&mut lapic), Some(0x41));
    lapic.retract(0x41);
    assert_eq!((lapic.processor_priority(), take(&mut lapic)), (0, Some(0x41)));
    lapic.retract(0x55);
    assert_eq!(lapic.pending(), None, "nobody had taken it");
}

#[test]
fn a_fast_periodic_timer_leaves_the_guest_time_to_run() {
    let mut lapic = enabled();
    write(&mut lapic, DIVIDE, 0b1011);
    write(&mut lapic, LVT_TIMER, 0x2_0040);
    write(&mut lapic, INITIAL_COUNT, 1);
    lapic.advance(500);
    assert_eq!(lapic.next_event(500), Some(100_500));
    lapic.advance(700);
    assert_eq!(take(&mut lapic), Some(0x40), "whoever looks earlier finds it");
}
