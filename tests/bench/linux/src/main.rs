//! UDP between two Linux guests: `bench-udp answer` in one, `bench-udp ask` in the other, which prints what a packet costs.
//!
//! The packet's first byte says what becomes of it: it comes back, it is counted and comes back as every `WINDOW`th, or it ends
//! the other.
#![cfg_attr(target_os = "none", no_std, no_main)]

/// A Linux program is nothing for the machine itself.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_os = "none"))]
fn main() -> std::io::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("ask") => linux::ask(),
        _ => linux::answer(),
    }
}

#[cfg(not(target_os = "none"))]
mod linux {
    use std::io::Result;
    use std::net::UdpSocket;
    use std::time::Duration;

    const ASKS: &str = "10.9.0.2:7000";
    const ANSWERS: &str = "10.9.0.1:7000";
    /// Bytes of payload that make an Ethernet frame of 64 bytes, and an IP packet of 1500.
    const SHORT: usize = 64 - 14 - 20 - 8;
    const LONG: usize = 1500 - 20 - 8;
    const ECHO: u8 = 1;
    const DATA: u8 = 2;
    const END: u8 = 3;
    /// Packets of a stream until the other says that they came.
    const WINDOW: usize = 32;
    /// Operations that do not count, and those that do.
    const WARM_UP: usize = 16;
    const ROUNDS: usize = 128;

    pub(crate) fn answer() -> Result<()> {
        let socket = UdpSocket::bind(ANSWERS)?;
        let mut bytes = [0; 2048];
        let mut count = 0;
        loop {
            let (len, from) = socket.recv_from(&mut bytes)?;
            count += usize::from(bytes[0] == DATA);
            if bytes[0] == ECHO || bytes[0] == DATA && count % WINDOW == 0 {
                socket.send_to(&bytes[..len.min(SHORT)], from)?;
            }
            if bytes[0] == END {
                return Ok(());
            }
        }
    }

    pub(crate) fn ask() -> Result<()> {
        let socket = UdpSocket::bind(ASKS)?;
        socket.connect(ANSWERS)?;
        let mut bytes = [0; LONG];
        // It may not have started yet.
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        bytes[0] = ECHO;
        while socket.send(&bytes[..SHORT]).and_then(|_| socket.recv(&mut bytes)).is_err() {}
        // Late answers.
        while socket.recv(&mut bytes).is_ok() {}
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let ping = median(|| {
            bytes[0] = ECHO;
            socket.send(&bytes[..SHORT])?;
            socket.recv(&mut bytes).map(drop)
        })?;
        println!("ping {ping}");
        let stream = median(|| {
            bytes[0] = DATA;
            for _ in 0..WINDOW {
                socket.send(&bytes)?;
            }
            socket.recv(&mut bytes).map(drop)
        })?;
        println!("stream {}", stream / WINDOW as u64);
        bytes[0] = END;
        socket.send(&bytes[..SHORT]).map(drop)
    }

    /// The median of the ticks of an operation.
    fn median(mut operation: impl FnMut() -> Result<()>) -> Result<u64> {
        let mut ticks = Vec::with_capacity(ROUNDS);
        for round in 0..WARM_UP + ROUNDS {
            let start = now();
            operation()?;
            let end = now();
            if round >= WARM_UP {
                ticks.push(end - start);
            }
        }
        ticks.sort_unstable();
        Ok(ticks[ROUNDS / 2])
    }

    fn now() -> u64 {
        // SAFETY: Linux lets programs read the TSC.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
}
