//! A paravirtual device: its page of registers, and its queues (SPEC.md 11.2).

use super::balloon;
use super::block::Block;
use super::net::{self, Net};
use super::queue::{Queue, Turn};
use super::stream::{self, Control};
use crate::Request;
use crate::balloon::Balloon;
use crate::console::Console;
use crate::entropy::Entropy;
use crate::guest_mem::GuestMemory;
use alloc::boxed::Box;
use core::fmt;
use hypercall_abi::guest::device::{Fault, Interrupt, Kind, MAGIC, MAX_QUEUES, State, config, feature, reg};

/// The largest queue.
pub const QUEUE_SIZE_MAX: u32 = 256;

/// The queue of a network card for frames that come.
const RECEIVE: usize = 0;

/// What a device is.
pub enum Core {
    /// A console, and the bytes of its output that nobody took yet.
    Console(Console, usize),
    /// A disk.
    Block(Block),
    /// A network card.
    Net(Net),
    /// A source of random numbers.
    Entropy(Box<dyn Entropy>),
    /// Memory that the guest does without.
    Balloon(Balloon),
    /// The clock: ticks of the guest's TSC in a second.
    Clock(u64),
    /// Power off, reset, exit, log.
    Control(Control),
}

impl Core {
    /// A console with nothing typed and nothing shown.
    pub fn console() -> Self {
        Core::Console(Console::new(), 0)
    }

    fn kind(&self) -> Kind {
        match self {
            Core::Console(..) => Kind::Console,
            Core::Block(_) => Kind::Block,
            Core::Net(_) => Kind::Net,
            Core::Entropy(_) => Kind::Entropy,
            Core::Balloon(_) => Kind::Balloon,
            Core::Clock(_) => Kind::Clock,
            Core::Control(_) => Kind::Control,
        }
    }

    fn queues(&self) -> usize {
        match self {
            Core::Console(..) | Core::Net(_) => 2,
            Core::Block(_) | Core::Entropy(_) | Core::Balloon(_) | Core::Control(_) => 1,
            Core::Clock(_) => 0,
        }
    }

    /// Forgets what was for the driver that there was.
    fn reset(&mut self) {
        match self {
            Core::Block(block) => block.reset(),
            Core::Net(net) => net.reset(),
            Core::Balloon(balloon) => balloon.reset(),
            _ => {}
        }
    }

    fn features(&self) -> u64 {
        match self {
            Core::Block(block) => block.features(),
            Core::Net(net) => net.features(),
            Core::Balloon(balloon) if balloon.takes_reports() => feature::BALLOON_REPORT,
            _ => 0,
        }
    }

    /// Lets queue `index` be served.
    #[inline]
    fn serve<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        index: usize,
        queue: &mut Queue,
    ) -> Result<Turn, Fault> {
        match self {
            Core::Block(block) => block.serve(memory, index, queue),
            Core::Net(net) if index == RECEIVE => net.receive(memory, queue),
            Core::Net(net) => net.send(memory, queue),
            Core::Console(console, _) if index == 0 => stream::serve_input(console, memory, queue),
            Core::Console(console, waiting) => stream::serve_output(console, waiting, memory, queue),
            Core::Entropy(source) => stream::serve_entropy(&mut **source, memory, queue),
            Core::Balloon(balloon) => balloon::serve(balloon, memory, queue),
            Core::Control(control) => control.serve(memory, queue),
            Core::Clock(_) => Ok(Turn::default()),
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind())
    }
}

/// Registers of a queue.
#[derive(Clone, Copy, Debug, Default)]
struct Setup {
    address: u64,
    size: u32,
    interrupt: u64,
}

/// A device with its registers.
#[derive(Debug)]
pub struct Device {
    core: Core,
    /// Index of the doorbell call of queue 0.
    doorbell: u16,
    state: State,
    fault: Option<Fault>,
    accepted: u64,
    interrupt: u64,
    generation: u32,
    setup: [Setup; MAX_QUEUES],
    queues: [Option<Box<Queue>>; MAX_QUEUES],
    /// Queues that have to be looked at without a doorbell, as bits.
    behind: u8,
}

/// What a device wants of the board.
pub trait Board {
    /// An interrupt.
    fn raise(&mut self, interrupt: Interrupt);

    /// Something for the whole VM.
    fn request(&mut self, request: Request);

    /// The device stopped because of its driver.
    fn report(&mut self, kind: Kind, fault: Fault);
}

impl Device {
    /// A device in reset, whose queues have doorbell calls from `doorbell` on.
    pub fn new(core: Core, doorbell: u16) -> Self {
        Device {
            core,
            doorbell,
            state: State::Reset,
            fault: None,
            accepted: 0,
            interrupt: 0,
            generation: 0,
            setup: [Setup::default(); MAX_QUEUES],
            queues: [const { None }; MAX_QUEUES],
            behind: 0,
        }
    }

    /// What it is.
    pub fn core(&mut self) -> &mut Core {
        &mut self.core
    }

    /// Whether a driver has started it.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Whether [`Self::catch_up`] has something to do.
    pub fn is_behind(&self) -> bool {
        self.behind != 0
    }

    /// Has queue `index` looked at soon, because its device has news for it.
    pub fn nudge(&mut self, index: usize) {
        if self.queues.get(index).is_some_and(Option::is_some) {
            self.behind |= 1 << index;
        }
    }

    /// The line of the vCPU that interrupts the driver past the VMM, if there is one now, and the interrupt.
    pub fn line(&self) -> Option<(usize, Interrupt)> {
        let Core::Net(net) = &self.core else { return None };
        net.line().zip(Interrupt::decode(self.setup[RECEIVE].interrupt))
    }

    /// Reads a register of 1 to 8 bytes; `unix_ns` is Unix time in nanoseconds at guest TSC 0.
    pub fn read(&self, offset: u64, size: u8, unix_ns: u64) -> u64 {
        let word = |offset: u64| u64::from(self.read_word(offset, unix_ns));
        match (size, offset % 4) {
            (4, 0) => word(offset),
            (8, 0) => word(offset) | word(offset + 4) << 32,
            _ => 0,
        }
    }

    fn read_word(&self, offset: u64, unix_ns: u64) -> u32 {
        let half = |value: u64| if offset & 4 == 0 { value as u32 } else { (value >> 32) as u32 };
        match offset & !7 {
            _ if offset == reg::MAGIC => MAGIC,
            _ if offset == reg::KIND => self.core.kind() as u32,
            _ if offset == reg::STATE => self.state as u32,
            _ if offset == reg::FAULT => self.fault.map_or(0, |fault| fault as u32),
            reg::OFFERED => half(self.core.features()),
            _ if offset == reg::DOORBELL => self.doorbell.into(),
            _ if offset == reg::QUEUES => self.core.queues() as u32,
            _ if offset == reg::QUEUE_SIZE_MAX => QUEUE_SIZE_MAX,
            _ if offset == reg::GENERATION => self.generation,
            config => half(self.read_config(config, unix_ns)),
        }
    }

    fn read_config(&self, offset: u64, unix_ns: u64) -> u64 {
        match (&self.core, offset) {
            (Core::Block(block), config::BLOCK_SECTORS) => block.sectors(),
            (Core::Net(net), config::NET_ADDRESS) => net.address(),
            (Core::Net(_), config::NET_MTU) => net::MTU,
            (Core::Net(net), config::NET_CHANNEL) => net.channel(),
            (Core::Balloon(balloon), config::BALLOON_TARGET) => balloon.target(),
            (Core::Clock(tsc_hz), config::CLOCK_TSC_HZ) => *tsc_hz,
            (Core::Clock(_), config::CLOCK_UNIX_NS) => unix_ns,
            _ => 0,
        }
    }

    /// Writes a register of 1 to 8 bytes.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        if size < 4 || !offset.is_multiple_of(4) {
            return;
        }
        self.write_word(offset, value as u32);
        if size == 8 {
            self.write_word(offset + 4, (value >> 32) as u32);
        }
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        let place = |register: &mut u64| {
            let shift = if offset & 4 == 0 { 0 } else { 32 };
            *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
        };
        match offset {
            reg::STATE if value == State::Reset as u32 => self.reset(),
            reg::STATE if value == State::Running as u32 && self.state == State::Reset => self.start(),
            reg::INTERRUPT..reg::CONFIG if offset & !7 == reg::INTERRUPT => place(&mut self.interrupt),
            reg::QUEUE.. => {
                let index = ((offset - reg::QUEUE) / reg::QUEUE_STRIDE) as usize;
                let Some(setup) = self.setup[..self.core.queues()].get_mut(index) else {
                    return;
                };
                let is_reset = self.state == State::Reset;
                match (offset - reg::QUEUE) % reg::QUEUE_STRIDE {
                    reg::QUEUE_SIZE if is_reset => setup.size = value,
                    within if within & !7 == reg::QUEUE_ADDRESS && is_reset => place(&mut setup.address),
                    within if within & !7 == reg::QUEUE_INTERRUPT => place(&mut setup.interrupt),
                    _ => {}
                }
            }
            _ if offset & !7 == reg::ACCEPTED && self.state == State::Reset => place(&mut self.accepted),
            _ => {}
        }
    }

    /// As after power-on, but for what the device holds.
    pub fn reset(&mut self) {
        self.core.reset();
        self.state = State::Reset;
        self.fault = None;
        (self.accepted, self.interrupt, self.behind) = (0, 0, 0);
        self.setup = [Setup::default(); MAX_QUEUES];
        self.queues = [const { None }; MAX_QUEUES];
    }

    fn start(&mut self) {
        self.state = State::Running;
        if self.accepted & !self.core.features() != 0 {
            return self.stop(Fault::Features);
        }
        if let Core::Net(net) = &mut self.core {
            net.start(self.accepted);
        }
        for index in 0..self.core.queues() {
            let Setup { address, size, .. } = self.setup[index];
            if size == 0 {
                continue;
            }
            match Queue::new(address, size, QUEUE_SIZE_MAX) {
                Ok(queue) => self.queues[index] = Some(Box::new(queue)),
                Err(fault) => return self.stop(fault),
            }
        }
    }

    fn stop(&mut self, fault: Fault) {
        self.state = State::Failed;
        self.fault = Some(fault);
        self.behind = 0;
        self.queues = [const { None }; MAX_QUEUES];
        self.core.reset();
    }

    /// Has a balloon say how many pages the owner of the memory would like to have.
    pub fn set_balloon_target(&mut self, pages: u64, board: &mut impl Board) {
        if let Core::Balloon(balloon) = &mut self.core
            && balloon.set_target(pages)
        {
            self.generation = self.generation.wrapping_add(1);
            Interrupt::decode(self.interrupt).into_iter().for_each(|interrupt| board.raise(interrupt));
        }
    }

    /// The driver rang the doorbell of queue `index`.
    #[inline]
    pub fn ring<M: GuestMemory>(&mut self, index: usize, memory: &mut M, board: &mut impl Board) {
        let Some(Some(queue)) = self.queues.get_mut(index) else {
            return;
        };
        match self.core.serve(memory, index, queue) {
            Ok(turn) => self.follow(index, turn, board),
            Err(fault) => self.fail(fault, memory, board),
        }
    }

    #[inline]
    fn follow(&mut self, index: usize, turn: Turn, board: &mut impl Board) {
        if turn.has_more {
            self.behind |= 1 << index;
        }
        if turn.interrupts
            && let Some(interrupt) = Interrupt::decode(self.setup[index].interrupt)
        {
            board.raise(interrupt);
        }
        if let Core::Control(control) = &mut self.core
            && let Some(request) = control.take_request()
        {
            board.request(request);
        }
    }

    /// Looks at the queues that were left, or nudged.
    pub fn catch_up<M: GuestMemory>(&mut self, memory: &mut M, board: &mut impl Board) {
        let behind = core::mem::take(&mut self.behind);
        for index in (0..MAX_QUEUES).filter(|index| behind >> index & 1 != 0) {
            self.ring(index, memory, board);
        }
    }

    /// Ends requests that a backend has carried out since, and those that wait for what came.
    pub fn collect<M: GuestMemory>(&mut self, memory: &mut M, board: &mut impl Board) {
        let block = match &mut self.core {
            Core::Block(block) => block,
            Core::Net(net) if net.is_direct() => {
                let interrupt = Interrupt::decode(self.setup[RECEIVE].interrupt);
                if let Some(interrupt) = interrupt.filter(|_| net.has_news()) {
                    board.raise(interrupt);
                }
                return;
            }
            Core::Net(_) => return self.ring(RECEIVE, memory, board),
            _ => return,
        };
        match block.collect(memory, &mut self.queues) {
            Ok(touched) => {
                self.behind |= touched;
                self.catch_up(memory, board);
            }
            Err(fault) => self.fail(fault, memory, board),
        }
    }

    #[cold]
    fn fail<M: GuestMemory>(&mut self, fault: Fault, memory: &mut M, board: &mut impl Board) {
        self.queues.iter().flatten().for_each(|queue| queue.show_fault(memory, fault));
        self.stop(fault);
        board.report(self.core.kind(), fault);
        let of_queues = self.setup.iter().map(|setup| setup.interrupt);
        for interrupt in of_queues.chain([self.interrupt]).filter_map(Interrupt::decode) {
            board.raise(interrupt);
        }
    }
}
