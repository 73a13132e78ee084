//! Questions, the log, bad numbers, and what every call does with bad selectors.

use super::{Group, Needs, group};
use crate::call::call_head;
use crate::layout::{DEVICES, IRQS, LOG, PORTS, ROOT_POOL, RUNNER_EC, RUNNER_SC, TRACE};
use crate::prelude::*;
use hypercall_abi::Hypercall;
use hypercall_abi::boot_info::{MAGIC, RegionKind};

pub(super) const GROUP: Group = group!(
    "questions",
    Needs::Nothing => [
        the_boot_information_describes_the_machine,
        the_first_capabilities_are_as_promised,
        an_unknown_number_is_refused,
        reserved_bits_of_the_head_are_refused,
        every_call_refuses_a_selector_that_names_nothing,
        every_argument_that_is_a_selector_must_fit_into_32_bits,
        cap_info_tells_type_rights_and_range,
        pool_info_counts_frames,
        ec_info_needs_its_right_and_is_zero_for_a_running_thread,
        sc_info_needs_its_right_and_grows,
        the_log_takes_up_to_40_bytes_from_its_holder,
    ],
);

/// Calls that look the selector of their head up.
const BY_HEAD: [Hypercall; 21] = [
    Signal,
    Wait,
    VcpuRun,
    VcpuPoke,
    VcpuRead,
    CapInfo,
    Map,
    Unmap,
    Derive,
    Revoke,
    Bind,
    EcInfo,
    ScInfo,
    PoolInfo,
    IrqBind,
    IrqAck,
    LogWrite,
    CollectDirty,
    VcpuFpu,
    Hypercall::Call,
    Hypercall::CallMessage,
];

fn the_boot_information_describes_the_machine(w: &mut World) -> Check {
    equal("magic", w.info.magic, MAGIC)?;
    equal("version", w.info.version, hypercall_abi::ABI_VERSION)?;
    holds("1 to 64 CPUs", (1..=64).contains(&w.info.cpu_count))?;
    holds("the TSC runs", w.info.tsc_hz > 1_000_000)?;
    let regions = &w.info.regions[..w.info.region_count as usize];
    for (index, region) in regions.iter().enumerate() {
        let [head, first, pages] = call(CapInfo, region.selector.into(), []).ok()?;
        let mut rights = Rights::READ | Rights::WRITE | Rights::DERIVE;
        if region.kind != RegionKind::Device as u32 {
            rights |= Rights::EXECUTE;
        }
        equal("capability of a region", head, ObjectType::Memory as u64 | u64::from(rights.bits()) << 16)?;
        equal("range of a region", (first * PAGE, pages), (region.base, region.pages))?;
        for other in &regions[index + 1..] {
            let apart = region.base + region.pages * PAGE <= other.base
                || other.base + other.pages * PAGE <= region.base;
            holds("regions do not overlap", apart)?;
        }
    }
    Ok(())
}

fn the_first_capabilities_are_as_promised(w: &mut World) -> Check {
    for (selector, kind) in
        [(1, ObjectType::Pd), (2, ObjectType::Pool), (3, ObjectType::Ec), (4, ObjectType::Sc)]
    {
        call(CapInfo, selector, []).gives([kind as u64 | 0xffff << 16, 0, 0])?;
    }
    let usable = u64::from((Rights::USE | Rights::DERIVE).bits()) << 16;
    call(CapInfo, LOG, []).gives([ObjectType::Log as u64 | usable, 0, 0])?;
    call(CapInfo, PORTS, []).gives([ObjectType::Ports as u64 | usable, 0, 0x1_0000])?;
    call(CapInfo, DEVICES, []).gives([ObjectType::Devices as u64 | usable, 0, 0x1_0000])?;
    call(CapInfo, TRACE, []).gives([ObjectType::Trace as u64 | usable, 0, w.info.cpu_count.into()])?;
    let [head, first, count] = call(CapInfo, IRQS, []).ok()?;
    equal("interrupts", (head, first), (ObjectType::Irqs as u64 | usable, 0))?;
    holds("16 to 144 interrupts", (16..=144).contains(&count))
}

fn an_unknown_number_is_refused(_: &mut World) -> Check {
    for number in 0..=0xff_u8 {
        if Hypercall::from_raw(number).is_none() {
            call_head(number.into(), [1, 2, 3]).fails(BadHypercall)?;
        }
    }
    Ok(())
}

fn reserved_bits_of_the_head_are_refused(_: &mut World) -> Check {
    for bit in 8..32 {
        call_head(PoolInfo as u64 | ROOT_POOL << 32 | 1 << bit, [4, 5, 6]).fails(BadHypercall)?;
    }
    Ok(())
}

fn every_call_refuses_a_selector_that_names_nothing(w: &mut World) -> Check {
    let empty = w.sel();
    let never_used = 30_000;
    for number in BY_HEAD {
        // Arguments that pass the checks of form.
        let arguments = match number {
            Map => [1, 0x1000, 0, 1, 1, 0],
            Unmap => [0, 1, 0, 0, 0, 0],
            Derive => [0, empty, 0, 0, 0, 0],
            Bind => [1, 1, 0, 0, 0, 0],
            IrqBind => [0, 1, 0, 0, 0, 0],
            CollectDirty => [0, 1, 0, 0, 0, 0],
            _ => [0; 6],
        };
        for selector in [0, empty, never_used, 32_767, 32_768, 0x8000_0000, 0xffff_ffff] {
            call(number, selector, arguments).fails(BadSelector)?;
        }
    }
    Ok(())
}

fn every_argument_that_is_a_selector_must_fit_into_32_bits(w: &mut World) -> Check {
    const HIGH: u64 = 1 << 32;
    let (to, sm, memory) = (w.sel(), w.sm(0)?, w.ram(1)?);
    for number in [CreatePool, CreatePd, CreateEc, CreateSc, CreatePt, CreateSm, CreateNtfn, CreateGuestSpace]
    {
        let arguments = match number {
            CreatePool => [HIGH | w.pool, 1, 0, 0, 0, 0],
            CreateEc => [HIGH | w.pool, 1, 0, 0x1000, 0x1000, 0],
            CreateSc => [HIGH | w.pool, RUNNER_EC, 1, 1000, 1000, 0],
            _ => [HIGH | w.pool, 0, 0, 0, 0, 0],
        };
        let answer = call(number, to, arguments);
        if number == CreateGuestSpace && answer.status() == Some(Unsupported) {
            continue;
        }
        answer.fails(BadArgument)?;
    }
    call(CreateEc, to, [w.pool, HIGH | 1, 0, 0x1000, 0x1000]).fails(BadArgument)?;
    call(CreateSc, to, [w.pool, HIGH | RUNNER_EC, 1, 1000, 1000]).fails(BadArgument)?;
    call(CreatePt, to, [w.pool, HIGH | RUNNER_EC, 0x1000]).fails(BadArgument)?;
    call(Derive, sm, [HIGH | 1, to, 0]).fails(BadArgument)?;
    call(Derive, sm, [0, HIGH | to, 0]).fails(BadArgument)?;
    call(Map, memory, [HIGH | 1, 0x1000, 0, 1, 1]).fails(BadArgument)?;
    call(Bind, RUNNER_EC, [HIGH | sm, 1]).fails(BadArgument)?;
    call(VcpuFpu, RUNNER_EC, [0, HIGH | memory]).fails(BadArgument)?;
    call(IrqBind, IRQS, [0, HIGH | sm, 0]).fails(BadArgument)
}

fn cap_info_tells_type_rights_and_range(w: &mut World) -> Check {
    let pages = w.ram(9)?;
    let [_, first, count] = call(CapInfo, pages, []).ok()?;
    equal("pages", count, 9)?;
    let to = w.sel();
    let rights = (Rights::READ | Rights::EXECUTE).bits();
    call(Derive, pages, [0, to, rights.into(), 2, 3]).done()?;
    call(CapInfo, to, []).gives([ObjectType::Memory as u64 | u64::from(rights) << 16, first + 2, 3])?;
    let ntfn = w.ntfn()?;
    let badged = w.sel();
    call(CapInfo, ntfn, []).gives([ObjectType::Ntfn as u64 | 0xffff << 16, 0, 0])?;
    call(Derive, ntfn, [0, badged, 1, 0, 0, 0xf0f0]).done()?;
    call(CapInfo, badged, []).gives([ObjectType::Ntfn as u64 | 1 << 16, 0, 0xf0f0])
}

fn pool_info_counts_frames(w: &mut World) -> Check {
    let pool = w.sel();
    let [free, all, _] = call(PoolInfo, w.pool, []).ok()?;
    call(CreatePool, pool, [w.pool, 10, 0]).done()?;
    call(PoolInfo, pool, []).gives([10, 10, 0])?;
    let [free_now, all_now, _] = call(PoolInfo, w.pool, []).ok()?;
    equal("frames of the parent", all_now, all - 10)?;
    holds("free frames of the parent", free - free_now >= 10 && free - free_now <= 11)?;
    // No right is needed.
    let weak = w.derive(pool, Rights::empty())?;
    call(PoolInfo, weak, []).gives([10, 10, 0])?;
    let sm = w.sm(0)?;
    call(PoolInfo, sm, []).fails(BadType)
}

fn ec_info_needs_its_right_and_is_zero_for_a_running_thread(w: &mut World) -> Check {
    let number = call(EcInfo, RUNNER_EC, []).ok()?[2];
    holds("a number", number != 0)?;
    call(EcInfo, RUNNER_EC, []).gives([0, 0, number])?;
    let weak = w.without(RUNNER_EC, Rights::EC_INFO)?;
    call(EcInfo, weak, []).fails(BadRights)?;
    let just = w.derive(RUNNER_EC, Rights::EC_INFO)?;
    call(EcInfo, just, []).gives([0, 0, number])?;
    call(EcInfo, RUNNER_SC, []).fails(BadType)
}

fn sc_info_needs_its_right_and_grows(w: &mut World) -> Check {
    let first = call(ScInfo, RUNNER_SC, []).value()?;
    w.sleep(1000);
    let second = call(ScInfo, RUNNER_SC, []).value()?;
    holds("time grows", second > first)?;
    let weak = w.without(RUNNER_SC, Rights::SC_INFO)?;
    call(ScInfo, weak, []).fails(BadRights)?;
    let just = w.derive(RUNNER_SC, Rights::SC_INFO)?;
    call(ScInfo, just, []).ok()?;
    call(ScInfo, RUNNER_EC, []).fails(BadType)
}

fn the_log_takes_up_to_40_bytes_from_its_holder(w: &mut World) -> Check {
    call(LogWrite, LOG, [0]).done()?;
    call(LogWrite, LOG, [41]).fails(BadArgument)?;
    call(LogWrite, LOG, [u64::MAX]).fails(BadArgument)?;
    let line = *b"(forty bytes, of which this line is one)";
    let word = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&line[index * 8..index * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    call(LogWrite, LOG, [40, word(0), word(1), word(2), word(3), word(4)]).done()?;
    call(LogWrite, LOG, [1, b'\n'.into()]).done()?;
    let weak = w.without(LOG, Rights::USE)?;
    call(LogWrite, weak, [1, b'x'.into()]).fails(BadRights)?;
    call(LogWrite, ROOT_POOL, [1, b'x'.into()]).fails(BadType)
}
