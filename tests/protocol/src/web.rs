//! What the unikernel serves in tests.

/// `index.html`.
pub const PAGE: &str = "<h1>Served by a unikernel</h1>\n";
/// Name of the large file.
pub const LARGE: &str = "sub/large.bin";
/// Its bytes.
pub const LARGE_BYTES: usize = 200_003;
/// What its console shows when it serves, before the address.
pub const SERVING: &str = "unikernel: serving http://";

/// The byte at an offset of the large file.
pub const fn large(offset: usize) -> u8 {
    (offset % 251) as u8
}
