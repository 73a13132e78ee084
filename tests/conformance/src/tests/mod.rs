//! The tests, by subject.

pub mod bind;
pub mod bounded;
pub mod capabilities;
pub mod create;
pub mod dirty;
pub mod dma;
pub mod doorbells;
pub mod entry;
pub mod eoi_word;
pub mod faults;
pub mod fuzz;
pub mod info;
pub mod memory;
mod messages;
pub mod pools;
pub mod portals;
pub mod ports;
pub mod restart;
pub mod revoke;
pub mod scheduling;
pub mod signals;
pub mod smp;
pub mod trace;
pub mod vcpu;
pub mod vcpu_fpu;
pub mod vcpu_fuzz;
pub mod vcpu_rules;
pub mod vcpu_smp;
pub mod vcpu_state;
pub mod virtual_apic;

use crate::check::Check;
use crate::world::World;
use alloc::string::String;

/// What a machine must have for a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// This many CPUs.
    Cpus(u16),
    /// Virtualization.
    Guests,
    /// Virtualization and two CPUs.
    GuestsOnTwoCpus,
    /// An IOMMU.
    DmaSpaces,
    /// That it has no IOMMU.
    NoDmaSpaces,
}

/// A test.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Its function's name: a sentence.
    pub name: &'static str,
    /// What the machine must have.
    pub needs: Needs,
    /// Runs it.
    pub run: fn(&mut World) -> Check,
}

impl Test {
    /// What it shows.
    pub fn sentence(&self) -> String {
        self.name.replace('_', " ")
    }
}

/// Tests of one subject.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The subject.
    pub name: &'static str,
    /// The tests.
    pub tests: &'static [Test],
}

/// A [`Group`]: its subject, then lists of functions by what they need.
macro_rules! group {
    ($name:literal $(, $needs:expr => [$($test:ident),* $(,)?])* $(,)?) => {
        $crate::tests::Group {
            name: $name,
            tests: &[$($($crate::tests::Test { name: stringify!($test), needs: $needs, run: $test },)*)*],
        }
    };
}
pub(crate) use group;

/// Every test.
pub const ALL: &[Group] = &[
    info::GROUP,
    create::GROUP,
    capabilities::GROUP,
    revoke::GROUP,
    pools::GROUP,
    bounded::GROUP,
    restart::GROUP,
    memory::GROUP,
    ports::GROUP,
    dma::GROUP,
    bind::GROUP,
    signals::GROUP,
    portals::GROUP,
    messages::GROUP,
    scheduling::GROUP,
    smp::GROUP,
    faults::GROUP,
    trace::GROUP,
    entry::GROUP,
    vcpu::GROUP,
    vcpu_state::GROUP,
    vcpu_fpu::GROUP,
    dirty::GROUP,
    doorbells::GROUP,
    virtual_apic::GROUP,
    eoi_word::GROUP,
    vcpu_rules::GROUP,
    vcpu_smp::GROUP,
    vcpu_fuzz::GROUP,
    fuzz::GROUP,
];
