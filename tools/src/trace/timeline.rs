//! Who had a CPU, from when to when.

use super::recording::Event;
use hypercall_abi::Hypercall;
use hypercall_abi::trace::Kind;

/// Who has a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Nobody: it sleeps.
    Idle,
    /// The kernel.
    Kernel,
    /// User code of a thread.
    User(u32),
    /// The guest of a thread's vCPU, with the kernel's part of entering and leaving it.
    Guest(u32),
}

/// A time in which a CPU had one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First tick.
    pub from: u64,
    /// One past the last.
    pub to: u64,
    /// The owner.
    pub owner: Owner,
    /// Index of the event that it began with.
    pub event: usize,
}

/// The spans of a CPU's events, without gaps.
pub fn spans(events: &[Event]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut owner = None;
    for (index, pair) in events.windows(2).enumerate() {
        owner = owner_after(&events[index..]).or(owner);
        let Some(owner) = owner else { continue };
        let (from, to) = (pair[0].at, pair[1].at);
        match spans.last_mut() {
            Some(last) if last.owner == owner => last.to = to,
            _ => spans.push(Span { from, to, owner, event: index }),
        }
    }
    spans
}

/// Who has the CPU after the first of these events; `None` if that does not change.
fn owner_after(events: &[Event]) -> Option<Owner> {
    let event = &events[0];
    Some(match event.kind {
        Kind::Hypercall => match event.hypercall() {
            Some(Hypercall::VcpuRun) => Owner::Guest(event.ec),
            Some(Hypercall::Call | Hypercall::Reply | Hypercall::CapInfo) => after_short_way(&events[1..]),
            _ => Owner::Kernel,
        },
        Kind::Return => Owner::User(event.ec),
        Kind::Enter => Owner::Guest(event.ec),
        Kind::Interrupt | Kind::Fault | Kind::Window => Owner::Kernel,
        Kind::Idle => Owner::Idle,
        Kind::Wake => return None,
    })
}

/// After a hypercall whose short way records nothing more: the user code that does the next thing, or the kernel, if what comes next
/// is the kernel's.
fn after_short_way(events: &[Event]) -> Owner {
    match events.first() {
        Some(next) if matches!(next.kind, Kind::Hypercall | Kind::Interrupt | Kind::Fault) => {
            Owner::User(next.ec)
        }
        _ => Owner::Kernel,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn event(at: u64, kind: Kind, first: u8, second: u16, ec: u32) -> Event {
        Event { at, kind, first, second, ec }
    }

    fn call(at: u64, number: Hypercall, ec: u32) -> Event {
        event(at, Kind::Hypercall, number as u8, 1, ec)
    }

    fn owners(events: &[Event]) -> Vec<(u64, u64, Owner)> {
        spans(events).iter().map(|span| (span.from, span.to, span.owner)).collect()
    }

    #[test]
    fn a_run_is_the_guests_until_it_returns() {
        let events = [
            call(10, Hypercall::VcpuRun, 3),
            event(20, Kind::Interrupt, 0xf0, 0, 3),
            event(21, Kind::Wake, 0, 0, 4),
            event(25, Kind::Enter, 0, 0, 3),
            event(40, Kind::Return, 0, 5, 3),
            event(44, Kind::Idle, 0, 0, 0),
            event(50, Kind::Interrupt, 0xf0, 0, 0),
        ];
        let expected = [
            (10, 20, Owner::Guest(3)),
            (20, 25, Owner::Kernel),
            (25, 40, Owner::Guest(3)),
            (40, 44, Owner::User(3)),
            (44, 50, Owner::Idle),
        ];
        assert_eq!(owners(&events), expected);
    }

    #[test]
    fn after_a_short_call_the_handler_runs_and_after_its_reply_the_caller() {
        let events = [
            call(1, Hypercall::Call, 3),
            call(5, Hypercall::Reply, 4),
            call(9, Hypercall::Signal, 3),
            event(12, Kind::Return, 0, 0, 3),
        ];
        let expected = [(1, 5, Owner::User(4)), (5, 9, Owner::User(3)), (9, 12, Owner::Kernel)];
        assert_eq!(owners(&events), expected);
    }
}
