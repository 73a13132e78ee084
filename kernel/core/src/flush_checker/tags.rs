//! What one CPU's TLB may hold under each tag: a VPID, an ASID, or an EPT pointer.

/// Tags whose state is remembered. Two that share a slot only forget each other's.
const SLOTS: usize = 64;

/// Who uses a tag, and in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The vCPU, by something that no other one has.
    pub vcpu: u64,
    /// Its nested tables.
    pub root: u64,
    /// What decides on the meaning of its guest's translations: CR0, CR3, CR4, EFER and PAT.
    pub registers: [u64; 5],
}

/// What a TLB may still hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// Translations of a vCPU that had the tag before.
    OtherVcpu,
    /// Translations of nested tables that the vCPU had before.
    OtherTables,
    /// Translations that the nested tables do not have any more.
    Tables,
    /// Translations made with other values of the guest's control registers, which the VMM changed.
    Registers,
}

#[derive(Clone, Copy, Debug)]
struct Tag {
    tag: u64,
    /// Who ran with it since the last flush; nothing is cached if nobody did.
    user: Option<User>,
    /// When that was for the first time: nothing cached is older.
    since: u64,
}

/// The tags of one CPU.
#[derive(Debug)]
pub struct Tags {
    tags: [Tag; SLOTS],
}

impl Tags {
    /// Nothing is cached.
    pub const fn new() -> Self {
        Tags { tags: [Tag { tag: u64::MAX, user: None, since: 0 }; SLOTS] }
    }

    fn tag(&mut self, tag: u64) -> &mut Tag {
        // EPT pointers differ above bit 12, ASIDs and VPIDs below.
        let slot = &mut self.tags[(tag ^ tag >> 12) as usize % SLOTS];
        if slot.tag != tag {
            *slot = Tag { tag, user: None, since: 0 };
        }
        slot
    }

    /// Everything under `tag` is gone.
    pub fn flush(&mut self, tag: u64) {
        self.tag(tag).user = None;
    }

    /// Everything under any tag is gone.
    pub fn flush_all(&mut self) {
        self.tags.iter_mut().for_each(|tag| tag.user = None);
    }

    /// `user` is about to run with `tag`, at `now`; its tables last lost something at `changed`, unless that change is still going on
    /// (then 0): whoever makes it will see to it that this CPU leaves the guest.
    ///
    /// # Errors
    /// What the TLB may hold and must not.
    pub fn enter(&mut self, tag: u64, user: User, changed: u64, now: u64) -> Result<(), Stale> {
        let slot = self.tag(tag);
        if let Some(before) = slot.user {
            if before.vcpu != user.vcpu {
                return Err(Stale::OtherVcpu);
            }
            if before.root != user.root {
                return Err(Stale::OtherTables);
            }
            if before.registers != user.registers {
                return Err(Stale::Registers);
            }
            if slot.since < changed {
                return Err(Stale::Tables);
            }
        } else {
            slot.since = now;
        }
        slot.user = Some(user);
        Ok(())
    }

    /// `user` ran with `tag`, and changed its registers as it liked: what it did flushed what it had to.
    pub fn leave(&mut self, tag: u64, user: User) {
        self.tag(tag).user = Some(user);
    }
}

impl Tags {
    /// The vCPU ends: what it left under `tag`, if that is still its own, is nobody's.
    pub fn end(&mut self, tag: u64, vcpu: u64) {
        let slot = self.tag(tag);
        if slot.user.is_some_and(|user| user.vcpu == vcpu) {
            slot.user = Some(User::default());
        }
    }
}

impl Default for Tags {
    fn default() -> Self {
        Self::new()
    }
}
