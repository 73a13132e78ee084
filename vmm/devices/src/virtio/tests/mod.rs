//! Devices as drivers see them, through registers and rings.

mod balloon;
mod block;
mod console;
mod hostile;
mod negotiation;
mod net;
mod net_long;
mod packed;
mod queue;
mod vsock;

use super::block::{Block, ID_BYTES};
use super::driver::{BUFFERS, Buffer, Driver};
use super::*;
use crate::block::{Disk, MemoryDisk};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

/// Sectors of the test's disk.
const SECTORS: u64 = 64;
const ID: [u8; ID_BYTES] = *b"test-disk\0\0\0\0\0\0\0\0\0\0\0";
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x40;
const DATA: u64 = BUFFERS + 0x1000;

/// A disk whose sector n is full of n.
fn memory_disk(is_read_only: bool) -> Disk {
    let content: Vec<u8> = (0..SECTORS).flat_map(|sector| [sector as u8; 512]).collect();
    let content = content.leak();
    Disk::new(Box::new(if is_read_only {
        MemoryDisk::read_only(content)
    } else {
        MemoryDisk::writable(content)
    }))
}

fn block(is_read_only: bool) -> Block {
    Block::new(memory_disk(is_read_only), ID, 1)
}

impl<D: Device> Driver<D> {
    /// Writes a block request's header, and a status that no device writes.
    fn header(&mut self, kind: u32, sector: u64) {
        self.memory.write_u32(HEADER, kind).unwrap();
        self.memory.write_u64(HEADER + 8, sector).unwrap();
        self.memory.write_u8(STATUS, 0xaa).unwrap();
    }

    /// Does a block request with `data` between header and status; returns the status and the bytes written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        let chain = [&[Buffer::Read(HEADER, 16)], data, &[Buffer::Write(STATUS, 1)]].concat();
        let written = self.transfer(&chain);
        (self.memory.read_u8(STATUS).unwrap(), written)
    }

    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(gpa, &mut bytes).unwrap();
        bytes
    }
}
