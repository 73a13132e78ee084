//! Which guest runs how, and how its virtual machine has to end.

use crate::line;

/// A machine that Nacre is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// VT-x with EPT.
    Vtx,
    /// AMD-V with NPT.
    Svm,
    /// AMD-V as Bochs has it.
    SvmBochs,
}

/// Every machine: where most cases run.
pub const ALL: &[Machine] = &[Machine::Vtx, Machine::Svm, Machine::SvmBochs];

/// Machines that end the run of a guest whose interrupts are off when a host interrupt comes. Bochs 2.7 does not with SVM, which
/// has no preemption timer to help out.
pub const PREEMPTIVE: &[Machine] = &[Machine::Vtx, Machine::Svm];

/// Machines that keep a guest's debug exceptions apart from the host's. Bochs 2.7 does not with SVM: the single-step trap of an
/// instruction that exits instead is the host's, and DR6 does not say what a breakpoint's exception was.
pub const DEBUGGED: &[Machine] = &[Machine::Vtx, Machine::Svm];

/// How a virtual machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The guest writes [`crate::exit::PASS`], and its tally has no failures.
    Pass,
    /// The guest writes this value to the exit port.
    Exit(u32),
    /// The guest's processor shuts down.
    TripleFault,
    /// The guest halts with interrupts off.
    Stuck,
    /// The guest powers off.
    PoweredOff,
    /// The guest asks for a reset.
    Reset,
    /// The guest runs until it is stopped from outside.
    Endless,
}

/// One run of one guest.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name of the guest's binary.
    pub guest: &'static str,
    /// What the case shows, as a sentence.
    pub shows: &'static str,
    /// The guest's command line.
    pub cmdline: &'static str,
    /// What is typed on the guest's console once it has printed the line [`line::READY`].
    pub input: &'static str,
    /// A line that has to appear on the guest's console.
    pub prints: Option<&'static str>,
    /// The guest's memory, in MiB.
    pub memory_mib: u32,
    /// How the virtual machine has to end.
    pub expect: Expect,
    /// The guest of a second virtual machine beside this one: it has to pass, and its end ends the case.
    pub beside: Option<&'static str>,
    /// Where the case runs.
    pub machines: &'static [Machine],
}

const fn case(guest: &'static str, shows: &'static str) -> Case {
    Case {
        guest,
        shows,
        cmdline: "",
        input: "",
        prints: None,
        memory_mib: 16,
        expect: Expect::Pass,
        beside: None,
        machines: ALL,
    }
}

impl Case {
    const fn cmdline(self, cmdline: &'static str) -> Self {
        Case { cmdline, ..self }
    }

    const fn ends(self, expect: Expect) -> Self {
        Case { expect, ..self }
    }

    const fn prints(self, text: &'static str) -> Self {
        Case { prints: Some(text), ..self }
    }

    const fn only_on(self, machines: &'static [Machine]) -> Self {
        Case { machines, ..self }
    }

    const fn beside(self, guest: &'static str) -> Self {
        Case { beside: Some(guest), ..self }
    }
}

/// What the case `interrupts` shows.
const INTERRUPTS: &str = "interrupts arrive when, where and in which order they should";

/// Every case, in the order in which they are best run: what the later ones rely on comes first.
pub const CASES: &[Case] = &[
    case("hello", "a guest prints a line and exits").prints(line::HELLO),
    case("exit_code", "a guest's exit value becomes the host's status")
        .cmdline("value=77")
        .ends(Expect::Exit(77)),
    case("cpuid_msr", "CPUID and model-specific registers show what the CPU model says, and refuse the rest"),
    case("ports", "ports behave as on a PC with and without their device"),
    case("mmio", "device registers work through many kinds of instruction"),
    case("memory", "all memory of the map holds data and code, and nothing is behind it"),
    Case { memory_mib: 256, ..case("memory", "a larger memory works as a small one does") },
    case("interrupts", INTERRUPTS).only_on(PREEMPTIVE),
    case("interrupts", INTERRUPTS).cmdline("nmi=exits").only_on(&[Machine::SvmBochs]),
    case("timer", "timers and clocks agree, and none goes back"),
    case("fpu", "x87, SSE and AVX registers survive exits and sleep"),
    case("debug_regs", "breakpoints and single step work across exits").only_on(DEBUGGED),
    case("modes", "real, protected and compatibility mode exit as long mode does"),
    case("syscalls", "user mode and both kinds of system call work across exits"),
    Case { input: "hello, world q", ..case("echo", "what is typed arrives by interrupt and is sent back") },
    case("triple_fault", "a guest's triple fault ends its virtual machine").ends(Expect::TripleFault),
    case("stuck", "a guest that nothing can wake is noticed").ends(Expect::Stuck),
    case("spin", "a guest that loops with interrupts off can be stopped")
        .prints("now: endless loop")
        .ends(Expect::Endless)
        .only_on(PREEMPTIVE),
    case("poweroff", "a guest powers off").ends(Expect::PoweredOff),
    case("reset", "a guest resets itself through ACPI").cmdline("how=acpi").ends(Expect::Reset),
    case("reset", "a guest resets itself through the keyboard controller")
        .cmdline("how=i8042")
        .ends(Expect::Reset),
    case("reset", "a guest resets itself through port CF9H").cmdline("how=cf9").ends(Expect::Reset),
    case("reset", "a guest resets itself through port 92H").cmdline("how=port92").ends(Expect::Reset),
    case("poison", "registers that are full of a pattern keep it"),
    case("witness", "nothing of an earlier virtual machine is in a new one"),
    case("poison", "no other virtual machine ever sees that pattern").beside("witness"),
    case("triple_fault", "a triple fault leaves another virtual machine's work unharmed")
        .ends(Expect::TripleFault)
        .beside("timer"),
    case("spin", "an endless loop leaves another virtual machine's work unharmed")
        .ends(Expect::Endless)
        .beside("timer")
        .only_on(PREEMPTIVE),
    case("steal", "a guest that is alone is told of no stolen time").cmdline("alone=yes"),
    case("spin", "a guest is told the time that an endless loop takes from it")
        .ends(Expect::Endless)
        .beside("steal")
        .only_on(PREEMPTIVE),
];

#[cfg(test)]
mod tests {
    use super::{CASES, Case, Expect};

    #[test]
    fn no_two_cases_of_a_machine_show_the_same() {
        for (index, case) in CASES.iter().enumerate() {
            let is_same = |other: &&Case| other.shows == case.shows;
            let is_elsewhere = |other: &Case| other.machines.iter().all(|one| !case.machines.contains(one));
            assert!(CASES[..index].iter().filter(is_same).all(is_elsewhere), "{}", case.shows);
        }
    }

    #[test]
    fn every_case_runs_somewhere() {
        for case in CASES {
            assert!(!case.machines.is_empty(), "{}", case.shows);
        }
    }

    #[test]
    fn every_guest_of_a_second_machine_passes_on_its_own_too() {
        for guest in CASES.iter().filter_map(|case| case.beside) {
            let alone = CASES.iter().any(|case| case.guest == guest && case.expect == Expect::Pass);
            assert!(alone, "{guest}");
        }
    }
}
