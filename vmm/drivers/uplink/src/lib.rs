//! What the driver processes of network cards share: moving frames between a card and the link to a switch.
//!
//! Neither side may hold up the other, nor the process: a turn moves a bounded number of frames each way. A frame from the card
//! that finds no room in the link is lost, as on a wire; one for the card waits until that has room.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod process;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use core::fmt::Display;
use vdev::net::{Link, MAX_FRAME, MIN_FRAME};

/// Frames that a turn moves each way at most.
pub const BATCH: usize = 64;

/// A network card, as its driver sees it.
pub trait Card {
    /// What it does that it must not.
    type Failure: Display;

    /// Looks at what the card interrupted for.
    fn look(&mut self) {}

    /// Takes a frame that arrived: its bytes are the first of `into`, whose length is [`MAX_FRAME`]. Returns how many.
    ///
    /// # Errors
    /// The card is to be restarted.
    fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>, Self::Failure>;

    /// Takes a frame of [`MIN_FRAME`] to [`MAX_FRAME`] bytes to transmit; says whether there was room. If not, it interrupts when
    /// there is.
    ///
    /// # Errors
    /// The card is to be restarted.
    fn send(&mut self, frame: &[u8]) -> Result<bool, Self::Failure>;

    /// Shows the card what was put before it in this turn.
    fn publish(&mut self) {}

    /// How long the card has to be left alone, in ms, before [`Self::resume`]: it interrupts for nothing meanwhile.
    fn pause_ms(&self) -> Option<u64> {
        None
    }

    /// Goes on after a pause.
    fn resume(&mut self) {}

    /// The number of the frame that leaves, if the card is to interrupt soon because it has left.
    fn leaving(&self) -> Option<u32> {
        None
    }

    /// Begins anew. Frames that the card has are lost.
    ///
    /// # Errors
    /// It does not come back.
    fn restart(&mut self) -> Result<(), Self::Failure>;
}

/// A card and the link to a switch.
pub struct Pump<C, L> {
    card: C,
    link: L,
    frame: Box<[u8; MAX_FRAME]>,
    /// A frame for the card that waits for room.
    waiting: Box<[u8; MAX_FRAME]>,
    /// Its bytes; 0 if there is none.
    waiting_bytes: usize,
}

impl<C: Card, L: Link> Pump<C, L> {
    /// Between this card and this link.
    pub fn new(card: C, link: L) -> Self {
        let [frame, waiting] = [(); 2].map(|()| Box::new([0; MAX_FRAME]));
        Pump { card, link, frame, waiting, waiting_bytes: 0 }
    }

    /// The card.
    pub fn card(&mut self) -> &mut C {
        &mut self.card
    }

    /// The link.
    pub fn link(&mut self) -> &mut L {
        &mut self.link
    }

    /// Moves frames both ways; says whether there may be more to move at once.
    ///
    /// # Errors
    /// What the card did: it is to be restarted.
    pub fn turn(&mut self) -> Result<bool, C::Failure> {
        self.card.look();
        let is_more_from = self.receive()?;
        let is_more_for = self.send()?;
        self.link.flush();
        self.card.publish();
        Ok(is_more_from || is_more_for)
    }

    fn receive(&mut self) -> Result<bool, C::Failure> {
        for _ in 0..BATCH {
            match self.card.receive(&mut self.frame[..])? {
                Some(bytes) => self.link.send(&self.frame[..bytes], None),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn send(&mut self) -> Result<bool, C::Failure> {
        for _ in 0..BATCH {
            if self.waiting_bytes == 0 && !self.fetch() {
                return Ok(false);
            }
            if !self.card.send(&self.waiting[..self.waiting_bytes])? {
                return Ok(false);
            }
            self.waiting_bytes = 0;
        }
        Ok(true)
    }

    /// Takes a frame for the card from the link. A wire carries no note that a checksum is missing.
    fn fetch(&mut self) -> bool {
        while let Some((bytes, missing)) = self.link.receive(&mut self.waiting[..]) {
            // What comes from a stranger may be anything.
            if !(MIN_FRAME..=MAX_FRAME).contains(&bytes) {
                continue;
            }
            if let Some(missing) = missing {
                missing.fill_in(&mut self.waiting[..bytes]);
            }
            self.waiting_bytes = bytes;
            return true;
        }
        false
    }
}

impl<C: core::fmt::Debug, L> core::fmt::Debug for Pump<C, L> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Pump").field("card", &self.card).finish_non_exhaustive()
    }
}
