//! Dirty tracking of guest memory.

use super::{Group, Needs, group};
use crate::guest::{CODE, Guest};
use crate::prelude::*;
use hypercall_abi::exit::ExitKind;

pub(super) const GROUP: Group = group!(
    "dirty tracking",
    Needs::Guests => [
        collecting_checks_its_arguments,
        collecting_needs_its_right_and_type,
        what_a_guest_writes_is_collected_once_and_every_time,
        what_the_vmm_writes_is_not_collected,
        a_write_after_collecting_is_seen_without_an_exit_between,
        large_units_cover_their_pages,
    ],
);

/// The page that the guest writes.
const WRITTEN: u64 = 3;
/// MOV BYTE PTR [3000H], 1; HLT.
const WRITE: &[u8] = &[0xc6, 0x05, 0x00, 0x30, 0, 0, 1, 0xf4];
const PAGES: u64 = 8;

fn collect(guest: &Guest) -> Answer {
    call(CollectDirty, guest.space, [0, PAGES, 0])
}

/// A guest on a machine with dirty flags, which the test machines have.
fn guest(w: &mut World) -> Seen<Guest> {
    let mut guest = Guest::new(w)?;
    guest.code(WRITE);
    Ok(guest)
}

fn run(guest: &mut Guest) -> Check {
    guest.protected();
    guest.page().rip = CODE;
    guest.run_to(ExitKind::Hlt)
}

fn collecting_checks_its_arguments(w: &mut World) -> Check {
    let guest = guest(w)?;
    for arguments in [
        [1, 1, 0],
        [0, 0, 0],
        [0, 193, 0],
        [0, 1, 1],
        [0, 1, 1 << 32],
        [PAGE, 1, 9],
        [0, 9, 9],
        [(1 << 48) - PAGE, 2, 0],
        [0_u64.wrapping_sub(PAGE), 1, 0],
        [0, u64::MAX, 0],
    ] {
        call(CollectDirty, guest.space, arguments).fails(BadArgument)?;
    }
    call(CollectDirty, guest.space, [(1 << 48) - PAGE, 1, 0]).gives([0; 3])
}

fn collecting_needs_its_right_and_type(w: &mut World) -> Check {
    let guest = guest(w)?;
    let no_map = w.without(guest.space, Rights::GUEST_MAP)?;
    call(CollectDirty, no_map, [0, 1, 0]).fails(BadRights)?;
    call(CollectDirty, guest.vcpu, [0, 1, 0]).fails(BadType)
}

fn what_a_guest_writes_is_collected_once_and_every_time(w: &mut World) -> Check {
    let mut guest = guest(w)?;
    collect(&guest).gives([0; 3])?;
    for _ in 0..3 {
        run(&mut guest)?;
        collect(&guest).gives([1 << WRITTEN, 0, 0])?;
        collect(&guest).gives([0; 3])?;
    }
    Ok(())
}

fn what_the_vmm_writes_is_not_collected(w: &mut World) -> Check {
    let mut guest = guest(w)?;
    guest.write(WRITTEN * PAGE, &[1]);
    collect(&guest).gives([0; 3])
}

/// The CPU may have cached that the page is dirty.
fn a_write_after_collecting_is_seen_without_an_exit_between(w: &mut World) -> Check {
    let mut guest = guest(w)?;
    // OUT 80H; MOV BYTE PTR [3000H], 1; JMP to the beginning.
    guest.code(&[0xe6, 0x80, 0xc6, 0x05, 0x00, 0x30, 0, 0, 1, 0xeb, 0xf5]);
    guest.protected();
    guest.run_to(ExitKind::PortIo)?;
    for _ in 0..3 {
        let page = guest.page();
        page.rip = CODE + 2;
        page.dirty |= hypercall_abi::vcpu::Groups::RIP.bits();
        guest.run_to(ExitKind::PortIo)?;
        collect(&guest).gives([1 << WRITTEN, 0, 0])?;
    }
    Ok(())
}

fn large_units_cover_their_pages(w: &mut World) -> Check {
    let mut guest = guest(w)?;
    run(&mut guest)?;
    call(CollectDirty, guest.space, [0, 2, 9]).gives([1, 0, 0])?;
    collect(&guest).gives([0; 3])
}
