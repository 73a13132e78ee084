//! Calls through portals.

use crate::error::Result;
use crate::report::Report;
use crate::stopwatch::{self, Timed};
use bench_protocol::Summary;
#[cfg(target_os = "none")]
use core::arch::global_asm;
use usys::abi::regs::{Head, pack_ec_place};
use usys::abi::{Hypercall, Selector};
use usys::cap::{Cap, Ec, Pd, Pt};
use usys::{hypercall, process, selector};

#[cfg(target_os = "none")]
global_asm!(
    ".pushsection .text.bench_echo, \"ax\"",
    // A portal's server that replies with the words it got.
    ".global bench_echo",
    "bench_echo:",
    "mov eax, {reply}",
    "syscall",
    "ud2",
    ".popsection",
    reply = const Hypercall::Reply as u32,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn bench_echo() -> !;
}

#[cfg(not(target_os = "none"))]
fn bench_echo() -> ! {
    unreachable!("only for the machine")
}

/// Measures calls into this address space, and into that of `server`, which runs this program.
pub fn measure(report: &Report, server: Result<Cap<Pd>>, overhead: u64) {
    for (op, pd, words) in [
        ("ipc.call_same", Ok(process::pd()), 1),
        ("ipc.call_same_8w", Ok(process::pd()), 8),
        ("ipc.call_cross", server.clone(), 1),
        ("ipc.call_cross_8w", server, 8),
    ] {
        report.measure(op, || call(op, pd?, words, overhead));
    }
}

fn call(op: &str, pd: Cap<Pd>, words: u64, overhead: u64) -> Result<Summary> {
    let portal = serve(pd)?;
    let message: alloc::vec::Vec<u64> = (1..=words).collect();
    let timed = Timed::new(Hypercall::Call, portal.selector(), &message);
    let sent = [1, 2, 3, 4, 5, 6, 7, 8];
    if portal.call(sent)? != sent {
        return Err(crate::error::Failure::new("the reply is not what was sent"));
    }
    // SAFETY: the server touches no memory.
    stopwatch::sample(op, overhead, |mode| unsafe { Ok(timed.expect(mode)?.ticks) })
}

/// A portal to [`bench_echo`] in an address space.
fn serve(pd: Cap<Pd>) -> Result<Cap<Pt>> {
    let pool = u64::from(process::selector::POOL.0);
    let echo = bench_echo as *const () as u64;
    let handler: Cap<Ec> = Cap::new(selector::allocate()?);
    let arguments = [pool, pd.selector().0.into(), pack_ec_place(0, true), echo, 0x1000, 0];
    create(Hypercall::CreateEc, handler.selector(), arguments)?;
    let portal: Cap<Pt> = Cap::new(selector::allocate()?);
    let arguments = [pool, handler.selector().0.into(), echo, 7, 0, 0];
    create(Hypercall::CreatePt, portal.selector(), arguments)?;
    Ok(portal)
}

fn create(call: Hypercall, to: Selector, arguments: [u64; 6]) -> Result<()> {
    // SAFETY: the code that starts is `bench_echo`, which touches no memory.
    let (status, _) = unsafe { hypercall::raw(Head::new(call, to), arguments) };
    match status {
        0 => Ok(()),
        status => Err(crate::error::Failure::new(format_args!("{call:?}: status {status}"))),
    }
}
