use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

const RBR_THR: u8 = 0;
const IER: u8 = 1;
const IIR_FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const SCR: u8 = 7;

const OUT2: u8 = 1 << 3;
const LOOP: u8 = 1 << 4;

fn uart_with(ier: u8, fcr: u8) -> Uart {
    let mut uart = Uart::new();
    uart.write(MCR, OUT2);
    uart.write(IIR_FCR, fcr);
    uart.write(IER, ier);
    uart
}

#[test]
fn written_bytes_come_out_in_order_and_once() {
    let mut uart = Uart::new();
    for byte in *b"hello" {
        assert_eq!(uart.read(LSR, 0), 0x60);
        uart.write(RBR_THR, byte);
    }
    assert!(uart.has_output());
    assert_eq!(uart.take_output().collect::<Vec<_>>(), b"hello");
    assert!(!uart.has_output());
}

/// The register accesses of Linux' 8250 detection, and what a 16550A must answer.
#[test]
fn detection_finds_a_16550a_and_nothing_newer() {
    let mut uart = Uart::new();
    uart.write(IER, 0);
    assert_eq!(uart.read(IER, 0) & 0x0f, 0);
    uart.write(IER, 0x0f);
    assert_eq!(uart.read(IER, 0), 0x0f);
    uart.write(IER, 0);
    uart.write(MCR, LOOP | 0x0a);
    assert_eq!(uart.read(MSR, 0) & 0xf0, 0x90);
    uart.write(MCR, 0);
    uart.write(IIR_FCR, 1);
    assert_eq!(uart.read(IIR_FCR, 0) >> 6, 3);
    for dlab in [0x80, 0xbf, 0xe0] {
        uart.write(LCR, dlab);
        assert_eq!(uart.read(IIR_FCR, 0), 0xc1, "no enhanced feature register, no bank 2");
    }
    // A 16750 would show bit 5 after enabling its long FIFO under DLAB.
    uart.write(IIR_FCR, 0x21);
    assert_eq!(uart.read(IIR_FCR, 0) >> 5, 6);
    uart.write(LCR, 0);
    // An XScale port has a unit enable bit in IER.
    uart.write(IER, 0x40);
    assert_eq!(uart.read(IER, 0), 0);
    uart.write(SCR, 0xa5);
    assert_eq!(uart.read(SCR, 0), 0xa5);
}

#[test]
fn enabling_the_transmit_interrupt_raises_it_each_time_and_reading_iir_lowers_it() {
    let mut uart = uart_with(0x02, 0);
    for _ in 0..2 {
        assert!(uart.irq_level());
        assert_eq!(uart.read(IIR_FCR, 0), 0x02);
        assert!(!uart.irq_level());
        assert_eq!(uart.read(IIR_FCR, 0), 0x01);
        uart.write(IER, 0x02);
        assert!(!uart.irq_level(), "enabled already");
        uart.write(IER, 0);
        uart.write(IER, 0x02);
    }
    let _ = uart.read(IIR_FCR, 0);
    uart.write(RBR_THR, b'x');
    assert!(uart.irq_level(), "the byte has left");
}

#[test]
fn reading_iir_for_another_cause_keeps_the_transmit_interrupt() {
    let mut uart = uart_with(0x03, 0);
    assert_eq!(uart.receive(b"a"), 1);
    assert_eq!(uart.read(IIR_FCR, 0), 0x04);
    assert_eq!(uart.read(RBR_THR, 0), b'a');
    assert_eq!(uart.read(IIR_FCR, 0), 0x02);
    assert_eq!(uart.read(IIR_FCR, 0), 0x01);
}

#[test]
fn without_fifo_one_byte_is_accepted_at_a_time() {
    let mut uart = uart_with(0x01, 0);
    assert_eq!(uart.receive(b"abc"), 1);
    assert_eq!(uart.room(), 0);
    assert_eq!(uart.receive(b"bc"), 0);
    assert_eq!(uart.read(LSR, 0), 0x61);
    assert_eq!(uart.read(RBR_THR, 0), b'a');
    assert_eq!(uart.room(), 1);
    assert!(!uart.irq_level());
}

#[test]
fn received_data_interrupts_at_the_trigger_level_and_a_rest_by_timeout() {
    // FIFO enabled, trigger level 8.
    let mut uart = uart_with(0x01, 0x81);
    assert_eq!(uart.receive(b"01234567"), 8);
    assert_eq!(uart.read(IIR_FCR, 0), 0xc4);
    assert_eq!(uart.read(RBR_THR, 0), b'0');
    assert_eq!(uart.read(IIR_FCR, 0), 0xcc);
    assert!(uart.irq_level());
    for byte in *b"1234567" {
        assert_eq!(uart.read(RBR_THR, 0), byte);
    }
    assert_eq!(uart.read(IIR_FCR, 0), 0xc1);
    assert!(!uart.irq_level());
}

#[test]
fn the_fifo_takes_sixteen_bytes_and_clearing_it_loses_them() {
    let mut uart = uart_with(0, 0x01);
    assert_eq!(uart.receive(&[7; 40]), FIFO_BYTES);
    uart.write(IIR_FCR, 0x03);
    assert_eq!(uart.read(LSR, 0) & 1, 0);
    assert_eq!(uart.room(), FIFO_BYTES);
    assert_eq!(uart.receive(b"z"), 1);
    // Clear bit without enable bit: the FIFO is switched off, which clears it too.
    uart.write(IIR_FCR, 0x02);
    assert_eq!(uart.read(LSR, 0) & 1, 0);
    assert_eq!(uart.room(), 1);
}

#[test]
fn the_line_is_quiet_without_out2_and_in_loopback() {
    let mut uart = uart_with(0x02, 0);
    assert!(uart.irq_level());
    uart.write(MCR, 0);
    assert!(!uart.irq_level());
    uart.write(MCR, OUT2 | LOOP);
    assert!(!uart.irq_level());
    uart.write(MCR, OUT2);
    assert!(uart.irq_level());
}

#[test]
fn loopback_receives_what_it_sends_and_hears_nothing_else() {
    let mut uart = uart_with(0x04, 0x01);
    uart.write(MCR, LOOP);
    assert_eq!(uart.room(), 0);
    assert_eq!(uart.receive(b"outside"), 0);
    for byte in 0..17 {
        uart.write(RBR_THR, byte);
    }
    assert!(!uart.has_output());
    assert_eq!(uart.read(IIR_FCR, 0), 0xc6, "overrun");
    assert_eq!(uart.read(LSR, 0), 0x63);
    assert_eq!(uart.read(LSR, 0), 0x61, "reading the status clears the error");
    let received: Vec<u8> = (0..16).map(|_| uart.read(RBR_THR, 0)).collect();
    assert_eq!(received, (0..16).collect::<Vec<u8>>());
}

#[test]
fn overrun_without_fifo_keeps_the_newest_byte() {
    let mut uart = Uart::new();
    uart.write(MCR, LOOP);
    uart.write(RBR_THR, 1);
    uart.write(RBR_THR, 2);
    assert_eq!(uart.read(LSR, 0) & 0x03, 0x03);
    assert_eq!(uart.read(RBR_THR, 0), 2);
}

#[test]
fn modem_changes_are_reported_once() {
    let mut uart = uart_with(0x08, 0);
    assert_eq!(uart.read(MSR, 0), 0xb0);
    uart.write(MCR, LOOP | 0x04);
    // CTS, DSR and DCD fell; RI rose, which is no event.
    assert_eq!(uart.read(IIR_FCR, 0), 0x00);
    assert_eq!(uart.read(MSR, 0), 0x4b);
    assert_eq!(uart.read(MSR, 0), 0x40);
    uart.write(MCR, OUT2);
    assert!(uart.irq_level());
    assert_eq!(uart.read(MSR, 0), 0xbf);
    assert!(!uart.irq_level());
}

#[test]
fn the_divisor_latch_hides_data_and_interrupt_enable() {
    let mut uart = Uart::new();
    uart.write(IER, 0x05);
    uart.write(LCR, 0x83);
    uart.write(RBR_THR, 0x34);
    uart.write(IER, 0x12);
    assert_eq!((uart.read(0, 0), uart.read(1, 0)), (0x34, 0x12));
    uart.write(LCR, 0x03);
    assert_eq!(uart.read(IER, 0), 0x05);
    assert!(!uart.has_output());
}

proptest! {
    #[test]
    fn any_access_sequence_keeps_the_fifo_bounded(
        accesses in prop::collection::vec((any::<u8>(), any::<u8>(), 0u8..3), 0..400),
    ) {
        let mut uart = Uart::new();
        for (offset, value, kind) in accesses {
            match kind {
                0 => { let _ = uart.read(offset, 0); }
                1 => uart.write(offset, value),
                _ => {
                    let room = uart.room();
                    let bytes = alloc::vec![value; usize::from(offset)];
                    prop_assert_eq!(uart.receive(&bytes), room.min(bytes.len()));
                }
            }
            prop_assert!(uart.received.len() <= FIFO_BYTES);
            let level = uart.irq_level();
            prop_assert!(!level || uart.cause() != Cause::None);
        }
    }
}
