//! Access to the vCPU page, which user code may write at any time: each field is read once, into a copy that is
//! checked, and no reference to it is ever made.

use core::ptr::NonNull;
use hypercall_abi::vcpu::VcpuPage;

/// The vCPU page of the running call.
#[derive(Clone, Copy)]
pub(super) struct Page(NonNull<VcpuPage>);

impl Page {
    /// # Safety
    /// The page is mapped, writable, and stays so as long as the value is used.
    pub(super) unsafe fn new(page: NonNull<VcpuPage>) -> Self {
        Page(page)
    }

    /// For the accessors below.
    pub(super) fn as_ptr(self) -> *mut VcpuPage {
        self.0.as_ptr()
    }
}

/// Reads a field of a [`Page`].
macro_rules! get {
    ($page:expr, $($field:tt)+) => {{
        let page = $page.as_ptr();
        // SAFETY: `Page::new` promised a mapped page, every field is plain data, and the access is volatile, so user
        // code writing at the same time only changes which value is read.
        unsafe { (&raw const (*page).$($field)+).read_volatile() }
    }};
}

/// Writes a field of a [`Page`]: `put!(page, value => field)`.
macro_rules! put {
    ($page:expr, $value:expr => $($field:tt)+) => {{
        let (page, value) = ($page.as_ptr(), $value);
        // SAFETY: as in `get!`.
        unsafe { (&raw mut (*page).$($field)+).write_volatile(value) }
    }};
}

pub(super) use {get, put};
