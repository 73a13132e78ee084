//! Bad disk drivers. In place of one without DMA, a driver without a disk: every sector reads as its own number, and some of them
//! (`tproto::disk`) fail, or make the process crash or loop. In place of one with DMA, the driver of that disk, but that it has its device
//! write what it reads over the kernel.
#![no_std]
#![forbid(unsafe_code)]

use block_channel::{Server, Wait};
use tproto::disk;
use usys::abi::Selector;
use usys::cap::{Cap, Ntfn};
use usys::object::FOREVER;
use usys::process::{self, ProcessInfo};
use vmm_protocol::block::{DiskInfo, Operation, Request, SECTOR_BYTES, Status};
use vmm_protocol::process::{CHANNEL, DriverConfig, driver};

/// Where the kernel's image is (`kernel/link.ld`).
const KERNEL: u64 = 0x20_0000;

/// Serves a disk, badly.
pub fn main(info: &'static ProcessInfo) -> ! {
    usys::logger::to_kernel();
    let config = postcard::from_bytes::<DriverConfig>(info.config());
    if config.as_ref().is_ok_and(|config| config.pci.is_some()) {
        drv_virtio_blk::process::serve(info, |_| KERNEL);
    }
    let session = config.map(|config| config.session).ok();
    let user: Cap<Ntfn> = Cap::new(Selector(driver::USER));
    let nothing = DiskInfo { sectors: disk::SECTORS, is_read_only: false, has_cache: false };
    let server = info.window(CHANNEL).zip(session).and_then(|(channel, session)| {
        log::info!("driver number {session}");
        Server::new(channel, user, session, nothing).ok()
    });
    match server {
        Some(server) => serve(server, session.unwrap_or_default()),
        None => usys::start::fault(),
    }
}

fn serve(mut server: Server<Cap<Ntfn>>, session: u32) -> ! {
    loop {
        if server.is_asked_to_begin() {
            server.begin();
        }
        while let Some(request) = server.take() {
            let status = answer(&server, session, &request);
            server.complete(request.slot, status);
        }
        server.notify();
        if server.prepare_to_wait() == Wait::Sleep {
            let _bits = process::events().wait(FOREVER);
        }
    }
}

fn answer(server: &Server<Cap<Ntfn>>, session: u32, request: &Request) -> Status {
    let sectors = request.sector..request.sector + u64::from(request.count);
    if sectors.contains(&disk::CRASHES) && session == 1 {
        usys::start::fault();
    }
    if sectors.contains(&disk::LOOPS) && session == 2 {
        // Without PAUSE, for which QEMU leaves its translated code each time.
        #[expect(clippy::empty_loop, reason = "a driver that does nothing else is what is tested")]
        loop {}
    }
    if [disk::FAILS, disk::CRASHES, disk::LOOPS].iter().any(|bad| sectors.contains(bad)) {
        return Status::Io;
    }
    if request.operation == Operation::Read
        && let Ok(data) = server.data(request.slot, request.bytes())
    {
        for (index, sector) in sectors.enumerate() {
            // Inside the data, which is as long as the sectors.
            let _ = data.write(index * SECTOR_BYTES, &sector.to_le_bytes());
        }
    }
    Status::Done
}
