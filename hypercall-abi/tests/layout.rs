//! Pins the layout: a failure here is a change of the ABI, and belongs into CHANGELOG.md.

use core::mem::{offset_of, size_of};
use hypercall_abi::boot_info::{BootInfo, MemoryRegion, Module};
use hypercall_abi::cap::BindRole;
use hypercall_abi::doorbell::Doorbell;
use hypercall_abi::exit::{ControlAccess, ControlOperation, PortIo};
use hypercall_abi::regs::Head;
use hypercall_abi::trace::{Kind, Record};
use hypercall_abi::utcb::Utcb;
use hypercall_abi::vcpu::{Event, Segment, Store, VcpuPage};
use hypercall_abi::{Hypercall, Selector, Status};

#[test]
fn vcpu_page_layout_is_pinned() {
    assert_eq!(size_of::<VcpuPage>(), 4096);
    assert_eq!(size_of::<Segment>(), 24);
    assert_eq!(offset_of!(VcpuPage, gpr), 0);
    assert_eq!(offset_of!(VcpuPage, rip), 0x80);
    assert_eq!(offset_of!(VcpuPage, exit_kind), 0x98);
    assert_eq!(offset_of!(VcpuPage, exit_info), 0xa0);
    assert_eq!(offset_of!(VcpuPage, notified), 0xe0);
    assert_eq!(offset_of!(VcpuPage, dirty), 0xe8);
    assert_eq!(offset_of!(VcpuPage, deadline), 0xf8);
    assert_eq!(offset_of!(VcpuPage, inject), 0x100);
    assert_eq!(offset_of!(VcpuPage, tsc_offset), 0x118);
    assert_eq!(offset_of!(VcpuPage, segments), 0x120);
    assert_eq!(offset_of!(VcpuPage, ldtr), 0x1b0);
    assert_eq!(offset_of!(VcpuPage, gdtr), 0x1e0);
    assert_eq!(offset_of!(VcpuPage, cr0), 0x200);
    assert_eq!(offset_of!(VcpuPage, debugctl), 0x2d0);
    assert_eq!(offset_of!(VcpuPage, stores), 0x2d8);
    assert_eq!(size_of::<Store>(), 24);
    assert_eq!(offset_of!(VcpuPage, eoi_exits), 0x398);
    assert_eq!(offset_of!(VcpuPage, lines), 0x3c0);
}

#[test]
fn utcb_and_boot_info_layout_is_pinned() {
    assert_eq!(size_of::<Utcb>(), 4096);
    assert_eq!(offset_of!(Utcb, items), 0x10);
    assert_eq!(offset_of!(Utcb, deadline), 0x50);
    assert_eq!(offset_of!(Utcb, items_sent), 0x58);
    assert_eq!(offset_of!(Utcb, words), 256);
    assert_eq!(size_of::<MemoryRegion>(), 24);
    assert_eq!(size_of::<Module>(), 48);
    assert_eq!(size_of::<BootInfo>(), 4096);
    assert_eq!(offset_of!(BootInfo, command_line), 0xc40);
    assert_eq!(offset_of!(BootInfo, boot_wait), 0xe40);
}

#[test]
fn head_round_trips_and_refuses_reserved_bits() {
    for &call in Hypercall::ALL {
        let head = Head::new(call, Selector(1234));
        assert_eq!(head.call(), Some(call));
        assert_eq!(head.selector(), Selector(1234));
        assert_eq!(Head(head.0 | 1 << 8).call(), None);
    }
    assert_eq!(Head(0xff).call(), None);
}

#[test]
fn every_status_round_trips() {
    for raw in 0..=14 {
        assert_eq!(Status::from_raw(raw).map(|status| status as u32), Some(raw));
    }
    assert_eq!(Status::from_raw(15), None);
}

#[test]
fn exit_details_round_trip() {
    let io = PortIo { port: 0x3f8, size: 2, is_in: true, is_string: true, is_rep: true };
    assert_eq!(PortIo::decode(io.encode()), io);
    let access = ControlAccess { register: 8, operation: ControlOperation::Lmsw, gpr: 15, source: 0xfff1 };
    assert_eq!(ControlAccess::decode(access.encode()), access);
    assert_eq!(Event::exception(14, Some(5)).error_code(), Some(5));
    assert_eq!(Event::interrupt(0x30).kind(), Event::EXTERNAL);
}

#[test]
fn doorbells_round_trip_and_refuse_what_cannot_be() {
    let port = |size, data| Doorbell::Port { port: 0xcfc, size, data };
    for doorbell in [
        Doorbell::Call(0xffff),
        port(1, None),
        port(2, Some(0xffff)),
        port(4, Some(u32::MAX)),
        Doorbell::Page((1 << 36) - 1),
    ] {
        assert_eq!(Doorbell::decode(doorbell.role(), doorbell.encode()), Some(doorbell));
    }
    assert_eq!(Doorbell::Page(7).encode(), 7);
    assert_eq!(port(2, Some(5)).encode(), 0x0000_0005_0102_0cfc);
    assert_eq!(Doorbell::decode(BindRole::DoorbellPort, port(1, Some(0x100)).encode()), None);
    assert_eq!(Doorbell::decode(BindRole::DoorbellCall, 0x1_0000), None);
    assert_eq!(Doorbell::decode(BindRole::Utcb, 0), None);
}

#[test]
fn trace_records_are_pinned() {
    assert_eq!(size_of::<Record>(), 16);
    assert_eq!([offset_of!(Record, tsc), offset_of!(Record, event), offset_of!(Record, ec)], [0, 8, 12]);
    let of_users = [Kind::Hypercall, Kind::Return, Kind::Enter, Kind::Interrupt];
    let kinds = of_users.into_iter().chain([Kind::Fault, Kind::Wake, Kind::Idle, Kind::Window]);
    assert!(kinds.zip(1..).all(|(kind, raw)| Kind::from_raw(raw) == Some(kind)));
    assert_eq!([Kind::from_raw(0), Kind::from_raw(9)], [None; 2]);
    let bytes = [1, 2, 0, 0, 0, 0, 0, 0, 2, 14, 0x34, 0x12, 7, 0, 0, 0];
    let record = Record::from_bytes(bytes);
    assert_eq!((record.tsc, record.kind(), record.ec), (0x201, Some(Kind::Return), 7));
    assert_eq!((record.first(), record.second()), (14, 0x1234));
}
