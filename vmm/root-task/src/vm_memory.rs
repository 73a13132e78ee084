//! The memory of a VM: in as few pieces as there are, or, with a balloon, in pieces that come and go.

use crate::error::StartError;
use crate::memory::{Allocation, FreeMemory};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, Narrow, Ntfn, Pd};
use usys::memory::Mapping;
use usys::{process, selector};
use vmm_protocol::balloon::{ANSWER, GIVEN, GIVEN_WORDS, GRANTED, PIECE_PAGES, REFUSED, TARGET, WANTED};
use vmm_protocol::manifest::VmConfig;
use vmm_protocol::process::{MemoryParts, monitor};

/// Pages of a superpage: guest memory begins at one.
const SUPERPAGE: u64 = 512;
/// Pages in a MiB.
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE;
/// Most parts that memory which stays is taken in.
const MAX_PARTS: usize = 512;

/// The memory of a VM that runs.
#[derive(Debug)]
pub struct VmMemory {
    /// The parts, by number; `None` where the VM gave one away.
    parts: Vec<Option<Allocation>>,
    balloon: Option<Balloon>,
}

/// What a VM's balloon needs.
#[derive(Debug)]
struct Balloon {
    page: Allocation,
    view: Mapping,
    answer: Cap<Ntfn>,
    /// Signals that: the capability above has no badge, and so no bit.
    bell: Cap<Ntfn>,
    target: u64,
}

impl VmMemory {
    /// Takes memory for a VM.
    pub fn allocate(memory: &mut FreeMemory, config: &VmConfig) -> Result<Self, StartError> {
        let pages = u64::from(config.memory_mib) * PAGES_PER_MIB;
        if memory.free_pages() < pages {
            return Err(StartError::Memory { pages });
        }
        let mut all = VmMemory { parts: Vec::new(), balloon: None };
        let most = if config.balloon.is_some() { PIECE_PAGES } else { pages };
        let done = all.add_parts(memory, pages, most).and_then(|()| {
            if config.balloon.is_some() {
                all.balloon = Some(Balloon::new(memory)?);
            }
            Ok(())
        });
        match done {
            Ok(()) => Ok(all),
            Err(error) => {
                all.free(memory);
                Err(error)
            }
        }
    }

    /// Takes `pages` pages in parts of `most` pages, or less where there are no so long runs.
    fn add_parts(&mut self, memory: &mut FreeMemory, pages: u64, most: u64) -> Result<(), StartError> {
        let most_parts = if most == PIECE_PAGES { usize::MAX } else { MAX_PARTS };
        let (mut left, mut run) = (pages, most);
        while left > 0 {
            match memory.allocate(run.min(left), SUPERPAGE) {
                Ok(part) => {
                    left -= part.pages();
                    self.parts.push(Some(part));
                }
                Err(StartError::Memory { .. }) if run > SUPERPAGE && self.parts.len() < most_parts => {
                    run = (run / 2 / SUPERPAGE).max(1) * SUPERPAGE;
                }
                Err(StartError::Memory { .. }) => return Err(StartError::Memory { pages }),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the parts are, for the VMM.
    pub fn parts(&self) -> Vec<MemoryParts> {
        let mut all: Vec<MemoryParts> = Vec::new();
        for pages in self.parts.iter().flatten().map(Allocation::pages) {
            match all.last_mut() {
                Some(last) if last.pages == pages => last.count += 1,
                _ => all.push(MemoryParts { count: 1, pages }),
            }
        }
        all
    }

    /// How many there are.
    pub fn part_count(&self) -> u64 {
        self.parts.len() as u64
    }

    /// The page that the balloon is told by, if there is one.
    pub fn balloon_page(&self) -> Option<&Allocation> {
        Some(&self.balloon.as_ref()?.page)
    }

    /// Gives the VMM the parts, and what it needs to give them back.
    pub fn delegate(&self, pd: Cap<Pd>) -> Result<(), StartError> {
        for (part, number) in self.parts.iter().zip(monitor::GUEST_MEMORY..) {
            if let Some(part) = part {
                part.memory().delegate(pd, Selector(number), Narrow::ALL)?;
            }
        }
        if let Some(balloon) = &self.balloon {
            let wait = Narrow::rights(Rights::WAIT);
            balloon.answer.delegate(pd, Selector(monitor::BALLOON_ANSWER), wait)?;
        }
        Ok(())
    }

    /// Does what the VMM asks for; whether memory came free. A piece that was needed and is not there ends the VM: its VMM is
    /// to look, by `events`.
    pub fn serve(&mut self, memory: &mut FreeMemory, pd: Cap<Pd>, events: Cap<Ntfn>) -> bool {
        let Some(balloon) = &self.balloon else {
            return false;
        };
        let window = balloon.view.window();
        // What it wants now it may have given just before: first the question, then the bits.
        let wanted = window.atomic_u64(WANTED).map_or(0, |word| word.swap(0, Ordering::AcqRel));
        let mut came_free = false;
        for word in 0..GIVEN_WORDS {
            let bits = window.atomic_u64(GIVEN + 8 * word).map_or(0, |bits| bits.swap(0, Ordering::Acquire));
            for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
                if let Some(part) = self.parts.get_mut(64 * word + bit).and_then(Option::take) {
                    memory.free(part);
                    came_free = true;
                }
            }
        }
        if let Some(number) = wanted.checked_sub(1).and_then(|number| usize::try_from(number).ok()) {
            let answer = if fetch(&mut self.parts, memory, pd, number) { GRANTED } else { REFUSED };
            if let Ok(word) = window.atomic_u32(ANSWER) {
                word.store(answer, Ordering::Release);
            }
            // A VMM that is gone waits for nothing.
            let _ = balloon.bell.signal();
            if answer == REFUSED {
                signal(events);
            }
        }
        came_free
    }

    /// How many pages the VM is asked to do without.
    pub fn target(&self) -> Option<u64> {
        Some(self.balloon.as_ref()?.target)
    }

    /// Asks the VM to do without so many pages.
    pub fn set_target(&mut self, pages: u64, events: Cap<Ntfn>) {
        if let Some(balloon) = &mut self.balloon
            && balloon.target != pages
            && let Ok(word) = balloon.view.window().atomic_u64(TARGET)
        {
            balloon.target = pages;
            word.store(pages, Ordering::Relaxed);
            signal(events);
        }
    }

    /// Frees all of it, when the VMM is gone.
    pub fn free(self, memory: &mut FreeMemory) {
        for part in self.parts.into_iter().flatten() {
            memory.free(part);
        }
        if let Some(Balloon { page, view, answer, bell, .. }) = self.balloon {
            drop(view);
            memory.free(page);
            // With it goes what is derived from it.
            if answer.delete().is_ok() {
                selector::release(answer.selector());
                selector::release(bell.selector());
            }
        }
    }
}

impl Balloon {
    fn new(memory: &mut FreeMemory) -> Result<Self, StartError> {
        let page = memory.allocate(1, 1)?;
        let made = Mapping::new(page.memory(), 0, 1, true).and_then(|view| {
            let answer = process::pool().create_ntfn(selector::allocate()?)?;
            let bell = answer.derive(selector::allocate()?, Narrow::rights(Rights::SIGNAL).badge(1))?;
            Ok((view, answer, bell))
        });
        match made {
            Ok((view, answer, bell)) => Ok(Balloon { page, view, answer, bell, target: 0 }),
            Err(error) => {
                memory.free(page);
                Err(error.into())
            }
        }
    }
}

/// Has the VMM find part `number` where the old one was; whether it does.
fn fetch(parts: &mut [Option<Allocation>], memory: &mut FreeMemory, pd: Cap<Pd>, number: usize) -> bool {
    let Some(place) = parts.get_mut(number) else {
        return false;
    };
    if place.is_some() {
        return true;
    }
    // Of a VM with a balloon all parts but the last, which is never given if it is shorter, are alike.
    let Ok(part) = memory.allocate(PIECE_PAGES, SUPERPAGE) else {
        return false;
    };
    let to = Selector(monitor::GUEST_MEMORY + number as u32);
    if part.memory().delegate(pd, to, Narrow::ALL).is_err() {
        memory.free(part);
        return false;
    }
    *place = Some(part);
    true
}

/// Has the VMM look at its balloon.
fn signal(events: Cap<Ntfn>) {
    let bit = Narrow::rights(Rights::SIGNAL).badge(monitor::BALLOON_BIT);
    if let Ok(to) = selector::allocate() {
        if let Ok(again) = events.derive(to, bit) {
            let _ = again.signal();
            let _ = again.delete();
        }
        selector::release(to);
    }
}
