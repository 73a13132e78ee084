//! An HTTP server without an operating system: what of it needs no hardware.
//!
//! ```text
//!   client --- TCP/IP (smoltcp) --- [server] --- [http]
//!                                      |
//!                                  [archive] --- disk
//! ```
//!
//! 1. [`server::Server`] owns the TCP/IP stack and the connections. Whoever runs it calls [`server::Server::poll`] when frames
//!    arrived or the time that it named has come, and sleeps in between.
//! 2. Nothing here allocates, waits for a client, or keeps anything of one beyond the buffers of its connection.
//! 3. Files come from a disk that is a tar archive. What may be served is what the archive lists: a path is compared with its
//!    names, never followed.
#![no_std]
#![forbid(unsafe_code)]

pub mod archive;
mod connection;
pub mod http;
pub mod server;
