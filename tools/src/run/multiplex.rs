//! Several consoles on one terminal: each line behind its VM's name, and a line that is not ended yet is shown too.

/// What the terminal shows now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Multiplexer {
    /// The VM whose line the cursor is in; none at the beginning of a line.
    inside: Option<usize>,
}

impl Multiplexer {
    /// The text that shows `bytes` of VM number `vm`, called `name`.
    pub fn push(&mut self, vm: usize, name: &str, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for &byte in bytes.iter().filter(|&&byte| byte != b'\r') {
            if self.inside.is_some_and(|other| other != vm) {
                text.extend(b"\r\n");
                self.inside = None;
            }
            if self.inside.is_none() {
                text.extend(format!("[{name}] ").as_bytes());
            }
            if byte == b'\n' {
                text.extend(b"\r\n");
                self.inside = None;
            } else {
                text.push(byte);
                self.inside = Some(vm);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_vms_name() {
        let mut screen = Multiplexer::default();
        let mut text = screen.push(0, "a", b"one\r\ntw");
        text.extend(screen.push(0, "a", b"o\r\n\r\n# "));
        text.extend(screen.push(1, "b", b"three\r\n"));
        text.extend(screen.push(0, "a", b"ls"));
        let expected = "[a] one\r\n[a] two\r\n[a] \r\n[a] # \r\n[b] three\r\n[a] ls";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
