//! Device pages: registers, kinds, states and features (SPEC.md 11.2).

use crate::numbers::numbers;

/// Bytes between device pages, and of each.
pub const PAGE_BYTES: u64 = 4096;

/// The value of [`reg::MAGIC`]: "NPVD" in memory.
pub const MAGIC: u32 = u32::from_le_bytes(*b"NPVD");

/// Network: the doorbell call of the channel is so many behind that of queue 0.
pub const NET_CHANNEL_DOORBELL: u16 = 2;

/// Queues that a device has at most.
pub const MAX_QUEUES: usize = 8;

/// Offsets of registers in a device page. All are little-endian; 64-bit registers may be accessed as two halves.
pub mod reg {
    /// [`super::MAGIC`] (32 bits).
    pub const MAGIC: u64 = 0x00;
    /// The device's [`super::Kind`] (32 bits).
    pub const KIND: u64 = 0x04;
    /// [`super::State`] (32 bits). Writing is how the driver starts and resets the device.
    pub const STATE: u64 = 0x08;
    /// The [`super::Fault`] that stopped the device (32 bits), 0 if none did.
    pub const FAULT: u64 = 0x0c;
    /// Features that the device offers (64 bits).
    pub const OFFERED: u64 = 0x10;
    /// Features that the driver accepts, some of those (64 bits).
    pub const ACCEPTED: u64 = 0x18;
    /// Index of the doorbell call for queue 0 (32 bits); queue *q* has the one *q* behind it.
    pub const DOORBELL: u64 = 0x20;
    /// How many queues there are (32 bits).
    pub const QUEUES: u64 = 0x24;
    /// Requests that a queue has room for at most (32 bits).
    pub const QUEUE_SIZE_MAX: u64 = 0x28;
    /// Changes when configuration changes (32 bits).
    pub const GENERATION: u64 = 0x2c;
    /// The interrupt that says that the configuration changed or the device stopped, as [`super::Interrupt`] (64 bits).
    pub const INTERRUPT: u64 = 0x30;
    /// Configuration of the kind.
    pub const CONFIG: u64 = 0x40;
    /// Registers of queue 0; those of queue *q* are [`QUEUE_STRIDE`] · *q* behind.
    pub const QUEUE: u64 = 0x100;
    /// Bytes between the registers of two queues.
    pub const QUEUE_STRIDE: u64 = 0x20;
    /// In a queue's registers: guest-physical address of its memory, a multiple of 64 (64 bits).
    pub const QUEUE_ADDRESS: u64 = 0x00;
    /// In a queue's registers: how many requests it has room for, a power of two; 0 for an unused queue (32 bits).
    pub const QUEUE_SIZE: u64 = 0x08;
    /// In a queue's registers: the interrupt for completions, as [`super::Interrupt`] (64 bits).
    pub const QUEUE_INTERRUPT: u64 = 0x10;
}

/// Offsets of the configuration of each kind, from the beginning of the page.
pub mod config {
    /// Block: sectors of 512 bytes (64 bits).
    pub const BLOCK_SECTORS: u64 = 0x40;
    /// Network: the device's address (6 bytes), then two of zero.
    pub const NET_ADDRESS: u64 = 0x40;
    /// Network: the longest packet without its Ethernet header, in bytes (32 bits).
    pub const NET_MTU: u64 = 0x48;
    /// Network with [`super::feature::NET_DIRECT`]: guest-physical address of its channel ([`super::super::channel`]) (64 bits).
    pub const NET_CHANNEL: u64 = 0x50;
    /// Balloon: how many pages the host would like to have (64 bits).
    pub const BALLOON_TARGET: u64 = 0x40;
    /// Clock: ticks of the guest's TSC in a second (64 bits).
    pub const CLOCK_TSC_HZ: u64 = 0x40;
    /// Clock: nanoseconds since 1970-01-01 00:00 UTC when the guest's TSC was 0 (64 bits), modulo 2^64; the host does not
    /// know the time if the whole is less than a year.
    pub const CLOCK_UNIX_NS: u64 = 0x48;
}

numbers! {
    /// What a device is.
    Kind: u32 {
        /// Bytes to and from a terminal: queue 0 takes buffers for input, queue 1 output.
        Console = 1,
        /// Sectors: every queue takes every request.
        Block = 2,
        /// Ethernet frames: queue 0 takes buffers for frames that arrive, queue 1 frames to send.
        Net = 3,
        /// Random bytes: queue 0.
        Entropy = 4,
        /// Memory that the guest does without: queue 0.
        Balloon = 5,
        /// The time: registers only.
        Clock = 6,
        /// The end of the VM and its log: queue 0.
        Control = 7,
    }
}

numbers! {
    /// What a device does.
    State: u32 {
        /// Nothing. Writing it resets the device: it forgets its queues, and touches no memory of the guest from then on.
        Reset = 0,
        /// It serves its queues. Writing it starts the device.
        Running = 1,
        /// It stopped because of what its driver did, and says why in [`reg::FAULT`]; it can only be reset. Not written.
        Failed = 2,
    }
}

numbers! {
    /// Why a device stopped.
    Fault: u32 {
        /// The driver accepted features that were not offered.
        Features = 1,
        /// A queue's size is no power of two or too large, or its memory is not memory or not aligned.
        Queue = 2,
        /// More requests were submitted than the queue has room for.
        Index = 3,
        /// A request names memory that is not the guest's.
        Address = 4,
        /// An indirect table has no whole number of entries, none, or more than [`super::ring::MAX_SEGMENTS`].
        Segments = 5,
    }
}

/// An interrupt that a device raises, as if by a message: a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// 16 to 255.
    pub vector: u8,
    /// The APIC id of the CPU that gets it.
    pub apic_id: u32,
}

impl Interrupt {
    const ENABLED: u64 = 1 << 8;

    /// The register's value: vector in bits 0-7, bit 8 set, APIC id in bits 32-63.
    pub const fn encode(self) -> u64 {
        self.vector as u64 | Self::ENABLED | (self.apic_id as u64) << 32
    }

    /// What the register says; `None` for no interrupt, as in 0, and for a vector that no interrupt has.
    pub const fn decode(raw: u64) -> Option<Self> {
        let interrupt = Interrupt { vector: raw as u8, apic_id: (raw >> 32) as u32 };
        if raw & Self::ENABLED == 0 || interrupt.vector < 16 { None } else { Some(interrupt) }
    }
}

/// Features by kind; bit 63 to 48 are the same for every kind, and none is defined yet.
pub mod feature {
    /// Block: the disk cannot be written. Offered means so, accepted or not.
    pub const BLOCK_READ_ONLY: u64 = 1 << 0;
    /// Block: written data is durable only after a flush.
    pub const BLOCK_FLUSH: u64 = 1 << 1;
    /// Block: discarding gives room back.
    pub const BLOCK_DISCARD: u64 = 1 << 2;
    /// Network: the driver may use the channel to the switch itself, in place of the queues.
    pub const NET_DIRECT: u64 = 1 << 0;
    /// Balloon: free pages may be reported without giving them away.
    pub const BALLOON_REPORT: u64 = 1 << 0;
}
