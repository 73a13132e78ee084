//! vCPUs that run on another CPU.

use super::{Group, Needs, group};
use crate::guest::{CODE, Guest};
use crate::prelude::*;
use crate::threads::{LOW, Pending};
use hypercall_abi::cap::BindRole;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::FpuOperation;

pub(super) const GROUP: Group = group!(
    "vCPUs on another CPU",
    Needs::GuestsOnTwoCpus => [
        a_vcpu_runs_on_its_own_cpu_alone,
        a_poke_reaches_another_cpu,
        a_signal_reaches_a_guest_on_another_cpu,
        a_page_is_revoked_under_a_run_on_another_cpu,
        a_vcpu_is_revoked_under_a_run_on_another_cpu,
        a_pool_is_revoked_under_a_run_on_another_cpu,
        guest_memory_is_revoked_under_a_guest_on_another_cpu,
        guest_memory_becomes_read_only_under_a_guest_on_another_cpu,
        the_thread_of_a_run_on_another_cpu_ends,
        a_halted_vcpu_on_another_cpu_is_woken,
    ],
);

/// A guest that counts on another CPU.
fn start(w: &mut World) -> Seen<(Guest, Pending)> {
    let cpu = w.other_cpu();
    let mut guest = Guest::on(w, cpu)?;
    let run = guest.count_on(w, cpu)?;
    Ok((guest, run))
}

/// Several times, since much of this is about moments.
fn repeatedly(w: &mut World, test: impl Fn(&mut World) -> Check) -> Check {
    (0..8).try_for_each(|_| w.scoped(100, &test))
}

fn a_vcpu_runs_on_its_own_cpu_alone(w: &mut World) -> Check {
    let cpu = w.other_cpu();
    let mut guest = Guest::on(w, cpu)?;
    guest.run().fails(WrongCpu)?;
    call(VcpuRead, guest.vcpu, [1]).fails(WrongCpu)?;
    call(VcpuFpu, guest.vcpu, [FpuOperation::Reset as u64]).fails(WrongCpu)?;
    w.call_on(cpu, VcpuRead, guest.vcpu, [1])?.done()
}

fn a_poke_reaches_another_cpu(w: &mut World) -> Check {
    repeatedly(w, |w| {
        let (guest, run) = start(w)?;
        call(VcpuPoke, guest.vcpu, []).done()?;
        equal("kind", w.answer(&run)?.value()?, ExitKind::Poked as u64)
    })
}

fn a_signal_reaches_a_guest_on_another_cpu(w: &mut World) -> Check {
    repeatedly(w, |w| {
        let (mut guest, run) = start(w)?;
        let (ntfn, badged) = (w.ntfn()?, w.sel());
        call(Derive, ntfn, [0, badged, 0xffff, 0, 0, 8]).done()?;
        call(Bind, guest.vcpu, [ntfn, BindRole::VcpuNotification as u64]).done()?;
        call(Signal, badged, []).done()?;
        equal("kind", w.answer(&run)?.value()?, ExitKind::Notified as u64)?;
        equal("bits", guest.page().notified, 8)
    })
}

fn a_page_is_revoked_under_a_run_on_another_cpu(w: &mut World) -> Check {
    repeatedly(w, |w| {
        let (guest, run) = start(w)?;
        call(Revoke, guest.bound, [1]).done()?;
        w.answer(&run)?.fails_with(Unbound)
    })
}

fn a_vcpu_is_revoked_under_a_run_on_another_cpu(w: &mut World) -> Check {
    repeatedly(w, |w| {
        let (guest, run) = start(w)?;
        call(Revoke, guest.vcpu, [1]).done()?;
        w.answer(&run)?.fails_with(Aborted)
    })
}

fn a_pool_is_revoked_under_a_run_on_another_cpu(w: &mut World) -> Check {
    repeatedly(w, |w| {
        let (outer, pool) = (w.pool, w.sub_pool(64)?);
        w.pool = pool;
        let cpu = w.other_cpu();
        let mut guest = Guest::on(w, cpu)?;
        w.pool = outer;
        let run = guest.count_on(w, cpu)?;
        call(Revoke, pool, [1]).done()?;
        // Its guest space may have ended first.
        let answer = w.answer(&run)?;
        let is_fault = answer.status() == Some(Success) && answer.values[0] == ExitKind::NestedFault as u64;
        if is_fault { Ok(()) } else { answer.fails_with(Aborted) }
    })
}

fn guest_memory_is_revoked_under_a_guest_on_another_cpu(w: &mut World) -> Check {
    repeatedly(w, |w| {
        let (mut guest, run) = start(w)?;
        call(Revoke, guest.memory, [1]).done()?;
        equal("kind", w.answer(&run)?.value()?, ExitKind::NestedFault as u64)?;
        equal("address", guest.page().exit_info[0] & !0xfff, CODE)
    })
}

fn guest_memory_becomes_read_only_under_a_guest_on_another_cpu(w: &mut World) -> Check {
    repeatedly(w, |w| {
        let (mut guest, run) = start(w)?;
        call(Map, guest.memory, [guest.space, 0x2000, 2, 1, 1]).gives([1, 0, 0])?;
        equal("kind", w.answer(&run)?.value()?, ExitKind::NestedFault as u64)?;
        equal("address", guest.page().exit_info[0], 0x2000)
    })
}

fn the_thread_of_a_run_on_another_cpu_ends(w: &mut World) -> Check {
    repeatedly(w, |w| {
        let (mut guest, run) = start(w)?;
        run.end()?;
        guest.page().deadline = 1;
        let cpu = w.other_cpu();
        let kind = w.call_on(cpu, VcpuRun, guest.vcpu, [])?.value()?;
        equal("kind", kind, ExitKind::Deadline as u64)
    })
}

fn a_halted_vcpu_on_another_cpu_is_woken(w: &mut World) -> Check {
    repeatedly(w, |w| {
        let cpu = w.other_cpu();
        let mut guest = Guest::on(w, cpu)?;
        guest.page().activity = hypercall_abi::vcpu::ACTIVITY_HALTED;
        let run = w.begin((cpu, LOW), VcpuRun, guest.vcpu, [])?;
        w.sleep(1000);
        equal("is done", run.is_done(), false)?;
        call(VcpuPoke, guest.vcpu, []).done()?;
        equal("kind", w.answer(&run)?.value()?, ExitKind::Poked as u64)
    })
}
