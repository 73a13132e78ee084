//! Traces of Bochs: its debugger stops at `xchg bx, bx` and prints what is executed.

use super::heavy::{self, Counts};

/// Windows in a run, at most.
const WINDOWS: usize = 200;

/// The guests' code is below this address, user space above (`vmm/sys/link.ld`).
pub const GUEST_END: u64 = 0x40_0000;

/// What is added to the configuration.
pub const CONFIGURATION: &str = "magic_break: enabled=1\n";

/// Commands for the debugger: to the first marker of a window, and on to its second one.
pub fn commands() -> String {
    format!("c\n{}", "trace on\nc\ntrace off\nc\n".repeat(WINDOWS))
}

/// Counts what Bochs printed.
#[derive(Debug, Default)]
pub struct Trace {
    windows: Vec<Counts>,
    is_open: bool,
    /// The REP that was executed last: its class, bytes by iteration, and when it began.
    repeated: Option<(&'static str, u64, u64)>,
}

impl Trace {
    /// Takes a line of Bochs's stdout.
    pub fn push(&mut self, line: &str) {
        if line.ends_with(") Magic breakpoint") {
            self.is_open = !self.is_open;
            self.repeated = None;
            if self.is_open {
                self.windows.push(Counts::new());
            }
        } else if self.is_open
            && let (Some(counts), Some(executed)) = (self.windows.last_mut(), Executed::parse(line))
        {
            // A REP is one line, but a tick for each iteration; one without iterations looks as if it had one.
            if let Some((class, size, began)) = self.repeated.take() {
                heavy::count_bytes(counts, class, executed.tick.saturating_sub(began) * size);
            }
            if executed.address < GUEST_END {
                return;
            }
            match heavy::repeated(&executed.bytes) {
                Some((class, size)) => self.repeated = Some((class, size, executed.tick)),
                None => heavy::count(counts, &executed.bytes),
            }
        }
    }

    /// What was counted in each window, in order.
    pub fn into_windows(self) -> Vec<Counts> {
        self.windows
    }
}

/// An instruction in the trace.
struct Executed {
    tick: u64,
    address: u64,
    bytes: Vec<u8>,
}

impl Executed {
    /// Reads a line such as
    /// `(0).[53215286] [0x000000800bc2] 002b:0000000000400bc2 (unk. ctxt): mov rax, r14 ; 4c89f0`.
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix('(')?.split_once(')')?.1;
        let (place, digits) = rest.strip_prefix(".[")?.rsplit_once(';')?;
        let (tick, place) = place.split_once(']')?;
        let address = place.split(' ').nth(2)?.split_once(':')?.1;
        let pairs = digits.trim().as_bytes().chunks(2);
        Some(Executed {
            tick: tick.parse().ok()?,
            address: u64::from_str_radix(address, 16).ok()?,
            bytes: pairs
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_count_in_their_window_unless_they_are_the_guests() {
        let mut trace = Trace::default();
        for line in [
            "(0).[1] [0x0] 0008:ffffffff8020b0e0 (unk. ctxt): swapgs ; 0f01f8",
            "(0) Magic breakpoint",
            "(0) [0x000000800bc2] 002b:0000000000400bc2 (unk. ctxt): syscall ; 0f05",
            "(0).[53215287] [0x000000800bc5] 002b:0000000000400bc5 (unk. ctxt): syscall                   ; 0f05",
            "(0).[53215288] [0x00000020b0e0] 0008:ffffffff8020b0e0 (unk. ctxt): swapgs                    ; 0f01f8",
            "(0).[53215288] [0x000000001010] 0008:0000000000001010 (unk. ctxt): out 0x80, al ; e680",
            "(0).[53215289] [0x00000020b0e0] 0008:ffffffff8020b0e3 (unk. ctxt): rep stosq ; f348ab",
            "(0).[53215321] [0x00000020b0e3] 0008:ffffffff8020b0e6 (unk. ctxt): mov eax, dword ptr ds:[rbx] ; 8b03",
            "(0) Magic breakpoint",
            "(0).[53215290] [0x00000020b0e3] 0008:ffffffff8020b0e3 (unk. ctxt): out dx, al ; ee",
        ] {
            trace.push(line);
        }
        assert_eq!(
            trace.into_windows(),
            [Counts::from([
                ("bytes_zeroed".to_owned(), 256),
                ("swapgs".to_owned(), 1),
                ("syscall_sysret".to_owned(), 1)
            ])]
        );
    }
}
