//! x87, SSE and AVX registers across exits and HLT; XCR0.

use trt::fpu::{self, Area, Compaction, XCR0_AVX, XCR0_SSE, XCR0_X87, Ymm};
use trt::lapic::Lapic;
use trt::trap::{self, GENERAL_PROTECTION};
use trt::{check, cpu, irq, port, skip};

const VECTOR: u8 = 0x51;

/// The guest.
pub fn run() {
    x87_and_sse();
    match fpu::enable_xsave() {
        Some(xcr0) => {
            xcr0_checks(xcr0);
            if xcr0 & XCR0_AVX != 0 {
                avx();
                compaction(Compaction::User, "XSAVEC");
                compaction(Compaction::Supervisor, "XSAVES");
            } else {
                skip!("AVX is not offered")
            }
        }
        None => skip!("XSAVE is not offered"),
    }
}

/// Exits of several kinds, and a sleep in which another guest may run.
fn exits() {
    for round in 0..50 {
        cpu::cpuid(round, 0);
        port::outb(0x80, round as u8);
        port::inb(0x80);
    }
    let apic = Lapic::enable_best();
    let ticks = apic.ticks_per_ms();
    irq::count(VECTOR);
    apic.start_timer(VECTOR, 0, ticks * 2);
    while irq::seen(VECTOR) == 0 {
        cpu::sti_hlt_cli();
    }
}

/// A value for every lane of every register, all different.
fn lanes(seed: u64) -> Ymm {
    let mut values = [[0; 4]; 16];
    for (register, lanes) in values.iter_mut().enumerate() {
        for (lane, value) in lanes.iter_mut().enumerate() {
            *value = seed.wrapping_mul((register * 4 + lane + 1) as u64) ^ seed;
        }
    }
    values
}

fn x87_and_sse() {
    fpu::load_x87();
    let values = lanes(0x0123_4567_89ab_cdef);
    fpu::load_xmm(&values);
    let (mut before, mut after) = (Area::ZERO, Area::ZERO);
    fpu::fxsave(&mut before);
    exits();
    fpu::fxsave(&mut after);
    check!(before.x87_registers().iter().any(|byte| *byte != 0), "the x87 registers hold something to lose");
    check!(before.x87_control() == after.x87_control(), "x87 control, status and tags survive exits and HLT");
    check!(before.mxcsr() == after.mxcsr(), "MXCSR survives exits and HLT");
    check!(before.x87_registers() == after.x87_registers(), "the x87 registers survive exits and HLT");
    check!(before.xmm() == after.xmm(), "the XMM registers survive exits and HLT");
    let seen = fpu::store_xmm();
    let same = values.iter().zip(&seen).all(|(a, b)| a[..2] == b[..2]);
    check!(same, "the XMM registers hold what was loaded");
}

fn xcr0_checks(xcr0: u64) {
    check!(eq xcr0 & (XCR0_X87 | XCR0_SSE), XCR0_X87 | XCR0_SSE, "XSAVE offers x87 and SSE state");
    check!(eq fpu::xgetbv(0), xcr0, "XCR0 holds what was written");
    for (what, value) in [
        ("without x87", XCR0_SSE),
        ("with AVX but without SSE", XCR0_X87 | XCR0_AVX),
        ("with a reserved bit", 1 << 62 | xcr0),
    ] {
        let refused =
            trap::catch(|| fpu::xsetbv(0, value)).is_err_and(|trap| trap.vector == GENERAL_PROTECTION);
        check!(refused, "XSETBV {what} raises #GP");
    }
    let refused = trap::catch(|| fpu::xsetbv(1, 1)).is_err_and(|trap| trap.vector == GENERAL_PROTECTION);
    check!(refused, "XSETBV of an unknown register raises #GP");
    check!(eq fpu::xgetbv(0), xcr0, "a refused XSETBV leaves XCR0 as it was");
    fpu::xsetbv(0, XCR0_X87 | XCR0_SSE);
    exits();
    check!(eq fpu::xgetbv(0), XCR0_X87 | XCR0_SSE, "a smaller XCR0 survives exits and HLT");
    check!(eq cpu::cpuid(0xd, 0).ebx, 576, "CPUID leaf DH counts the bytes of what is enabled");
    fpu::xsetbv(0, xcr0);
}

fn avx() {
    let values = lanes(0xfedc_ba98_7654_3211);
    fpu::load_ymm(&values);
    exits();
    check!(fpu::store_ymm() == values, "the YMM registers survive exits and HLT");
    // What the guest disables in XCR0 has to be there when it enables it again.
    fpu::xsetbv(0, XCR0_X87 | XCR0_SSE);
    exits();
    fpu::xsetbv(0, XCR0_X87 | XCR0_SSE | XCR0_AVX);
    check!(fpu::store_ymm() == values, "the YMM registers survive exits while XCR0 has AVX off");
}

/// What is offered has to work: Bochs 2.7 stores the components where XRSTOR does not look.
fn compaction(method: Compaction, name: &str) {
    if !method.is_offered() {
        skip!("{name} is not offered");
        return;
    }
    let (values, mut area) = (lanes(0x0f1e_2d3c_4b5a_6978), Area::ZERO);
    fpu::load_ymm(&values);
    method.save(&mut area);
    let upper = u128::from(values[0][3]) << 64 | u128::from(values[0][2]);
    check!(area.upper_ymm0() == upper.to_le_bytes(), "{name} stores AVX state where the manual says");
    fpu::load_ymm(&lanes(1));
    method.restore(&area);
    check!(fpu::store_ymm() == values, "what {name} stored can be restored");
}
