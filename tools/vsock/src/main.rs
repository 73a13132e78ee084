//! `vsock connect CID PORT` and `vsock listen PORT`, for Linux guests: what comes on stdin goes to the socket, and what comes from the
//! socket goes to stdout, until both have ended. A listener takes one connection.
#![cfg_attr(target_os = "none", no_std, no_main)]

/// A Linux program is nothing for the machine itself.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    linux::main()
}

#[cfg(not(target_os = "none"))]
mod linux {
    use std::ffi::c_int;
    use std::io::{Error, Read, Result, Write, stdin, stdout};
    use std::net::Shutdown;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::process::ExitCode;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    const AF_VSOCK: u16 = 40;
    const SOCK_STREAM: c_int = 1;
    /// Any context id: the guest's own.
    const CID_ANY: u32 = u32::MAX;
    const BUFFER: usize = 64 << 10;

    /// `struct sockaddr_vm` (Linux, include/uapi/linux/vm_sockets.h).
    #[repr(C)]
    struct Address {
        family: u16,
        reserved: u16,
        port: u32,
        cid: u32,
        flags: u8,
        zero: [u8; 3],
    }

    // SAFETY: as in libc, which a program with `std` is linked to.
    unsafe extern "C" {
        fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        fn connect(socket: c_int, address: *const Address, len: u32) -> c_int;
        fn bind(socket: c_int, address: *const Address, len: u32) -> c_int;
        fn listen(socket: c_int, backlog: c_int) -> c_int;
        fn accept(socket: c_int, address: *mut Address, len: *mut u32) -> c_int;
    }

    pub(crate) fn main() -> ExitCode {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let number = |word: &str| word.parse::<u32>().ok();
        let stream = match words[..] {
            ["connect", cid, port] => number(cid).zip(number(port)).map(|(cid, port)| open(cid, port)),
            ["listen", port] => number(port).map(wait),
            _ => None,
        };
        let Some(stream) = stream else {
            eprintln!("usage: vsock connect CID PORT, or vsock listen PORT");
            return ExitCode::from(2);
        };
        match stream.and_then(talk) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("vsock: {error}");
                ExitCode::FAILURE
            }
        }
    }

    fn address(cid: u32, port: u32) -> Address {
        Address { family: AF_VSOCK, reserved: 0, port, cid, flags: 0, zero: [0; 3] }
    }

    fn check(status: c_int) -> Result<c_int> {
        if status < 0 { Err(Error::last_os_error()) } else { Ok(status) }
    }

    fn new_socket() -> Result<OwnedFd> {
        // SAFETY: it has no preconditions.
        let socket = check(unsafe { socket(c_int::from(AF_VSOCK), SOCK_STREAM, 0) })?;
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(socket) })
    }

    fn open(cid: u32, port: u32) -> Result<UnixStream> {
        let (socket, address) = (new_socket()?, address(cid, port));
        // SAFETY: the address lives, and its size is what is said.
        check(unsafe { connect(socket.as_raw_fd(), &raw const address, size_of::<Address>() as u32) })?;
        // What is done with a stream does not depend on its family.
        Ok(socket.into())
    }

    fn wait(port: u32) -> Result<UnixStream> {
        let (socket, address) = (new_socket()?, address(CID_ANY, port));
        // SAFETY: the address lives, and its size is what is said.
        check(unsafe { bind(socket.as_raw_fd(), &raw const address, size_of::<Address>() as u32) })?;
        // SAFETY: it has no preconditions.
        check(unsafe { listen(socket.as_raw_fd(), 1) })?;
        // SAFETY: without an address nothing is written.
        let accepted =
            check(unsafe { accept(socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) })?;
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(accepted) }.into())
    }

    /// Both directions, each until its end; or until the other end takes nothing any more.
    fn talk(stream: UnixStream) -> Result<()> {
        static HAS_SENT: AtomicBool = AtomicBool::new(false);
        let mut to = stream.try_clone()?;
        let sender = thread::spawn(move || -> Result<()> {
            copy(&mut stdin().lock(), &mut to)?;
            HAS_SENT.store(true, Ordering::SeqCst);
            to.shutdown(Shutdown::Write)
        });
        copy(&mut &stream, &mut stdout().lock())?;
        // The sender may wait for stdin. Linux tells by a write, if only of nothing, that a connection was reset.
        if let Err(error) = (&stream).write(&[])
            && !HAS_SENT.load(Ordering::SeqCst)
        {
            return Err(error);
        }
        sender.join().unwrap_or(Ok(()))
    }

    fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<()> {
        let mut bytes = vec![0; BUFFER];
        loop {
            match from.read(&mut bytes)? {
                0 => return to.flush(),
                len => to.write_all(&bytes[..len])?,
            }
        }
    }
}
