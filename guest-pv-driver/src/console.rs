//! A terminal.

use crate::device::Device;
use crate::error::Result;
use crate::hal::Hal;
use crate::inbox::{Filled, Inbox};
use crate::queue::{Queue, QueueMemory};
use crate::transfer::transfer;
use hypercall_abi::guest::device::{Interrupt, Kind};
use hypercall_abi::guest::op;
use hypercall_abi::guest::ring::Request;

const INPUT: u32 = 0;
const OUTPUT: u32 = 1;
/// Buffers for input, and their bytes.
const BUFFERS: usize = 8;
const BUFFER_BYTES: usize = 64;

/// The memory of a console.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct ConsoleMemory {
    input: QueueMemory,
    output: QueueMemory,
    buffers: [[u8; BUFFER_BYTES]; BUFFERS],
}

impl ConsoleMemory {
    /// Memory of a console that is not used yet.
    pub const fn new() -> Self {
        ConsoleMemory {
            input: QueueMemory::new(),
            output: QueueMemory::new(),
            buffers: [[0; BUFFER_BYTES]; BUFFERS],
        }
    }
}

impl Default for ConsoleMemory {
    fn default() -> Self {
        Self::new()
    }
}

/// A paravirtual console. With the feature `embedded-io` it is a `Read` and a `Write`.
#[derive(Debug)]
pub struct Console<H: Hal> {
    input: Inbox<H, BUFFERS, BUFFER_BYTES>,
    output: Queue<H>,
    device: Device<H>,
    /// A buffer of input, and how much of it was read.
    current: Option<(Filled, usize)>,
}

impl<H: Hal + Clone> Console<H> {
    /// Starts the console with its device page at this guest-physical address.
    pub fn new(hal: H, address: u64, memory: &'static mut ConsoleMemory) -> Result<Self> {
        let mut device = Device::open_kind(hal, address, Kind::Console)?;
        device.negotiate(0);
        let input = Inbox::new(device.attach(INPUT, &mut memory.input)?, &mut memory.buffers);
        let output = device.attach(OUTPUT, &mut memory.output)?;
        device.start()?;
        let mut console = Console { input, output, device, current: None };
        console.input.fill()?;
        Ok(console)
    }
}

impl<H: Hal> Console<H> {
    /// Writes all of `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(op::MAX_WRITE) {
            let request = Request { op: op::WRITE, ..Request::default() };
            let (pointer, len) = (piece.as_ptr(), piece.len());
            // SAFETY: the slice is borrowed for the call, and the device only reads it.
            unsafe { transfer(&self.device, &mut self.output, request, pointer, len)? };
        }
        Ok(())
    }

    /// Reads what has been typed, as much of it as there is room for; 0 if nothing has.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        if into.is_empty() || !self.has_input()? {
            return Ok(0);
        }
        let Some((filled, done)) = self.current.take() else {
            return Ok(0);
        };
        let bytes = self.input.bytes(&filled).get(done..).unwrap_or_default();
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        if len < bytes.len() {
            self.current = Some((filled, done + len));
        } else {
            self.input.give_back(filled)?;
            self.input.queue().publish();
        }
        Ok(len)
    }

    /// Whether something has been typed.
    pub fn has_input(&mut self) -> Result<bool> {
        if self.current.is_none() {
            self.current = self.input.take()?.map(|filled| (filled, 0));
        }
        Ok(self.current.is_some())
    }

    /// Has input raise an interrupt from now on, where [`Self::sleep_is_safe`] asks for it.
    pub fn set_interrupt(&mut self, interrupt: Option<Interrupt>) {
        self.device.set_queue_interrupt(INPUT, interrupt);
    }

    /// Asks for an interrupt with the next input. `false` if input is there already, and the interrupt may not come.
    pub fn sleep_is_safe(&mut self) -> Result<bool> {
        Ok(self.current.is_none() && self.input.queue().request_interrupt()?)
    }
}

impl<H: Hal> core::fmt::Write for Console<H> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.write(text.as_bytes()).map_err(|_| core::fmt::Error)
    }
}

#[cfg(feature = "embedded-io")]
mod io {
    use super::Console;
    use crate::Error;
    use crate::hal::Hal;
    use embedded_io::{ErrorKind, ErrorType, Read, ReadReady, Write};

    impl embedded_io::Error for Error {
        fn kind(&self) -> ErrorKind {
            match self {
                Error::TimedOut => ErrorKind::TimedOut,
                _ => ErrorKind::Other,
            }
        }
    }

    impl<H: Hal> ErrorType for Console<H> {
        type Error = Error;
    }

    impl<H: Hal> Read for Console<H> {
        /// Waits for at least a byte.
        fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
            loop {
                match Console::read(self, into)? {
                    0 if !into.is_empty() => {
                        if !self.output.hal().keep_waiting() {
                            return Err(Error::TimedOut);
                        }
                    }
                    len => return Ok(len),
                }
            }
        }
    }

    impl<H: Hal> ReadReady for Console<H> {
        fn read_ready(&mut self) -> Result<bool, Error> {
            self.has_input()
        }
    }

    impl<H: Hal> Write for Console<H> {
        fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
            Console::write(self, bytes)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> Result<(), Error> {
            Ok(())
        }
    }
}
