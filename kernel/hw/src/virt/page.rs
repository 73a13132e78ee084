//! Access to the vCPU page, which a VMM may write at any time: each field is read once, into a copy that is then
//! checked and used, and no reference to it is ever made.

use super::Returned;
use core::ptr::NonNull;
use hypercall_abi::exit::{EntryRule, ExitKind};
use hypercall_abi::vcpu::{Groups, VcpuPage};

/// The vCPU page of the running call.
#[derive(Clone, Copy)]
pub(super) struct Page(NonNull<VcpuPage>);

impl Page {
    /// # Safety
    /// The page is mapped, writable, and stays so as long as the value is used.
    #[inline]
    pub(super) unsafe fn new(page: NonNull<VcpuPage>) -> Self {
        Page(page)
    }

    /// For the accessors below, and for the world switches, which read and write the general-purpose registers.
    #[inline]
    pub(super) fn as_ptr(self) -> *mut VcpuPage {
        self.0.as_ptr()
    }
}

/// Reads a field of a [`Page`]: `get!(page, rip)`.
macro_rules! get {
    ($page:expr, $($field:tt)+) => {{
        let page = $page.as_ptr();
        // SAFETY: `Page::new` promised a mapped page, and every field is plain data. The access is volatile, so a VMM
        // that writes at the same time only changes which value is read.
        unsafe { (&raw const (*page).$($field)+).read_volatile() }
    }};
}

/// Writes a field of a [`Page`]: `put!(page, value => rip)`.
macro_rules! put {
    ($page:expr, $value:expr => $($field:tt)+) => {{
        let (page, value) = ($page.as_ptr(), $value);
        // SAFETY: as in `get!`.
        unsafe { (&raw mut (*page).$($field)+).write_volatile(value) }
    }};
}

pub(super) use {get, put};

/// What the VMM wants to have filled at an exit, `decodes` if it has to decode the instruction.
#[inline(always)]
pub(super) fn wanted(page: Page, decodes: bool) -> Groups {
    let mut wanted = get!(page, want);
    if decodes {
        wanted |= get!(page, decode);
    }
    Groups::from_bits_truncate(wanted)
}

/// Reports an entry that did not happen, with the rule and what the hardware said about it. The state in the page and its
/// dirty bits stay as the VMM wrote them, to be put right.
pub(super) fn refuse(page: Page, rule: EntryRule, details: [u64; 2]) -> Returned {
    put!(page, ExitKind::EntryFailure as u32 => exit_kind);
    put!(page, 0 => exit_length);
    put!(page, rule as u64 => exit_info[0]);
    put!(page, details[0] => exit_info[1]);
    put!(page, details[1] => exit_info[2]);
    put!(page, Groups::empty().bits() => filled);
    Returned::Exit(ExitKind::EntryFailure as u32)
}
