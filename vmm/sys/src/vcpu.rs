//! A virtual CPU: the kernel's object and the page shared with the kernel (SPEC.md 7).

use crate::cap::{Cap, GuestSpace, Memory, Narrow, Vcpu};
use crate::error::Result;
use crate::hypercall::{invoke, invoke_plain};
use crate::{memory, object, process, selector};
use core::fmt;
use core::sync::atomic::AtomicU32;
use hypercall_abi::cap::{BindRole, MapFlags};
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{FpuOperation, Groups, VcpuPage};
use hypercall_abi::{Hypercall, PAGE_SIZE, Rights};

/// A vCPU whose page this process has mapped.
pub struct MappedVcpu {
    cap: Cap<Vcpu>,
    page: &'static mut VcpuPage,
}

/// The words of a virtual-APIC page.
pub type ApicPage = [AtomicU32; PAGE_SIZE as usize / 4];

impl fmt::Debug for MappedVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedVcpu({:?})", self.cap)
    }
}

impl MappedVcpu {
    /// Makes a vCPU in a guest space, with the first page of `page` as its state page. The process must have no other use for
    /// that page.
    pub fn create(space: Cap<GuestSpace>, cpu: u16, page: Cap<Memory>) -> Result<Self> {
        let rights = Rights::READ | Rights::WRITE;
        // The kernel's view and this process's are two capabilities.
        let bound = page.derive(selector::allocate()?, Narrow::rights(rights).range(0, 1))?;
        let mapped = page.derive(selector::allocate()?, Narrow::rights(rights).range(0, 1))?;
        let address = memory::take_addresses(1, 1)?;
        mapped.map(process::pd(), address, 0, 1, MapFlags::READ | MapFlags::WRITE)?;
        let cap = process::pool().create_vcpu(selector::allocate()?, space, cpu)?;
        object::bind(cap.selector(), bound.selector(), BindRole::VcpuPage, 0)?;
        // SAFETY: the address was free and stays mapped; any bytes are a `VcpuPage`. The kernel touches the page only in
        // `run` and `read`, which borrow `self` mutably and count as accesses to all memory.
        let page = unsafe { &mut *(address as *mut VcpuPage) };
        Ok(MappedVcpu { cap, page })
    }

    /// The capability.
    pub fn cap(&self) -> Cap<Vcpu> {
        self.cap
    }

    /// Makes the first page of `page` the vCPU's virtual-APIC page (SPEC.md 7.7). The process must have no other use for it.
    pub fn bind_virtual_apic(&self, page: Cap<Memory>) -> Result<&'static ApicPage> {
        let rights = Rights::READ | Rights::WRITE;
        let bound = page.derive(selector::allocate()?, Narrow::rights(rights).range(0, 1))?;
        let mapped = page.derive(selector::allocate()?, Narrow::rights(rights).range(0, 1))?;
        let address = memory::take_addresses(1, 1)?;
        mapped.map(process::pd(), address, 0, 1, MapFlags::READ | MapFlags::WRITE)?;
        self.cap.bind_virtual_apic(bound)?;
        // SAFETY: the address was free and stays mapped. Any bytes are atomics, and the kernel accesses them as such.
        Ok(unsafe { &*(address as *const ApicPage) })
    }

    /// The page.
    #[inline]
    pub fn page(&mut self) -> &mut VcpuPage {
        self.page
    }

    /// Runs the guest until an exit; `None` for a kind that this version does not know.
    #[inline]
    pub fn run(&mut self) -> Result<Option<ExitKind>> {
        // SAFETY: the kernel changes the page, which `self` borrows, and the guest its own memory.
        let kind = unsafe { invoke_plain(Hypercall::VcpuRun, self.cap.selector()) }?;
        Ok(ExitKind::from_raw(kind as u32))
    }

    /// Fills groups of the page that the last exit left out.
    pub fn read(&mut self, groups: Groups) -> Result<()> {
        // SAFETY: as in `run`.
        unsafe { invoke(Hypercall::VcpuRead, self.cap.selector(), [groups.bits().into(), 0, 0, 0, 0, 0]) }
            .map(drop)
    }

    /// Moves the FPU state (SPEC.md 4.4) to or from the first page of `page`; a reset ignores it. The process must have no
    /// references to a page that is read into.
    pub fn move_fpu(&mut self, operation: FpuOperation, page: Cap<Memory>) -> Result<()> {
        let arguments = [operation as u64, page.selector().0.into(), 0, 0, 0, 0];
        // SAFETY: the kernel writes the page at most, to which there are no references.
        unsafe { invoke(Hypercall::VcpuFpu, self.cap.selector(), arguments) }.map(drop)
    }

    /// Puts the FPU, and XCR0, into the state after reset.
    pub fn reset_fpu(&mut self) -> Result<()> {
        // SAFETY: touches no memory.
        unsafe {
            invoke(Hypercall::VcpuFpu, self.cap.selector(), [FpuOperation::Reset as u64, 0, 0, 0, 0, 0])
        }
        .map(drop)
    }
}
