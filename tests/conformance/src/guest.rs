//! A small guest: 64 KiB of memory from address 0, and a vCPU that begins in flat 32-bit mode at [`CODE`].

use crate::call::{Answer, Sel, call};
use crate::check::{Check, Failure, Seen, equal};
use crate::prelude::{Bind, CreateVcpu, MapFlags, PAGE, Revoke, Rights, VcpuRead, VcpuRun, World};
use crate::threads::{LOW, Pending};
use crate::world::map_all;
use hypercall_abi::cap::BindRole;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{CS, Event, Groups, Segment, VcpuPage};

/// Where the guest's code begins.
pub const CODE: u64 = 0x1000;
/// Pages of its memory.
pub const PAGES: u64 = 16;

/// The guest, and the vCPU's page as this domain sees it.
#[derive(Debug)]
pub struct Guest {
    /// Its space.
    pub space: Sel,
    /// Its vCPU.
    pub vcpu: Sel,
    /// The capability that is mapped into the space.
    pub memory: Sel,
    /// The capability that is bound as the vCPU's page.
    pub bound: Sel,
    /// Where its memory is in this domain.
    pub ram: u64,
    page: u64,
}

impl Guest {
    /// A guest whose vCPU belongs to this CPU.
    #[track_caller]
    pub fn new(w: &mut World) -> Seen<Guest> {
        Self::on(w, 0)
    }

    /// A guest whose vCPU belongs to `cpu`.
    #[track_caller]
    pub fn on(w: &mut World, cpu: u16) -> Seen<Guest> {
        let space = w.guest_space()?;
        let ram = w.ram(PAGES)?;
        let memory = w.derive(ram, Rights::ALL)?;
        let everything = MapFlags::READ | MapFlags::WRITE | MapFlags::EXECUTE;
        map_all(memory, space, 0, 0, PAGES, everything)?;
        let (vcpu, bound, page) = Self::vcpu_on(w, space, cpu)?;
        let mut guest = Guest { space, vcpu, memory, bound, ram: w.view(ram, PAGES)?, page };
        guest.zero();
        guest.protected();
        Ok(guest)
    }

    /// A vCPU, the capability of its page, and where that is.
    fn vcpu_on(w: &mut World, space: Sel, cpu: u16) -> Seen<(Sel, Sel, u64)> {
        let vcpu = w.sel();
        let arguments = [w.pool, space, cpu.into()];
        if cpu == 0 {
            call(CreateVcpu, vcpu, arguments).done()?;
        } else {
            w.call_on(cpu, CreateVcpu, vcpu, arguments)?.done()?;
        }
        let page = w.ram(1)?;
        let bound = w.derive(page, Rights::ALL)?;
        call(Bind, vcpu, [bound, BindRole::VcpuPage as u64]).done()?;
        Ok((vcpu, bound, w.view(page, 1)?))
    }

    /// Ends the vCPU, and makes another one in its place, with another page, on `cpu`.
    #[track_caller]
    pub fn replace_vcpu(&mut self, w: &mut World, cpu: u16) -> Check {
        call(Revoke, self.vcpu, [1]).done()?;
        (self.vcpu, self.bound, self.page) = Self::vcpu_on(w, self.space, cpu)?;
        Ok(())
    }

    fn zero(&mut self) {
        // SAFETY: both places are mapped, and the guest does not run.
        unsafe {
            (self.ram as *mut u8).write_bytes(0, (PAGES * PAGE) as usize);
            (self.page as *mut u8).write_bytes(0, PAGE as usize);
        }
    }

    /// The vCPU's page. Any bytes are one; nobody holds a reference across a run, which needs `self` too.
    pub fn page(&mut self) -> &mut VcpuPage {
        // SAFETY: mapped for as long as the guest lives, and aligned to a page.
        unsafe { &mut *(self.page as *mut VcpuPage) }
    }

    /// Address of the page in this domain.
    pub fn page_address(&self) -> u64 {
        self.page
    }

    /// Puts code at [`CODE`].
    pub fn code(&mut self, bytes: &[u8]) {
        self.write(CODE, bytes);
    }

    /// Puts code that never exits at [`CODE`], with interrupts on: Bochs 2.7 keeps host interrupts from ending the run of an
    /// SVM guest that is entered with them off. The guest `spin` is the one that has them off.
    pub fn endless(&mut self, bytes: &[u8]) {
        self.code(bytes);
        let page = self.page();
        page.rflags |= 1 << 9;
        page.dirty |= Groups::RIP.bits();
    }

    /// Writes to the guest's memory.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        assert!(address + bytes.len() as u64 <= PAGES * PAGE);
        // SAFETY: the range is mapped, and nothing refers to it.
        unsafe {
            ((self.ram + address) as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// Flat 32-bit mode without paging, at [`CODE`]; no descriptor tables, so that an exception ends in a triple fault.
    pub fn protected(&mut self) {
        const DATA: Segment = Segment::new(0x10, 0, 0xffff_ffff, 0xc093);
        let page = self.page();
        page.reset();
        page.cr0 = 0x31;
        page.rip = CODE;
        page.segments = [DATA; 6];
        page.segments[CS] = Segment::new(8, 0, 0xffff_ffff, 0xc09b);
        page.gdtr.limit = 0;
        page.idtr.limit = 0;
        page.gpr[hypercall_abi::vcpu::gpr::RSP] = 0x8000;
        page.inject = Event::NONE;
        (page.want, page.run_flags, page.intercepts, page.exception_bitmap, page.tsc_offset) =
            (0, 0, 0, 0, 0);
        page.inject_length = 0;
    }

    /// 64-bit mode at [`CODE`], with the first 4 MiB mapped to themselves by tables at 4000H.
    pub fn long_mode(&mut self) {
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        for (at, entry) in [
            (0x4000, 0x5000 | PRESENT_WRITABLE),
            (0x5000, 0x6000 | PRESENT_WRITABLE),
            (0x6000, LARGE | PRESENT_WRITABLE),
            (0x6008, 0x20_0000 | LARGE | PRESENT_WRITABLE),
        ] {
            self.write(at, &u64::to_le_bytes(entry));
        }
        self.protected();
        let page = self.page();
        (page.cr0, page.cr3, page.cr4, page.efer) = (0x8000_0033, 0x4000, 0x620, 0x500);
        page.segments[CS] = Segment::new(8, 0, 0xffff_ffff, 0xa09b);
    }

    /// Makes the guest begin at [`CODE`] again, with nothing else changed.
    pub fn restart(&mut self) {
        let page = self.page();
        page.rip = CODE;
        page.rflags = 2;
        page.activity = 0;
        page.interruptibility = 0;
        page.dirty |= Groups::RIP.bits();
    }

    /// Runs.
    pub fn run(&mut self) -> Answer {
        call(VcpuRun, self.vcpu, [])
    }

    /// Runs until an exit: its kind, which the page must have too.
    #[track_caller]
    pub fn exit(&mut self) -> Seen<ExitKind> {
        let kind = self.run().value()?;
        equal("kind in the page", u64::from(self.page().exit_kind), kind)?;
        ExitKind::from_raw(kind as u32).ok_or_else(|| Failure::new("exit kind", kind, "a known one"))
    }

    /// Runs; the exit must be of this kind.
    #[track_caller]
    pub fn run_to(&mut self, kind: ExitKind) -> Check {
        let got = self.exit()?;
        if got == kind {
            return Ok(());
        }
        let page = self.page();
        let seen = (got, page.rip, page.exit_length, page.exit_info);
        Err(Failure::new("exit", seen, kind))
    }

    /// Has a thread on `cpu`, less urgent than the test, run a guest that counts, which it does when this returns.
    #[track_caller]
    pub fn count_on(&mut self, w: &mut World, cpu: u16) -> Seen<Pending> {
        // INC [2000H]; JMP back.
        self.endless(&[0xff, 0x05, 0x00, 0x20, 0x00, 0x00, 0xeb, 0xf8]);
        let run = w.begin((cpu, LOW), VcpuRun, self.vcpu, [])?;
        let counter = self.ram + 0x2000;
        w.until("the guest counts", || {
            // SAFETY: the guest's memory is mapped there.
            unsafe { (counter as *const u32).read_volatile() > 10 }
        })?;
        equal("is done", run.is_done(), false)?;
        Ok(run)
    }

    /// Fills groups of the page.
    #[track_caller]
    pub fn read(&mut self, groups: Groups) -> Check {
        call(VcpuRead, self.vcpu, [groups.bits().into()]).done()
    }
}
