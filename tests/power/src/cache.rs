//! A volatile cache as drives have one: it writes sectors back when it likes and in any order, all of them for a flush, and when the
//! power fails, some. What lies in the same page of 4 KiB goes together, as drives have physical sectors of that size, and ext4 trusts
//! in its superblock, which has 1 KiB, not being torn.

use crate::NO_POWER;
use alloc::vec::Vec;
use drv_ata::drive::{Command, Failure, Medium};
use vmm_protocol::block::SECTOR_BYTES;

/// Sectors that the medium writes at once.
const PHYSICAL_SECTORS: u64 = 8;
/// Most sectors in the cache.
const CAPACITY: usize = 128;
/// The power fails so many writes after it came, at least, and so many more at most.
const LEAST_WRITES: u64 = 8;
const MORE_WRITES: u64 = 40;

#[derive(Clone, Copy, Debug)]
struct Entry {
    sector: u64,
    data: [u8; SECTOR_BYTES],
}

/// What is between a medium and its user.
#[derive(Debug)]
pub struct Cache<M> {
    medium: M,
    /// Reading this sector turns the power on.
    switch: u64,
    random: Random,
    entries: Vec<Entry>,
    /// Writes until the power fails; `None` without power.
    writes_left: Option<u64>,
}

impl<M: Medium> Cache<M> {
    /// A cache in front of `medium`. All that it does follows from `seed`.
    pub fn new(medium: M, switch: u64, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let writes_left = Some(LEAST_WRITES + random.below(MORE_WRITES));
        Cache { medium, switch, random, entries: Vec::with_capacity(CAPACITY), writes_left }
    }

    /// Whether there is power.
    pub fn has_power(&self) -> bool {
        self.writes_left.is_some()
    }

    /// What is behind it.
    pub fn medium(&self) -> &M {
        &self.medium
    }

    fn read(&mut self, sector: u64, count: u32, data: &mut [u8]) -> Result<(), Failure> {
        let sectors = sector..sector + u64::from(count);
        if !self.has_power() && sectors.contains(&self.switch) {
            self.writes_left = Some(LEAST_WRITES + self.random.below(MORE_WRITES));
            log::info!("the power is back");
        }
        if !self.has_power() {
            return Err(NO_POWER);
        }
        self.medium.execute(Command::Read { sector, count }, data)?;
        for entry in self.entries.iter().filter(|entry| sectors.contains(&entry.sector)) {
            let at = (entry.sector - sector) as usize * SECTOR_BYTES;
            data[at..at + SECTOR_BYTES].copy_from_slice(&entry.data);
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Failure> {
        let left = self.writes_left.ok_or(NO_POWER)?;
        for (sector, data) in (sector..).zip(data.as_chunks().0) {
            self.put(Entry { sector, data: *data })?;
        }
        self.writes_left = left.checked_sub(1);
        if !self.has_power() {
            self.fail()?;
            return Err(NO_POWER);
        }
        Ok(())
    }

    /// Takes a sector in.
    fn put(&mut self, entry: Entry) -> Result<(), Failure> {
        if let Some(old) = self.entries.iter_mut().find(|old| old.sector == entry.sector) {
            *old = entry;
            return Ok(());
        }
        // Now and then one goes to the medium before its turn.
        if self.entries.len() == CAPACITY || self.random.below(8) == 0 {
            self.write_back()?;
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Writes what there is of one physical sector to the medium, whichever.
    fn write_back(&mut self) -> Result<(), Failure> {
        let index = self.random.below(self.entries.len() as u64) as usize;
        let Some(unit) = self.entries.get(index).map(|entry| entry.sector / PHYSICAL_SECTORS) else {
            return Ok(());
        };
        while let Some(index) = self.entries.iter().position(|entry| entry.sector / PHYSICAL_SECTORS == unit)
        {
            let Entry { sector, mut data } = self.entries.swap_remove(index);
            self.medium.execute(Command::Write { sector, count: 1 }, &mut data)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        while self.has_power() && !self.entries.is_empty() {
            self.write_back()?;
        }
        if self.has_power() { self.medium.execute(Command::Flush, &mut []) } else { Err(NO_POWER) }
    }

    /// The power fails: a part of what is in the cache made it to the medium.
    fn fail(&mut self) -> Result<(), Failure> {
        let before = self.entries.len() as u64;
        let most = self.random.below(before + 1);
        while self.entries.len() as u64 > most {
            self.write_back()?;
        }
        log::info!("the power fails: {} of {before} sectors in the cache are lost", self.entries.len());
        self.entries.clear();
        // What made it there, the medium itself must not lose.
        self.medium.execute(Command::Flush, &mut [])
    }
}

impl<M: Medium> Medium for Cache<M> {
    fn execute(&mut self, command: Command, data: &mut [u8]) -> Result<(), Failure> {
        match command {
            Command::Read { sector, count } => self.read(sector, count, data),
            Command::Write { sector, .. } => self.write(sector, data),
            Command::Flush => self.flush(),
            other => self.medium.execute(other, data),
        }
    }
}

/// Marsaglia's xorshift.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Any state but 0, and seeds that are alike begin differently.
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}
