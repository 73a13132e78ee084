//! What a process knows about itself: the page its parent wrote, and its first capabilities.

use crate::cap::{Cap, Log, Ntfn, Pd, Pool};
use crate::layout;
use crate::window::{OutOfWindow, Window};
use core::slice;
use core::sync::atomic::{AtomicBool, Ordering};
use hypercall_abi::PAGE_SIZE;

/// Selectors of the capabilities that every process begins with.
pub mod selector {
    use hypercall_abi::Selector;
    /// Its own protection domain.
    pub const PD: Selector = Selector(1);
    /// The pool that pays for what it creates.
    pub const POOL: Selector = Selector(2);
    /// Its kernel log; only trusted services have it.
    pub const LOG: Selector = Selector(5);
    /// The notification that it waits on.
    pub const EVENTS: Selector = Selector(8);
    /// Signals its parent.
    pub const PARENT: Selector = Selector(9);
    /// First of the selectors that mean something for one service only.
    pub const SERVICE: Selector = Selector(16);
    /// First selector that it may use as it likes.
    pub const FREE: Selector = Selector(128);
}

/// The process's own protection domain.
pub const fn pd() -> Cap<Pd> {
    Cap::new(selector::PD)
}

/// The pool that pays for what the process creates.
pub const fn pool() -> Cap<Pool> {
    Cap::new(selector::POOL)
}

/// The kernel's log, if the process has it.
pub const fn kernel_log() -> Cap<Log> {
    Cap::new(selector::LOG)
}

/// The notification that the process waits on.
pub const fn events() -> Cap<Ntfn> {
    Cap::new(selector::EVENTS)
}

/// Signals the parent.
pub const fn parent() -> Cap<Ntfn> {
    Cap::new(selector::PARENT)
}

/// First field of [`ProcessInfo`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"NACREPI\x01");
/// Most regions that a parent can share with a process.
pub const MAX_WINDOWS: usize = 96;
/// Bytes of a region's name.
pub const WINDOW_NAME: usize = 32;
/// Most bytes of a process's configuration.
pub const MAX_CONFIG: usize = (layout::INFO_PAGES * PAGE_SIZE) as usize - size_of::<InfoHeader>();

/// Who else has a region's memory, and so how the process may look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Sharing {
    /// Others, who may change it at any moment.
    Shared = 0,
    /// Nobody: the process may write it.
    Private = 1,
    /// Nobody writes it while the process lives.
    Constant = 2,
}

/// A region that the parent mapped for the process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowInfo {
    /// Its name, zero-padded.
    pub name: [u8; WINDOW_NAME],
    /// Address, between [`layout::WINDOWS`] and [`layout::WINDOWS_END`].
    pub address: u64,
    /// Bytes that mean something; whole pages are mapped.
    pub bytes: u64,
    /// A [`Sharing`].
    pub sharing: u64,
}

/// The part of [`ProcessInfo`] before the configuration.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct InfoHeader {
    /// [`MAGIC`].
    pub magic: u64,
    /// The process's name, zero-padded UTF-8; log lines begin with it.
    pub name: [u8; 32],
    /// TSC ticks in a second.
    pub tsc_hz: u64,
    /// [`hypercall_abi::boot_info::Machine`] bits.
    pub machine: u64,
    /// XCR0 bits that guests may set.
    pub guest_xcr0: u64,
    /// TSC when the kernel's first instruction ran.
    pub entry_tsc: u64,
    /// Wall-clock time at [`Self::wall_clock_tsc`], in seconds since 1970 (UTC); 0 if the machine has no clock.
    pub wall_clock: u64,
    /// TSC when [`Self::wall_clock`] was read.
    pub wall_clock_tsc: u64,
    /// Bytes of the heap at [`layout::HEAP`].
    pub heap_bytes: u64,
    /// CPU of the first thread.
    pub cpu: u32,
    /// Entries of `windows`.
    pub window_count: u32,
    /// Bytes of the configuration.
    pub config_bytes: u64,
    /// The shared regions.
    pub windows: [WindowInfo; MAX_WINDOWS],
}

/// What the parent says to a process: [`layout::INFO_PAGES`] read-only pages at [`layout::INFO`].
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
pub struct ProcessInfo {
    /// Everything but the configuration.
    pub header: InfoHeader,
    /// The configuration, in postcard form; its type is the service's.
    pub config: [u8; MAX_CONFIG],
}

impl InfoHeader {
    /// A header that names the process; everything else is zero.
    pub fn new(name: &str) -> Self {
        let nothing = WindowInfo { name: [0; WINDOW_NAME], address: 0, bytes: 0, sharing: 0 };
        InfoHeader {
            magic: MAGIC,
            name: padded(name),
            tsc_hz: 0,
            machine: 0,
            guest_xcr0: 0,
            entry_tsc: 0,
            wall_clock: 0,
            wall_clock_tsc: 0,
            heap_bytes: 0,
            cpu: 0,
            window_count: 0,
            config_bytes: 0,
            windows: [nothing; MAX_WINDOWS],
        }
    }

    /// Lists a region; `false` if there are [`MAX_WINDOWS`] already.
    pub fn add_window(&mut self, name: &str, address: u64, bytes: u64, sharing: Sharing) -> bool {
        let Some(entry) = self.windows.get_mut(self.window_count as usize) else {
            return false;
        };
        *entry = WindowInfo { name: padded(name), address, bytes, sharing: sharing as u64 };
        self.window_count += 1;
        true
    }

    /// Writes a [`ProcessInfo`] with this header and configuration into the pages that a process will find it in.
    pub fn write(&mut self, config: &[u8], pages: Window) -> Result<(), OutOfWindow> {
        if config.len() > MAX_CONFIG {
            return Err(OutOfWindow);
        }
        self.config_bytes = config.len() as u64;
        let header: *const Self = self;
        // SAFETY: the struct is `repr(C)` without padding, so that all its bytes are initialized.
        let bytes = unsafe { slice::from_raw_parts(header.cast::<u8>(), size_of::<Self>()) };
        pages.write(0, bytes)?;
        pages.write(size_of::<Self>(), config)
    }
}

const _: () =
    assert!(size_of::<InfoHeader>() == 8 + 32 + 7 * 8 + 2 * 4 + 8 + MAX_WINDOWS * (WINDOW_NAME + 24));
const _: () = assert!(size_of::<ProcessInfo>() as u64 == layout::INFO_PAGES * PAGE_SIZE);

/// `name` as the zero-padded bytes of a fixed-size field, cut where it is too long.
pub fn padded<const N: usize>(name: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let len = name.len().min(N);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}

/// The text of a zero-padded field: up to the first zero, or to the first byte that is not UTF-8.
pub fn unpadded(bytes: &[u8]) -> &str {
    let bytes = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}

impl ProcessInfo {
    /// The process's name.
    pub fn name(&self) -> &str {
        unpadded(&self.header.name)
    }

    /// The configuration.
    pub fn config(&self) -> &[u8] {
        &self.config[..(self.header.config_bytes as usize).min(MAX_CONFIG)]
    }

    /// The shared region of this name. The name `""` is nobody's.
    pub fn window(&'static self, name: &str) -> Option<Window> {
        let (_, info) = self.region(name, Sharing::Shared)?;
        // SAFETY: these addresses are used for shared regions alone; no reference is made to them.
        Some(unsafe { Window::from_raw(info.address as *mut u8, info.bytes as usize) })
    }

    /// The private region of this name, once.
    #[expect(clippy::mut_from_ref, reason = "the bytes are no part of this struct, and are given out once")]
    pub fn take_private(&'static self, name: &str) -> Option<&'static mut [u8]> {
        static TAKEN: [AtomicBool; MAX_WINDOWS] = [const { AtomicBool::new(false) }; MAX_WINDOWS];
        let (index, info) = self.own_region(name, Sharing::Private)?;
        if TAKEN[index].swap(true, Ordering::Relaxed) {
            return None;
        }
        // SAFETY: the parent mapped these bytes, which were initialized before this process began, for this process alone
        // and leaves them mapped as long as it lives. Regions do not overlap, nobody gets a private one as a window, and
        // this one was not taken before.
        Some(unsafe { slice::from_raw_parts_mut(info.address as *mut u8, info.bytes as usize) })
    }

    /// The constant region of this name.
    pub fn constant(&'static self, name: &str) -> Option<&'static [u8]> {
        let (_, info) = self.own_region(name, Sharing::Constant)?;
        // SAFETY: as in `take_private`, but that others may read, and nobody writes.
        Some(unsafe { slice::from_raw_parts(info.address as *const u8, info.bytes as usize) })
    }

    /// The region of this name, if these are the pages that the parent wrote: on what anybody else wrote no reference is
    /// built.
    fn own_region(&'static self, name: &str, sharing: Sharing) -> Option<(usize, &'static WindowInfo)> {
        let is_parents = core::ptr::from_ref(self) as u64 == layout::INFO;
        self.region(name, sharing).filter(|_| is_parents)
    }

    /// The region of this name, if it is shared in this way and in its place, and its number.
    fn region(&'static self, name: &str, sharing: Sharing) -> Option<(usize, &'static WindowInfo)> {
        let count = (self.header.window_count as usize).min(MAX_WINDOWS);
        let mut regions = self.header.windows[..count].iter().enumerate();
        let (index, info) = regions.find(|(_, info)| unpadded(&info.name) == name)?;
        let end = info.address.checked_add(info.bytes)?;
        let is_good = !name.is_empty()
            && info.sharing == sharing as u64
            && info.address.is_multiple_of(PAGE_SIZE)
            && info.address >= layout::WINDOWS
            && end <= layout::WINDOWS_END;
        is_good.then_some((index, info))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_reads_what_its_parent_wrote() {
        let pages = Window::leak(size_of::<ProcessInfo>());
        let mut header = InfoHeader::new("vm1");
        assert!(header.add_window("output", layout::WINDOWS + PAGE_SIZE, 5000, Sharing::Shared));
        assert!(header.add_window("disk", layout::WINDOWS + 8 * PAGE_SIZE, 512, Sharing::Private));
        assert!(header.add_window("elsewhere", layout::HEAP, 4096, Sharing::Shared));
        header.write(b"config", pages).unwrap();

        let mut bytes = alloc::vec![0; size_of::<ProcessInfo>()];
        pages.read(0, &mut bytes).unwrap();
        // SAFETY: every field is an integer or an array of integers.
        let info: ProcessInfo = unsafe { bytes.as_ptr().cast::<ProcessInfo>().read_unaligned() };
        let info: &'static ProcessInfo = alloc::boxed::Box::leak(alloc::boxed::Box::new(info));
        assert_eq!((info.name(), info.config()), ("vm1", b"config".as_slice()));
        assert_eq!(info.window("output").map(|window| window.len()), Some(5000));
        assert!(info.window("input").is_none());
        assert!(info.window("elsewhere").is_none());
        assert!(info.take_private("output").is_none() && info.constant("output").is_none());
        assert!(info.window("disk").is_none());
        assert_eq!(info.region("disk", Sharing::Private).map(|(index, _)| index), Some(1));
        assert!(info.take_private("disk").is_none(), "these are not the parent's pages");
    }

    #[test]
    fn a_configuration_that_does_not_fit_is_refused() {
        let pages = Window::leak(size_of::<ProcessInfo>());
        assert!(InfoHeader::new("vm1").write(&[0; MAX_CONFIG], pages).is_ok());
        assert!(InfoHeader::new("vm1").write(&[0; MAX_CONFIG + 1], pages).is_err());
    }

    #[test]
    fn names_survive_padding_and_foreign_bytes_end_them() {
        assert_eq!(unpadded(&padded::<8>("vm1")), "vm1");
        assert_eq!(unpadded(&padded::<4>("console")), "cons");
        assert_eq!(unpadded(b"ab\xff\0"), "ab");
        assert_eq!(unpadded(b""), "");
    }
}
