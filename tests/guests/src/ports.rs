//! Port I/O: ports that nobody claims, the small devices of a PC, and string instructions.

use trt::lapic::Lapic;
use trt::port::{inb, inl, inw, outb, outl, outw};
use trt::serial::{COM1, IIR_FCR, LSR, LSR_DATA_READY, MCR};
use trt::{check, clock, is_nacre, port, skip};

const VECTOR: u8 = 0x52;
/// A port without a device on either board.
const UNCLAIMED: u16 = 0x5678;

/// The guest.
pub fn run() {
    unclaimed();
    registers();
    absent_devices();
    strings();
    string_reads();
    rtc();
}

fn unclaimed() {
    check!(eq inb(UNCLAIMED), 0xff, "a byte from an unclaimed port is all ones");
    check!(eq inw(UNCLAIMED), 0xffff, "two bytes from an unclaimed port are all ones");
    check!(eq inl(UNCLAIMED), 0xffff_ffff, "four bytes from an unclaimed port are all ones");
    outb(UNCLAIMED, 1);
    outw(UNCLAIMED, 2);
    outl(UNCLAIMED, 3);
    check!(eq inl(UNCLAIMED), 0xffff_ffff, "writes to an unclaimed port are lost");
}

fn registers() {
    let before = 0x1122_3344_5566_7788;
    check!(
        eq port::in_al(UNCLAIMED, before), 0x1122_3344_5566_77ff,
        "IN AL changes the low byte of RAX only",
    );
    check!(
        eq port::in_ax(UNCLAIMED, before), 0x1122_3344_5566_ffff,
        "IN AX changes the low two bytes of RAX only",
    );
    check!(eq port::in_eax(UNCLAIMED, before), 0xffff_ffff, "IN EAX clears the upper half of RAX");
}

fn absent_devices() {
    // The interrupt controllers' initialisation, as every operating system does it.
    for (port, value) in
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1)]
    {
        outb(port, value);
    }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    check!(eq inb(0x21), 0xff, "after initialisation the PIC's mask reads all ones, with or without a PIC");
    outb(0x80, 0x42);
    check!(inb(0x64) & 2 == 0, "the keyboard controller is ready for a command, or Linux's reset would wait");
    if is_nacre() {
        check!(eq inb(0xe9), 0xe9, "port E9H identifies itself");
        outl(0xcf8, 0x8000_0000);
        check!(eq inl(0xcfc), 0xffff_ffff, "there is no PCI bus");
        outb(0x43, 0x34);
        check!(eq inb(0x40), 0xff, "there is no PIT");
    } else {
        skip!("ports that only Nacre's board has or lacks");
    }
}

/// Puts the console's UART in loopback, where what is sent is received.
fn in_loopback<R>(body: impl FnOnce() -> R) -> R {
    const LSR_ALL_SENT: u8 = 1 << 6;
    clock::wait_until(100, || inb(COM1 + LSR) & LSR_ALL_SENT != 0);
    outb(COM1 + MCR, 0x1b);
    outb(COM1 + IIR_FCR, 0x07);
    let result = body();
    outb(COM1 + IIR_FCR, 0x07);
    outb(COM1 + MCR, 0x0b);
    result
}

fn wait_for_data() -> bool {
    clock::wait_until(100, || inb(COM1 + LSR) & LSR_DATA_READY != 0)
}

fn strings() {
    let sent = *b"rep outsb";
    let mut received = [0; 9];
    in_loopback(|| {
        port::outsb(COM1, &sent);
        for byte in &mut received {
            wait_for_data();
            port::insb(COM1, core::slice::from_mut(byte));
        }
    });
    check!(eq received, sent, "REP OUTSB and INSB move bytes in order");

    let mut together = [0; 9];
    in_loopback(|| {
        port::outsb(COM1, &sent);
        clock::wait(10);
        port::insb(COM1, &mut together);
    });
    check!(eq together, sent, "REP INSB fills a buffer in order");

    let (byte, from, to) = in_loopback(|| {
        outb(COM1, b'x');
        wait_for_data();
        port::outsb_insb_backwards(0x80, COM1, b'y')
    });
    check!(eq(byte, from, to), (b'x', -1, -1), "OUTSB and INSB step backwards with DF set");

    port::outsb(UNCLAIMED, &[]);
    check!(true, "REP OUTSB of no bytes ends at once");
}

fn string_reads() {
    let mut words = [0_u16; 5];
    port::insw(UNCLAIMED, &mut words[..4]);
    check!(eq words, [0xffff, 0xffff, 0xffff, 0xffff, 0], "REP INSW writes just as many words as asked for");
    let mut dwords = [0_u32; 3];
    port::insd(UNCLAIMED, &mut dwords[..2]);
    check!(
        eq dwords, [0xffff_ffff, 0xffff_ffff, 0],
        "REP INSD writes just as many double words as asked for",
    );

    // A buffer across a page boundary, and longer than one transfer of any buffer in between.
    let mut long = [0_u8; 8192];
    port::insb(UNCLAIMED, &mut long[1..8191]);
    let ends = (long[0], long[8191]);
    check!(
        ends == (0, 0) && long[1..8191].iter().all(|byte| *byte == 0xff),
        "REP INSB of 8190 bytes crosses pages"
    );
}

fn rtc_register(index: u8) -> u8 {
    outb(0x70, index);
    inb(0x71)
}

fn rtc() {
    check!(rtc_register(0x0d) >> 7 == 1, "the RTC's time is valid");
    let binary = rtc_register(0x0b) & 4 != 0;
    let number = |index| {
        let value = rtc_register(index);
        if binary { value } else { (value >> 4) * 10 + (value & 15) }
    };
    clock::wait_until(10, || rtc_register(0x0a) >> 7 == 0);
    let (second, minute, hour) = (number(0), number(2), number(4));
    let (day, month, year) = (number(7), number(8), number(9));
    let plausible = second < 60
        && minute < 60
        && (hour & 0x7f) < 24
        && (1..=31).contains(&day)
        && (1..=12).contains(&month)
        && year < 100;
    check!(
        plausible,
        "the RTC tells a date and time: {year:02}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"
    );

    let mut now = second;
    let apic = Lapic::enable_best();
    let ticked = apic.doze_until(VECTOR, apic.ticks_per_ms(), 1500, || {
        now = number(0);
        now != second
    });
    check!(ticked, "the RTC's second changes within 1.5 s");
    check!((now + 60 - second) % 60 <= 2, "the RTC's next second follows the last");
}
