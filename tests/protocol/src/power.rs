//! The disk of the driver whose disk loses its power (`tests/power`): its last sector holds the seed, and reading it turns the power
//! on again.

/// What a seed begins with.
const MAGIC: [u8; 8] = *b"nacrecut";

/// The last sector of a disk with this seed.
pub fn last_sector(seed: u64) -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..8].copy_from_slice(&MAGIC);
    sector[8..16].copy_from_slice(&seed.to_le_bytes());
    sector
}

/// The seed in a disk's last sector; 0 in any other.
pub fn seed_in(sector: &[u8; 512]) -> u64 {
    match sector.first_chunk::<16>() {
        Some([magic @ .., b0, b1, b2, b3, b4, b5, b6, b7]) if *magic == MAGIC => {
            u64::from_le_bytes([*b0, *b1, *b2, *b3, *b4, *b5, *b6, *b7])
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sector_has_the_seed() {
        assert_eq!(seed_in(&last_sector(0x1234_5678_9abc_def0)), 0x1234_5678_9abc_def0);
        assert_eq!(seed_in(&[0xff; 512]), 0);
    }
}
