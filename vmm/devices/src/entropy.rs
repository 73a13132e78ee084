//! The random number generator behind every front end.

/// Where random bytes come from.
pub trait Entropy {
    /// Fills `into` from its start and returns how many bytes it had; 0 if the source has none now.
    fn fill(&mut self, into: &mut [u8]) -> usize;
}

/// A source of 64-bit numbers, such as RDRAND, each of which may fail.
#[derive(Clone, Debug)]
pub struct Words<F>(pub F);

impl<F: FnMut() -> Option<u64>> Entropy for Words<F> {
    fn fill(&mut self, into: &mut [u8]) -> usize {
        let mut done = 0;
        for chunk in into.chunks_mut(8) {
            let Some(word) = self.0() else { break };
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
            done += chunk.len();
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_runs_dry_gives_what_it_had() {
        let mut left = 2u64;
        let mut source = Words(move || {
            left = left.checked_sub(1)?;
            Some(0x0101_0101_0101_0101 * (left + 1))
        });
        let mut bytes = [0; 19];
        assert_eq!(source.fill(&mut bytes[..11]), 11);
        assert_eq!(&bytes[7..12], [2, 1, 1, 1, 0]);
        assert_eq!(source.fill(&mut bytes), 0);
    }
}
