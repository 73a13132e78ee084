//! What every test uses.

pub use crate::call::{Answer, Sel, call};
pub use crate::check::{Check, Failure, Seen, equal, holds};
pub use crate::world::World;
pub use hypercall_abi::cap::MapFlags;
pub use hypercall_abi::{ObjectType, Rights, USER_END};

pub use hypercall_abi::Hypercall::{
    Bind, CapInfo, CollectDirty, CreateDmaSpace, CreateEc, CreateGuestSpace, CreateNtfn, CreatePd,
    CreatePool, CreatePt, CreateSc, CreateSm, CreateVcpu, Derive, EcInfo, IrqAck, IrqBind, LogWrite, Map,
    PoolInfo, Reply, Revoke, ScInfo, Signal, Unmap, VcpuFpu, VcpuPoke, VcpuRead, VcpuRun, Wait, Yield,
};
pub use hypercall_abi::Status::{
    Aborted, BadArgument, BadHypercall, BadRights, BadSelector, BadType, Busy, NoMemory, Occupied, Partial,
    Success, Timeout, Unbound, Unsupported, WrongCpu,
};

/// Bytes in a page.
pub const PAGE: u64 = hypercall_abi::PAGE_SIZE;
/// A deadline that never comes.
pub const FOREVER: u64 = u64::MAX;
/// A deadline that is over: only look.
pub const NOW: u64 = 0;
