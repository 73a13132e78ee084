//! virtio over MMIO by drivers that know nothing of this project: those of the crate virtio-drivers.
//!
//! The disk has 64 sectors; each 64-bit word of it says where it is, as that of the guest `pv`.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use tproto::pv;
use trt::lapic::Lapic;
use trt::{check, clock, cpu, ioapic, irq};
use virtio_drivers::device::blk::{BlkReq, BlkResp, RespStatus, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};

/// Where the board has the first device, and how many there can be (README, "The board").
const FIRST: usize = 0xd000_0000;
const DEVICES: usize = 8;
/// Input of the I/O APIC of the first device.
const FIRST_GSI: u32 = 16;
const VECTOR: u8 = 0x47;

/// Pages for rings.
const PAGES: usize = 16;

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[u8; PAGES * PAGE_SIZE]>);

// SAFETY: one CPU; each page is given away once.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; PAGES * PAGE_SIZE]));
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Memory as the runtime has it: physical addresses are addresses.
pub(crate) struct OneToOne;

// SAFETY: pages are handed out once, zeroed, and never taken back; memory is mapped one to one.
unsafe impl Hal for OneToOne {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let first = TAKEN.fetch_add(pages, Ordering::Relaxed);
        assert!(first + pages <= PAGES, "the drivers need more pages than there are");
        // SAFETY: the pages are inside the arena.
        let start = unsafe { ARENA.0.get().cast::<u8>().add(first * PAGE_SIZE) };
        (start.addr() as PhysAddr, NonNull::new(start).unwrap_or(NonNull::dangling()))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        let address = core::ptr::with_exposed_provenance_mut(address as usize);
        NonNull::new(address).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().expose_provenance().get() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// The guest.
pub fn run() {
    let (mut disks, mut sources, mut sockets) = (0, 0, 0);
    for index in 0..DEVICES {
        let header = core::ptr::with_exposed_provenance_mut::<VirtIOHeader>(FIRST + index * PAGE_SIZE);
        let Some(header) = NonNull::new(header) else { continue };
        // SAFETY: the board has a device's registers here, or nothing that answers.
        let Ok(transport) = (unsafe { MmioTransport::new(header, PAGE_SIZE) }) else {
            continue;
        };
        match transport.device_type() {
            DeviceType::Block => {
                disks += 1;
                disk(transport, index as u32);
            }
            DeviceType::EntropySource => {
                sources += 1;
                random(transport);
            }
            DeviceType::Socket => {
                sockets += 1;
                crate::sockets::run(transport);
            }
            other => check!(false, "a device of type {other:?} is there"),
        }
    }
    check!(eq(disks, sockets), (1, 1), "there is one disk, and one device for sockets");
    if sources == 0 {
        trt::skip!("the CPU has no random numbers");
    }
}

fn random(transport: MmioTransport<'static>) {
    let Ok(mut source) = VirtIORng::<OneToOne, _>::new(transport) else {
        check!(false, "the random number generator starts");
        return;
    };
    let mut bytes = [[0u8; 32]; 2];
    for half in &mut bytes {
        check!(eq source.request_entropy(half), Ok(32), "random bytes fill a buffer");
    }
    check!(bytes[0] != bytes[1] && bytes[0][..16] != bytes[0][16..], "they are not always the same");
}

/// Whether a buffer holds sectors from this one on, as the host made them.
fn holds(buffer: &[u8], sector: usize) -> bool {
    let start = (sector * SECTOR_SIZE) as u64;
    let words = buffer.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    words.zip((start..).step_by(8)).all(|(word, expected)| word == expected)
}

fn disk(transport: MmioTransport<'static>, index: u32) {
    let Ok(mut disk) = VirtIOBlk::<OneToOne, _>::new(transport) else {
        check!(false, "the disk starts");
        return;
    };
    check!(
        eq(disk.capacity(), disk.readonly()),
        (pv::SECTORS, false),
        "the disk has its size, and can be written"
    );
    let mut id = [0; 20];
    let len = disk.device_id(&mut id);
    check!(eq len.map(|len| &id[..len]), Ok(b"nacre-disk0".as_slice()), "the disk says its name");
    let mut buffer = [0u8; 8 * SECTOR_SIZE];
    check!(eq disk.read_blocks(3, &mut buffer), Ok(()), "eight sectors are read at once");
    check!(holds(&buffer, 3), "they hold what the host put there");
    check!(eq disk.write_blocks(60, &[0xa5; SECTOR_SIZE]), Ok(()), "a sector is written");
    check!(eq disk.flush(), Ok(()), "the disk is flushed");
    check!(eq disk.read_blocks(60, &mut buffer[..2 * SECTOR_SIZE]), Ok(()), "it is read back");
    let (written, beside) = buffer[..2 * SECTOR_SIZE].split_at(SECTOR_SIZE);
    check!(written == [0xa5; SECTOR_SIZE] && holds(beside, 61), "nothing else was written");
    let end = disk.read_blocks(pv::SECTORS as usize, &mut buffer[..SECTOR_SIZE]);
    check!(eq end, Err(Error::IoError), "behind the end there is nothing");
    many(&mut disk, index);
}

/// Requests in flight together, whose end an interrupt tells.
fn many(disk: &mut VirtIOBlk<OneToOne, MmioTransport<'static>>, index: u32) {
    const COUNT: usize = 5;
    Lapic::enable_best();
    irq::count(VECTOR);
    // Edge-triggered, as Linux sets it; with all other bits of the redirection entry 0, to APIC id 0.
    ioapic::set_entry(FIRST_GSI + index, VECTOR.into());
    disk.enable_interrupts();
    // Of what came before: while the line is up, nothing new is told.
    disk.ack_interrupt();
    let mut buffers = [[0u8; SECTOR_SIZE]; COUNT];
    let (mut requests, mut responses) = ([const { None }; COUNT], [const { None }; COUNT]);
    let mut tokens = [0; COUNT];
    for (sector, buffer) in buffers.iter_mut().enumerate() {
        let request = requests[sector].insert(BlkReq::default());
        let response = responses[sector].insert(BlkResp::default());
        // SAFETY: buffers, requests and responses stay where they are until all have ended, below.
        match unsafe { disk.read_blocks_nb(sector, request, buffer, response) } {
            Ok(token) => tokens[sector] = token,
            Err(error) => check!(false, "{COUNT} requests fit the queue: {error}"),
        }
    }
    let is_told = clock::wait_until(1000, || {
        cpu::sti_nop_cli();
        irq::seen(VECTOR) > 0
    });
    check!(is_told, "an interrupt tells of the end of {COUNT} requests");
    check!(disk.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT, "it was for the queue");
    let mut ended = 0;
    while let Some(token) = disk.peek_used() {
        let Some(at) = tokens.iter().position(|other| *other == token) else { break };
        let (Some(request), Some(response)) = (&requests[at], &mut responses[at]) else { break };
        // SAFETY: these are what the request was made with.
        let done = unsafe { disk.complete_read_blocks(token, request, &mut buffers[at], response) };
        ended += usize::from(done == Ok(()) && response.status() == RespStatus::OK);
    }
    check!(eq ended, COUNT, "all have ended well");
    let sectors = buffers.iter().enumerate();
    check!(sectors.clone().all(|(sector, buffer)| holds(buffer, sector)), "each has its sector");
    disk.disable_interrupts();
}
