//! What a guest can make its VMM hold, in bytes of heap.

use block_channel::{Client, HEAP_BYTES, Server, Signal};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use usys::Window;
use vdev::block::{Backend, Request, Token};
use vdev::guest_mem::VecMemory;
use vdev::segment::Segment;
use vmm_protocol::block::{CHANNEL_BYTES, DiskInfo, SECTOR_BYTES, Status};

thread_local! {
    /// Bytes that this thread holds now, and most.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(more: usize, less: usize) {
    // A thread that ends has no such cell any more.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = (now + more).saturating_sub(less);
        held.set((now, most.max(now)));
    });
}

// SAFETY: it hands everything to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

#[derive(Clone)]
struct Silent;

impl Signal for Silent {
    fn signal(&self) {}
}

/// Submits as long as there is room; returns how many requests that were.
fn flood(client: &mut Client<Silent>, memory: &mut VecMemory, next: &mut u64, chain: &[Segment]) -> usize {
    let mut count = 0;
    while client.has_room() {
        let request = Request::Read { sector: 0, into: chain };
        assert!(client.submit(memory, Token(*next), &request).is_pending());
        (*next, count) = (*next + 1, count + 1);
    }
    count
}

#[test]
fn a_guest_with_deep_queues_and_long_requests_stays_within_the_heap_set_aside() {
    let disk = DiskInfo { sectors: 1 << 20, is_read_only: false, has_cache: false };
    for segments in [1, 3, 15, 254, 256] {
        let window = Window::leak(CHANNEL_BYTES);
        let mut memory = VecMemory::new(4 << 20);
        let mut server = Server::new(window, Silent, 1, disk).unwrap();
        let chain: Vec<_> = (0..segments).map(|at| Segment { gpa: at * 4096, len: 4096 }).collect();
        let before = HELD.get().0;
        HELD.set((before, before));
        let mut client = Client::new(window, Silent).unwrap();
        server.begin();
        assert!(client.connect().is_some());
        let mut next = 0;
        let at_once = flood(&mut client, &mut memory, &mut next, &chain);
        assert!(at_once >= 4, "{at_once} requests of {segments} segments");
        let mut completed = 0;
        for round in 0..200 {
            if round % 50 == 49 {
                // The guest resets its device, with all of that in flight.
                client.abandon();
                completed = next;
            }
            while let Some(request) = server.take() {
                assert!(request.bytes().is_multiple_of(SECTOR_BYTES));
                server.complete(request.slot, Status::Done);
            }
            while let Some((_, result)) = client.take_completed(&mut memory) {
                assert_eq!(result, Ok(()));
                completed += 1;
            }
            flood(&mut client, &mut memory, &mut next, &chain);
        }
        assert!(completed > 8, "there is room again after a request is done");
        let most = HELD.get().1 - before;
        assert!(most <= HEAP_BYTES, "{most} bytes for requests of {segments} segments, of {HEAP_BYTES}");
    }
}
