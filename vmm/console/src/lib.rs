//! The console server: owns COM1 and merges every VM's streams on it.
//!
//! Records come from the rings of the VMs and of the root task ([`switch`]), become text or frames ([`mod@line`]), and leave
//! through a queue that the interrupts of COM1 empty ([`uart`]). What arrives goes to the VMs' input rings
//! ([`input`]). Nothing here waits for anybody: a VM that writes too fast finds its ring full, one that does not read
//! loses input.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod input;
pub mod line;
pub mod switch;
pub mod uart;

use crate::input::Input;
use crate::line::Line;
use crate::switch::Switch;
use crate::uart::Uart;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;
use usys::abi::{Selector, Status};
use usys::cap::{Cap, Irqs, Ntfn};
use usys::object::{FOREVER, Trigger};
use usys::port::PortRange;
use usys::process::{self, ProcessInfo};
use usys::ring::{Consumer, Producer};
use usys::{Window, cpu};
use vmm_protocol::process::{ConsoleConfig, INPUT, OUTPUT, ROOT_OUTPUT, console as protocol};

/// How long COM1 may stay silent while it has bytes to send, in ms: an interrupt that was lost costs no more.
const WATCHDOG_MS: u64 = 20;
/// How long to leave the CPU to others before going on with what one turn did not finish, in ms.
const BREATH_MS: u64 = 1;
/// How long the last bytes of the kernel's log may take to leave the UART, in polls of a millisecond.
const SETTLE_POLLS: u32 = 100;

/// Runs the console server.
pub fn main(info: &'static ProcessInfo) -> ! {
    usys::logger::to_kernel();
    match Server::new(info) {
        Ok(server) => server.run(),
        Err(what) => {
            log::error!("{what}");
            usys::start::fault()
        }
    }
}

/// Everything of the running server.
struct Server {
    tsc_hz: u64,
    uart: Uart<PortRange>,
    irq: Cap<Irqs>,
    switch: Switch,
    line: Line,
    input: Input,
    /// Bytes for the line.
    queue: VecDeque<u8>,
    /// The root task was told that everything is sent.
    is_done: bool,
}

impl Server {
    fn new(info: &'static ProcessInfo) -> Result<Self, &'static str> {
        let config: ConsoleConfig =
            postcard::from_bytes(info.config()).map_err(|_| "the configuration is damaged")?;
        let window = |name: &str| info.window(name).ok_or("a ring is missing");
        let consumer = |window: Window| Consumer::attach(window).map_err(|_| "a ring is too small");
        let producer = |window: Window| Producer::attach(window).map_err(|_| "a ring is too small");
        let root = consumer(window(ROOT_OUTPUT)?)?;
        let mut outputs = Vec::new();
        let mut inputs = Vec::new();
        for index in 0..config.vms.len() {
            outputs.push(consumer(window(&format!("{OUTPUT}{index}"))?)?);
            inputs.push(producer(window(&format!("{INPUT}{index}"))?)?);
        }
        let uart = Uart::new(PortRange::new(protocol::COM1, protocol::COM1_PORTS));
        Ok(Server {
            tsc_hz: info.header.tsc_hz,
            uart,
            irq: Cap::new(Selector(protocol::IRQ)),
            switch: Switch::new(root, outputs),
            line: Line::new(config.mode, config.vms),
            input: Input::new(config.mode, inputs),
            queue: VecDeque::new(),
            is_done: false,
        })
    }

    fn run(mut self) -> ! {
        self.settle();
        self.uart.init();
        if !self.uart.is_present() {
            log::error!("no COM1: consoles go nowhere");
        }
        match self.irq.bind(0, Cap::new(Selector(protocol::IRQ_NTFN)), Trigger::Edge) {
            // A predecessor bound it to the same notification.
            Ok(()) | Err(usys::Error { status: Status::Occupied, .. }) => {}
            // The watchdog still moves bytes, slowly.
            Err(error) => log::error!("no interrupt for COM1: {error}"),
        }
        self.line.hello(&mut self.queue);
        loop {
            self.turn();
            let raised = self.wait();
            if raised & protocol::IRQ_BIT != 0 {
                self.interrupt();
            }
        }
    }

    /// One round: input in, output out, and whoever waits is told.
    fn turn(&mut self) {
        self.uart.receive(|byte| self.input.push(byte));
        let mut signals = self.input.deliver();
        signals |= self.switch.pump(&mut self.line, &mut self.queue);
        for index in (0..64).filter(|index| signals >> index & 1 != 0) {
            let doorbell: Cap<Ntfn> = Cap::new(Selector(protocol::DOORBELLS + index));
            // A VM that is gone needs no signal.
            let _ = doorbell.signal();
        }
        if !self.uart.is_present() {
            self.queue.clear();
        }
        self.uart.transmit(&mut self.queue);
        if self.switch.said_bye() && !self.is_done && self.queue.is_empty() && self.uart.is_idle() {
            self.is_done = true;
            // The root task turns the machine off, with or without this.
            let _ = process::parent().signal();
        }
    }

    /// Serves the interrupt until the UART has no reason left: one that comes while it is masked makes no edge.
    fn interrupt(&mut self) {
        const ROUNDS: u32 = 16;
        for _ in 0..ROUNDS {
            self.uart.receive(|byte| self.input.push(byte));
            self.uart.transmit(&mut self.queue);
            let _ = self.irq.acknowledge(0);
            if !self.uart.has_reason() {
                break;
            }
        }
    }

    fn wait(&self) -> u64 {
        let is_sending = !self.queue.is_empty() || self.switch.said_bye() && !self.is_done;
        let deadline = if self.switch.is_behind() {
            cpu::deadline_in(BREATH_MS, self.tsc_hz)
        } else if is_sending {
            cpu::deadline_in(WATCHDOG_MS, self.tsc_hz)
        } else {
            FOREVER
        };
        process::events().wait(deadline).unwrap_or(0)
    }

    /// Lets the UART send what the kernel's log left in it before it is set up again.
    fn settle(&self) {
        for _ in 0..SETTLE_POLLS {
            if self.uart.is_idle() {
                return;
            }
            let _ = process::events().wait(cpu::deadline_in(1, self.tsc_hz));
        }
    }
}
