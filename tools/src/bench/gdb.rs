//! A client of QEMU's gdb server: breakpoints, single steps, and the instruction pointer.
//!
//! The protocol: GDB manual, appendix E.

use anyhow::{Context, Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How long an answer may take: as long as an operation with its samples.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the server may take to appear.
const START: Duration = Duration::from_secs(10);
/// RIP in the answer to `g`: the register after sixteen of eight bytes.
const RIP: std::ops::Range<usize> = 16 * 16..17 * 16;
/// RCX there: the third register.
const RCX: std::ops::Range<usize> = 2 * 16..3 * 16;

/// A connection.
#[derive(Debug)]
pub struct Gdb {
    stream: UnixStream,
    buffer: Vec<u8>,
    rcx: u64,
}

impl Gdb {
    /// Connects to the server's socket, once it is there.
    pub fn connect(socket: &Path) -> Result<Self> {
        const PAUSE: Duration = Duration::from_millis(20);
        let mut waited = Duration::ZERO;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if waited < START => thread::sleep(PAUSE),
                Err(error) => return Err(error).context("QEMU offers no gdb server"),
            }
            waited += PAUSE;
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Gdb { stream, buffer: Vec::new(), rcx: 0 })
    }

    /// Stops at an address.
    pub fn set_breakpoint(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("Z1,{address:x},1"))
    }

    /// Stops there no more.
    pub fn clear_breakpoint(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("z1,{address:x},1"))
    }

    /// Runs to the next breakpoint; `None` if the machine ended.
    pub fn run(&mut self) -> Result<Option<u64>> {
        self.stop("c")
    }

    /// Executes one instruction, without interrupts; `None` if the machine ended.
    pub fn step(&mut self) -> Result<Option<u64>> {
        self.stop("s")
    }

    /// The instruction pointer after a command that lets the machine run.
    fn stop(&mut self, command: &str) -> Result<Option<u64>> {
        let Some(answer) = self.ask(command)? else {
            return Ok(None);
        };
        if !answer.starts_with(b"T") {
            // W and X: it ended.
            return Ok(None);
        }
        self.instruction_pointer()
    }

    fn instruction_pointer(&mut self) -> Result<Option<u64>> {
        let Some(registers) = self.ask("g")? else {
            return Ok(None);
        };
        self.rcx = register(&registers, RCX)?;
        Ok(Some(register(&registers, RIP)?))
    }

    /// RCX where the machine stopped last.
    pub fn rcx(&self) -> u64 {
        self.rcx
    }

    /// Reads memory at an address of the running code; nothing where that is not mapped.
    pub fn read(&mut self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        let answer = self.ask(&format!("m{address:x},{bytes:x}"))?.unwrap_or_default();
        let pairs = answer.chunks_exact(2);
        Ok(pairs.map_while(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect())
    }

    fn expect_ok(&mut self, command: &str) -> Result<()> {
        let answer = self.ask(command)?;
        ensure!(answer.as_deref() == Some(b"OK"), "QEMU's gdb server refuses {command}");
        Ok(())
    }

    /// Sends a packet and returns the answer; `None` if the machine ended.
    fn ask(&mut self, command: &str) -> Result<Option<Vec<u8>>> {
        let packet = format!("${command}#{:02x}", checksum(command.as_bytes()));
        if self.stream.write_all(packet.as_bytes()).is_err() {
            return Ok(None);
        }
        loop {
            if let Some((answer, length)) = packet_in(&self.buffer) {
                let answer = answer.to_vec();
                self.buffer.drain(..length);
                // Where the machine ended meanwhile, nobody wants to know.
                let _ = self.stream.write_all(b"+");
                return Ok(Some(answer));
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    bail!("the machine did not reach the next marker in time")
                }
                Err(error) => return Err(error).context("lost QEMU's gdb server"),
            }
        }
    }
}

/// A register of eight bytes in the answer to `g`.
fn register(registers: &[u8], range: std::ops::Range<usize>) -> Result<u64> {
    let digits = registers
        .get(range)
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .context("QEMU's gdb server shows other registers than expected")?;
    Ok(u64::from_str_radix(digits, 16)?.swap_bytes())
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The contents of the first packet, and how many bytes there are to its end.
fn packet_in(buffer: &[u8]) -> Option<(&[u8], usize)> {
    let start = buffer.iter().position(|&byte| byte == b'$')? + 1;
    let end = start + buffer[start..].iter().position(|&byte| byte == b'#')?;
    (buffer.len() >= end + 3).then_some((&buffer[start..end], end + 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_found_behind_acknowledgements_and_only_when_complete() {
        assert_eq!(packet_in(b"+$OK#9a"), Some((&b"OK"[..], 7)));
        assert_eq!(packet_in(b"+$OK#9"), None);
        assert_eq!(packet_in(b"+"), None);
        assert_eq!(checksum(b"OK"), 0x9a);
    }
}
