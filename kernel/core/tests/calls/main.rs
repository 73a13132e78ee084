//! Calls, donation and helping: the kernel's own scheduler and IPC, on a CPU that is made of mocks ([`hardware`]), against rules that hold
//! after every step ([`rules`]), whatever threads and handlers do ([`system`]).
#![allow(
    unreachable_pub,
    dead_code,
    reason = "most of what is here belongs to the kernel, which uses all of it"
)]
#![allow(missing_docs, reason = "mocks have the names of what they stand for")]

// The kernel's files name their neighbours by crate: `kernel` is this one, and `khw` as well.
extern crate self as khw;

#[path = "../../../src/cpu.rs"]
mod kernel_cpu;
#[path = "../../../src/sched.rs"]
mod sched;
#[path = "../../../hw/src/sync.rs"]
mod sync;

mod hardware;
mod rules;
mod system;

pub use hardware::{cpu, desc, entry, irq, percpu, smp, virt};

/// Capabilities: the threads of the model name objects.
mod cap {
    #[derive(Debug)]
    pub struct BoundList;

    impl BoundList {
        pub const fn new() -> Self {
            BoundList
        }
    }
}

/// Reclamation: what a CPU is to let go of.
mod reclaim {
    pub use crate::system::let_go;
}

/// The trace, which is off.
mod trace {
    use crate::cpu::Local;
    use crate::object::ec::Ec;
    use hypercall_abi::trace::Kind;

    #[derive(Debug)]
    pub struct Cursor;

    impl Cursor {
        pub const fn new() -> Self {
            Cursor
        }
    }

    pub fn record(_: &Local, _: Kind, _: u32, _: Option<&Ec>) {}

    pub fn returns(_: &Local, _: &Ec) {}
}

#[path = "../../../src/object"]
mod object {
    pub mod due;
    pub mod ec;
    mod list;
    pub mod portal;
    pub mod sc;
    pub mod signal;

    use core::cell::Cell;
    use hypercall_abi::ObjectType;
    pub use list::{Linked, List, ListLink};

    #[derive(Debug)]
    pub struct Header {
        pub kind: ObjectType,
        pub root_slot: Cell<u32>,
        in_pool: ListLink,
    }

    impl Header {
        pub const fn new(kind: ObjectType) -> Self {
            Header { kind, root_slot: Cell::new(0), in_pool: ListLink::new() }
        }
    }

    /// # Safety
    /// As the kernel's.
    pub unsafe trait Object: Sized + 'static {
        const KIND: ObjectType;
    }

    #[derive(Debug)]
    pub enum InPool {}
    // SAFETY: always the same field.
    unsafe impl Linked<InPool> for Header {
        fn link(&self) -> &ListLink {
            &self.in_pool
        }
    }

    pub mod pd {
        use core::sync::atomic::AtomicU64;
        use kcore::addr::PhysAddr;

        #[derive(Debug)]
        pub struct Pd {
            pub root: PhysAddr,
            pub id: u64,
            pub io_version: AtomicU64,
        }

        impl Pd {
            pub fn io_frames(&self) -> Option<[PhysAddr; 2]> {
                None
            }
        }
    }

    pub mod vcpu {
        use super::ec::Ec;
        use hypercall_abi::Status;

        /// Nobody runs one.
        #[derive(Debug)]
        pub enum Vcpu {}

        impl Vcpu {
            pub fn resume(&self, _: &'static Ec) -> bool {
                match *self {}
            }

            pub fn detach(&self, _: &'static Ec, _: Status) {
                match *self {}
            }

            pub fn kick(&self) {
                match *self {}
            }
        }
    }
}

#[path = "../../../src/hypercall"]
mod hypercall {
    pub mod ipc;

    use crate::cpu::Local;
    use crate::object::ec::Ec;
    use crate::object::portal::Portal;
    use hypercall_abi::{Rights, Status};

    pub const SYSCALL_BYTES: u64 = 2;

    /// A hypercall, with what its selector names.
    #[derive(Debug)]
    pub struct Call {
        pub local: &'static Local,
        pub ec: &'static Ec,
        pub portal: Option<&'static Portal>,
        /// How long it waits for a busy handler.
        pub deadline: u64,
    }

    pub struct Found(&'static Portal);

    impl Found {
        #[expect(clippy::extra_unused_type_parameters, reason = "the kernel's names the type that it is for")]
        pub fn cast<T>(&self, _: Rights) -> core::result::Result<&'static Portal, Status> {
            Ok(self.0)
        }
    }

    impl Call {
        fn capability(&self) -> core::result::Result<Found, Status> {
            self.portal.map(Found).ok_or(Status::BadSelector)
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Outcome {
        Switch,
        Block,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Failure(pub Status);

    impl From<Status> for Failure {
        fn from(status: Status) -> Self {
            Failure(status)
        }
    }

    pub type Result = core::result::Result<Outcome, Failure>;

    /// Makes the call, as `Call` or, with a deadline, as `CallMessage` does; or the reply if there is no portal.
    pub fn make(call: &Call) -> Result {
        match call.portal {
            None => ipc::reply(call),
            Some(_) if call.deadline == u64::MAX => ipc::call(call),
            Some(portal) => {
                if !ipc::is_ready(call, portal.handler, call.deadline)? {
                    return Ok(Outcome::Block);
                }
                ipc::enter(call.ec, portal);
                call.local.ec.set(Some(portal.handler));
                Ok(Outcome::Switch)
            }
        }
    }
}

#[test]
fn a_lock_that_is_tried_in_vain_stays_with_its_holder() {
    let lock = sync::Lock::new(0);
    let holder = lock.lock();
    assert!(lock.try_lock().is_none());
    assert!(lock.try_lock().is_none());
    drop(holder);
    assert!(lock.try_lock().is_some());
}
