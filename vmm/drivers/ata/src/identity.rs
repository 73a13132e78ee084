//! What a drive says it is (ATA/ATAPI-6, 8.15).

use alloc::string::String;
use vmm_protocol::block::SECTOR_BYTES;

/// What a drive says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its model.
    pub model: String,
    /// Its sectors.
    pub sectors: u64,
    /// Addresses of 48 bits.
    pub has_lba48: bool,
    /// Most sectors of a block in READ MULTIPLE and WRITE MULTIPLE; 0 without these commands.
    pub max_multiple: u8,
    /// FLUSH CACHE is there.
    pub can_flush: bool,
    /// FLUSH CACHE EXT is there.
    pub can_flush_ext: bool,
    /// A volatile write cache is in use.
    pub has_cache: bool,
}

/// Numbers of words.
mod word {
    pub(super) const GENERAL: usize = 0;
    pub(super) const MODEL: core::ops::Range<usize> = 27..47;
    pub(super) const MULTIPLE: usize = 47;
    pub(super) const CAPABILITIES: usize = 49;
    pub(super) const SECTORS_28: usize = 60;
    pub(super) const COMMANDS_2: usize = 83;
    pub(super) const COMMANDS_ENABLED: usize = 85;
    pub(super) const SECTORS_48: usize = 100;
    /// From ATA8-ACS.
    pub(super) const SECTOR_SIZE: usize = 106;
    pub(super) const WORDS_PER_SECTOR: usize = 117;
}

impl Identity {
    /// Reads the answer to IDENTIFY DEVICE.
    ///
    /// # Errors
    /// Why this driver cannot use the drive.
    pub fn parse(data: &[u8; SECTOR_BYTES]) -> Result<Self, &'static str> {
        let word = |index: usize| u16::from_le_bytes([data[2 * index], data[2 * index + 1]]);
        let long = |index: usize| u64::from(word(index)) | u64::from(word(index + 1)) << 16;
        let bit = |index: usize, bit: u32| word(index) >> bit & 1 != 0;
        // Words with these two bits are in use.
        let is_valid = |index: usize| word(index) >> 14 == 0b01;
        if bit(word::GENERAL, 15) {
            return Err("it is no ATA drive");
        }
        if !bit(word::CAPABILITIES, 9) {
            return Err("it has no logical block addresses");
        }
        let is_long = is_valid(word::SECTOR_SIZE) && bit(word::SECTOR_SIZE, 12);
        if is_long && long(word::WORDS_PER_SECTOR) != SECTOR_BYTES as u64 / 2 {
            return Err("its sectors are not 512 bytes");
        }
        let commands = |at: u32| is_valid(word::COMMANDS_2) && bit(word::COMMANDS_2, at);
        let has_lba48 = commands(10);
        let sectors = if has_lba48 {
            long(word::SECTORS_48) | long(word::SECTORS_48 + 2) << 32
        } else {
            long(word::SECTORS_28)
        };
        if sectors == 0 {
            return Err("it has no sectors");
        }
        Ok(Identity {
            model: model(data),
            sectors: sectors.min(1 << 48),
            has_lba48,
            max_multiple: word(word::MULTIPLE) as u8,
            can_flush: commands(12),
            can_flush_ext: has_lba48 && commands(13),
            has_cache: bit(word::COMMANDS_ENABLED, 5),
        })
    }
}

/// The model: the first character of each word is its high byte.
fn model(data: &[u8; SECTOR_BYTES]) -> String {
    let bytes = data[2 * word::MODEL.start..2 * word::MODEL.end].chunks_exact(2);
    let characters = bytes.flat_map(|pair| [pair[1], pair[0]]);
    let text: String =
        characters.map(char::from).map(|c| if c.is_ascii_graphic() { c } else { ' ' }).collect();
    text.trim().into()
}
