//! Ring 3: SYSCALL and SYSRET, SYSENTER and SYSEXIT, SWAPGS, RDTSCP; with exits on either side.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use trt::trap::{self, BREAKPOINT, Frame, GENERAL_PROTECTION};
use trt::{check, cpu, debug, desc, msr, port, skip, user};

const ROUNDS: u64 = 200;
const ADD: u64 = 1;
const EXIT_IN_KERNEL: u64 = 2;
const KERNEL_GS: u64 = 3;
const TSC_AUX: u32 = 0x2a;

/// System calls of the test.
fn handle(number: u64, argument: u64) -> u64 {
    match number {
        ADD => argument + 1,
        EXIT_IN_KERNEL => {
            port::outb(0x80, argument as u8);
            cpu::cpuid(0, 0);
            argument ^ 0xff
        }
        KERNEL_GS => user::gs_word(),
        _ => 0,
    }
}

/// In ring 3: how many of the calls went wrong.
extern "C" fn calls(rounds: u64) -> u64 {
    let mut wrong = 0;
    for round in 0..rounds {
        wrong += u64::from(user::syscall(ADD, round) != round + 1);
        // CPUID exits in ring 3 as well; what the VMM or the kernel run meanwhile must not change LSTAR.
        cpu::cpuid(0, 0);
        wrong += u64::from(user::syscall(EXIT_IN_KERNEL, round) != round ^ 0xff);
        wrong += u64::from(user::gs_word() != user::USER_GS_MARK);
        wrong += u64::from(user::syscall(KERNEL_GS, 0) == user::USER_GS_MARK);
    }
    wrong
}

/// In ring 3: how many RDTSCP gave another TSC_AUX, or time that went back.
extern "C" fn time(rounds: u64) -> u64 {
    let mut wrong = 0;
    let mut last = 0;
    for _ in 0..rounds {
        let (now, aux) = user::rdtscp();
        wrong += u64::from(aux != TSC_AUX || now < last);
        last = now;
        cpu::cpuid(0, 0);
    }
    wrong
}

/// In ring 3: as `calls`, by SYSENTER.
extern "C" fn fast_calls(rounds: u64) -> u64 {
    (0..rounds)
        .filter(|round| {
            cpu::cpuid(0, 0);
            user::sysenter(EXIT_IN_KERNEL, *round) != round ^ 0xff
        })
        .count() as u64
}

/// In ring 3: INT3, which is allowed; its argument comes back.
extern "C" fn breakpoint(argument: u64) -> u64 {
    debug::int3();
    argument
}

/// In ring 3: an OUT, which is not allowed.
extern "C" fn port_write(argument: u64) -> u64 {
    port::outb(0x80, 0);
    argument
}

static TRAP_CS: AtomicU64 = AtomicU64::new(0);

fn on_breakpoint(frame: &mut Frame) {
    TRAP_CS.store(frame.cs, Relaxed);
}

/// The guest.
pub fn run() {
    user::enable_syscall(handle);
    check!(eq user::run(calls, ROUNDS), 0, "{ROUNDS} rounds of SYSCALL, SYSRET, SWAPGS and exits go right");

    trap::set_handler(BREAKPOINT, Some(on_breakpoint));
    check!(eq user::run(breakpoint, 7), 7, "an exception in ring 3 returns there");
    check!(eq TRAP_CS.load(Relaxed), u64::from(desc::USER_CODE), "it came from ring 3");
    let refused =
        trap::catch(|| user::run(port_write, 1)).is_err_and(|trap| trap.vector == GENERAL_PROTECTION);
    check!(refused, "OUT in ring 3 raises #GP and reaches no device");

    if cpu::cpuid(0x8000_0001, 0).edx >> 27 & 1 != 0 {
        // SAFETY: only RDTSCP reads it.
        unsafe { cpu::wrmsr(msr::TSC_AUX, TSC_AUX.into()) };
        check!(eq user::run(time, ROUNDS), 0, "RDTSCP in ring 3 gives our TSC_AUX across exits");
    } else {
        skip!("RDTSCP is not offered");
    }

    if is_intel() {
        user::enable_sysenter();
        check!(
            eq user::run(fast_calls, ROUNDS), 0,
            "{ROUNDS} rounds of SYSENTER, SYSEXIT and exits go right",
        );
    } else {
        skip!("SYSENTER in long mode is Intel's");
    }
}

fn is_intel() -> bool {
    let leaf = cpu::cpuid(0, 0);
    (leaf.ebx, leaf.edx, leaf.ecx) == (0x756e_6547, 0x4965_6e69, 0x6c65_746e)
}
