//! The keys of an interactive run: Ctrl-A and a letter; everything else goes to the guest.

/// The key that begins a command: Ctrl-A.
const PREFIX: u8 = 0x01;

/// What the user sees on Ctrl-A ?.
pub const HELP: &str = "Ctrl-A X  leave\r\nCtrl-A N  type to the next VM\r\nCtrl-A A  send Ctrl-A to the guest\r\nCtrl-A ?  this list\r\n";

/// What to do with what was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send to the guest.
    Send(Vec<u8>),
    /// Leave.
    Leave,
    /// Type to the next VM.
    NextVm,
    /// Show [`HELP`].
    Help,
}

/// Takes commands out of what is typed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys {
    after_prefix: bool,
}

impl Keys {
    /// What to do about `bytes`, in order.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            if !self.after_prefix {
                if byte == PREFIX {
                    self.after_prefix = true;
                } else {
                    plain.push(byte);
                }
                continue;
            }
            self.after_prefix = false;
            let command = match byte.to_ascii_lowercase() {
                b'x' => Action::Leave,
                b'n' => Action::NextVm,
                b'?' | b'h' => Action::Help,
                b'a' | PREFIX => {
                    plain.push(PREFIX);
                    continue;
                }
                _ => continue,
            };
            if !plain.is_empty() {
                actions.push(Action::Send(std::mem::take(&mut plain)));
            }
            actions.push(command);
        }
        if !plain.is_empty() {
            actions.push(Action::Send(plain));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_goes_to_the_guest_but_commands_do_not() {
        let mut keys = Keys::default();
        assert_eq!(keys.push(b"ls\r\x01"), [Action::Send(b"ls\r".to_vec())]);
        assert_eq!(keys.push(b"?a\x01x"), [Action::Help, Action::Send(b"a".to_vec()), Action::Leave]);
    }

    #[test]
    fn ctrl_a_twice_sends_it() {
        assert_eq!(Keys::default().push(b"\x01\x01b\x01a"), [Action::Send(b"\x01b\x01".to_vec())]);
    }

    #[test]
    fn an_unknown_command_is_swallowed() {
        assert_eq!(Keys::default().push(b"\x01qz"), [Action::Send(b"z".to_vec())]);
    }
}
