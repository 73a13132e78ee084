//! Where things are: selectors and addresses that are set aside for the tests.

use hypercall_abi::boot_info::root;

/// The task's protection domain.
pub const PD: u64 = root::PD.0 as u64;
/// The pool of everything.
pub const ROOT_POOL: u64 = root::POOL.0 as u64;
/// The log.
pub const LOG: u64 = root::LOG.0 as u64;
/// All ports.
pub const PORTS: u64 = root::PORTS.0 as u64;
/// All interrupts.
pub const IRQS: u64 = root::IRQS.0 as u64;
/// All devices.
pub const DEVICES: u64 = root::DEVICES.0 as u64;
/// The trace of every CPU.
pub const TRACE: u64 = root::TRACE.0 as u64;

/// A semaphore that nobody signals: to sleep on.
pub const SLEEP: u64 = 1000;
/// Signalled by the thread that runs the tests when it is through.
pub const DONE: u64 = 1001;
/// The thread that runs the tests.
pub const RUNNER_EC: u64 = 1002;
/// Its scheduling context.
pub const RUNNER_SC: u64 = 1003;
/// Memory that stays mapped: see [`FIXED_PAGES`].
pub const FIXED: u64 = 1004;
/// Memory of the tests.
pub const ARENA: u64 = 1005;
/// The part of [`FIXED`] that is the program.
pub const IMAGE: u64 = 1006;
/// The pool of the test that runs.
pub const TEST_POOL: u64 = 1007;
/// Memory for records, where the benchmark asks for them.
pub const RING: u64 = 999;
/// Its pages.
pub const RING_PAGES: u64 = 1024;
/// First of the selectors that a test uses again and again, in a loop.
pub const SCRATCH: u64 = 1008;
/// How many those are.
pub const SCRATCH_COUNT: u64 = 16;
/// First selector for tests.
pub const TEST_FIRST: u64 = 1024;
/// One past the last selector for tests.
pub const TEST_END: u64 = 4096;

/// Words that threads and child processes share, at the same address in all of them.
pub const BOARD: u64 = 0x600_0000_0000;
/// Pages of the board.
pub const BOARD_PAGES: u64 = 8;
/// Stacks of threads.
pub const STACKS: u64 = BOARD + BOARD_PAGES * 4096;
/// Number of stacks.
pub const STACK_COUNT: u64 = 48;
/// Pages of a stack.
pub const STACK_PAGES: u64 = 4;
/// Board and stacks.
pub const FIXED_PAGES: u64 = BOARD_PAGES + STACK_COUNT * STACK_PAGES;
/// The program, to be copied into children.
pub const IMAGE_COPY: u64 = 0x610_0000_0000;
/// Most pages of the program.
pub const IMAGE_PAGES: u64 = 512;

/// What tests map into their own address space. The page tables exist.
pub const WINDOW: u64 = 0x680_0000_0000;
/// Pages of the window.
pub const WINDOW_PAGES: u64 = 16 * 512;
/// Pages of the tests' memory: 32 MiB, aligned to 2 MiB.
pub const ARENA_PAGES: u64 = 16 * 512;

/// Stacks of a child's threads.
pub const CHILD_STACKS: u64 = 0x620_0000_0000;
