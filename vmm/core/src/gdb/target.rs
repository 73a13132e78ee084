//! What gdb may ask for, in the terms of the `gdbstub` crate.

use core::convert::Infallible;
use gdbstub::common::Signal;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep,
    SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::breakpoints::Watch;
use super::registers::{Register, Registers, X86, little_endian};
use super::{Debugger, Inferior, memory};

impl<I: Inferior> Target for Debugger<'_, I> {
    type Arch = X86;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Infallible> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl<I: Inferior> SingleThreadBase for Debugger<'_, I> {
    fn read_registers(&mut self, registers: &mut Registers) -> TargetResult<(), Self> {
        registers.read(self.inferior.parts().0);
        Ok(())
    }

    fn write_registers(&mut self, registers: &Registers) -> TargetResult<(), Self> {
        let (vcpu, _) = self.inferior.parts();
        registers.write(vcpu).map_err(|()| TargetError::NonFatal)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, (), Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, into: &mut [u8]) -> TargetResult<usize, Self> {
        let (vcpu, guest) = self.inferior.parts();
        match memory::read(vcpu, guest, start, into) {
            0 if !into.is_empty() => Err(TargetError::NonFatal),
            done => Ok(done),
        }
    }

    fn write_addrs(&mut self, start: u64, from: &[u8]) -> TargetResult<(), Self> {
        let (vcpu, guest) = self.inferior.parts();
        if memory::write(vcpu, guest, start, from) { Ok(()) } else { Err(TargetError::NonFatal) }
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl<I: Inferior> SingleRegisterAccess<()> for Debugger<'_, I> {
    fn read_register(&mut self, (): (), register: Register, into: &mut [u8]) -> TargetResult<usize, Self> {
        let Some(value) = register.read(self.inferior.parts().0) else {
            return Ok(0);
        };
        let len = into.len().min(8);
        into[..len].copy_from_slice(&value.to_le_bytes()[..len]);
        Ok(len)
    }

    fn write_register(&mut self, (): (), register: Register, value: &[u8]) -> TargetResult<(), Self> {
        let (vcpu, _) = self.inferior.parts();
        register.write(vcpu, little_endian(value)).map_err(|()| TargetError::NonFatal)
    }
}

impl<I: Inferior> SingleThreadResume for Debugger<'_, I> {
    // A guest has no signals: what gdb wants to pass on is dropped.
    fn resume(&mut self, _signal: Option<Signal>) -> Result<(), Infallible> {
        self.stepping = None;
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
}

impl<I: Inferior> SingleThreadSingleStep for Debugger<'_, I> {
    fn step(&mut self, _signal: Option<Signal>) -> Result<(), Infallible> {
        self.begin_step();
        Ok(())
    }
}

impl<I: Inferior> Breakpoints for Debugger<'_, I> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        (!self.inferior.is_emulated_svm()).then_some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        (!self.inferior.is_emulated_svm()).then_some(self)
    }
}

impl<I: Inferior> SwBreakpoint for Debugger<'_, I> {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        let (vcpu, guest) = self.inferior.parts();
        let physical = memory::translate(vcpu, guest, address);
        Ok(physical.is_some_and(|physical| self.software.add(guest, address, physical)))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.software.remove(self.inferior.parts().1, address))
    }
}

/// A breakpoint in a debug register.
fn execution(linear: u64) -> Watch {
    Watch { linear, bytes: 1, kind: None }
}

impl<I: Inferior> HwBreakpoint for Debugger<'_, I> {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.hardware.add(self.inferior.parts().0, execution(address)))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.hardware.remove(self.inferior.parts().0, execution(address)))
    }
}

impl<I: Inferior> HwWatchpoint for Debugger<'_, I> {
    fn add_hw_watchpoint(&mut self, linear: u64, bytes: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let kind = Some(kind);
        Ok(self.hardware.add(self.inferior.parts().0, Watch { linear, bytes, kind }))
    }

    fn remove_hw_watchpoint(&mut self, linear: u64, bytes: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let kind = Some(kind);
        Ok(self.hardware.remove(self.inferior.parts().0, Watch { linear, bytes, kind }))
    }
}
