//! What is measured, and what the peers need for the same.
//!
//! The figures are instructions on the same two emulators, measured with the peers' own kernels: NOVA (udo 2024-01), NOVA in
//! Genode r10, Hedron 2023-08, seL4 16.0.0-dev, Xen 4.17, Linux KVM 6.1 without mitigations.

use crate::run::machine::Machine;

/// Where a figure was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Bochs.
    Vtx,
    /// QEMU.
    Svm,
    /// Both, with the same result; or not on a machine at all.
    Both,
}

impl On {
    /// Whether it was this machine.
    pub fn is(self, machine: Machine) -> bool {
        match self {
            On::Vtx => machine == Machine::Vtx,
            On::Svm => machine == Machine::Svm,
            On::Both => true,
        }
    }
}

/// A peer's figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The peer.
    pub name: &'static str,
    /// Its figure, in the operation's unit.
    pub value: u64,
    /// Where.
    pub on: On,
}

/// Peers that have a column, in order.
pub const COLUMNS: [&str; 6] = ["NOVA", "Genode NOVA", "Hedron", "seL4", "Xen", "KVM"];

/// What an operation is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Instructions.
    Instructions,
    /// Bytes.
    Bytes,
    /// Lines.
    Lines,
}

/// An operation.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// Its name.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// The most that is acceptable, if there is a limit.
    pub must: Option<u64>,
    /// What is aimed at.
    pub goal: Option<u64>,
    /// Figures of peers, the best first.
    pub peers: &'static [Peer],
}

impl Op {
    /// The best peer's figure.
    pub fn best_peer(&self) -> Option<&'static Peer> {
        self.peers.first()
    }

    /// A peer's figure, that of this machine if there are several.
    pub fn peer(&self, name: &str, machine: Machine) -> Option<&'static Peer> {
        let of_peer = || self.peers.iter().filter(|peer| peer.name == name);
        of_peer().find(|peer| peer.on.is(machine)).or_else(|| of_peer().next())
    }
}

const fn peer(name: &'static str, value: u64, on: On) -> Peer {
    Peer { name, value, on }
}

macro_rules! operations {
    ($($name:literal, $unit:ident, $must:expr, $goal:expr, [$($peer:literal $value:literal $on:ident),*];)*) => {
        /// Every operation, in the order of the table.
        pub const OPERATIONS: &[Op] = &[$(Op {
            name: $name,
            unit: Unit::$unit,
            must: $must,
            goal: $goal,
            peers: &[$(peer($peer, $value, On::$on)),*],
        }),*];
    };
}

operations! {
    "hypercall.null", Instructions, Some(85), Some(50),
        ["NOVA" 85 Both, "Genode NOVA" 100 Svm, "Hedron" 127 Vtx, "seL4" 292 Vtx, "Xen" 815 Vtx];
    "hypercall.bad_number", Instructions, None, None, ["NOVA" 60 Both];
    "ipc.call_same", Instructions, Some(260), Some(150),
        ["NOVA" 260 Both, "Genode NOVA" 532 Svm, "Hedron" 509 Vtx, "seL4" 469 Vtx];
    "ipc.call_same_8w", Instructions, None, None,
        ["NOVA" 330 Both, "Genode NOVA" 628 Svm, "Hedron" 590 Vtx, "seL4" 1700 Vtx];
    "ipc.call_cross", Instructions, Some(280), Some(160),
        ["NOVA" 280 Both, "Genode NOVA" 578 Svm, "Hedron" 579 Vtx, "seL4" 475 Vtx];
    "ipc.call_cross_8w", Instructions, Some(350), Some(200),
        ["NOVA" 350 Both, "Genode NOVA" 674 Svm, "Hedron" 660 Vtx, "seL4" 1706 Vtx];
    "sm.signal", Instructions, Some(142), Some(80),
        ["NOVA" 142 Both, "Genode NOVA" 157 Svm, "Hedron" 174 Vtx, "seL4" 372 Vtx];
    "sm.wait", Instructions, None, None, ["NOVA" 146 Both, "Genode NOVA" 148 Svm, "Hedron" 164 Vtx];
    "sm.create", Instructions, Some(259), Some(200),
        ["NOVA" 259 Both, "Genode NOVA" 709 Svm, "Hedron" 728 Vtx, "seL4" 916 Vtx];
    "map.4k", Instructions, Some(800), Some(400),
        ["seL4" 800 Vtx, "NOVA" 957 Both, "Genode NOVA" 1486 Svm, "Hedron" 1008 Vtx];
    "unmap.4k", Instructions, Some(653), Some(350), ["seL4" 653 Vtx, "NOVA" 905 Both];
    "revoke.1", Instructions, None, None, [];
    "revoke.4", Instructions, None, None, [];
    "revoke.16", Instructions, None, None, [];
    "revoke.64", Instructions, None, None, [];
    "revoke.256", Instructions, None, None, [];
    "exit.cpuid_real", Instructions, Some(420), Some(260),
        ["NOVA" 549 Vtx, "Genode NOVA" 900 Vtx, "Genode NOVA" 814 Svm, "Hedron" 962 Vtx, "seL4" 1171 Vtx, "Xen" 818 Vtx];
    "exit.cpuid", Instructions, Some(480), Some(300), ["KVM" 2709 Svm];
    "exit.hypercall", Instructions, None, None, ["Xen" 815 Vtx, "KVM" 2945 Svm];
    "exit.pio_out", Instructions, Some(550), Some(330), ["KVM" 3022 Svm, "Xen" 39835 Svm, "Xen" 40366 Vtx];
    "exit.cpuid_vmm", Instructions, None, None, ["KVM" 2709 Svm];
    "exit.pio_out_vmm", Instructions, None, None, ["KVM" 3022 Svm, "Xen" 39835 Svm, "Xen" 40366 Vtx];
    "exit.pio_in", Instructions, None, None, ["KVM" 3054 Svm, "Xen" 39882 Svm, "Xen" 40413 Vtx];
    "exit.mmio_write", Instructions, Some(1200), Some(700), ["KVM" 5090 Svm, "Xen" 19414 Svm];
    "exit.mmio_read", Instructions, Some(1200), Some(700), ["KVM" 5454 Svm, "Xen" 15841 Svm];
    "exit.mmio_write_warm", Instructions, Some(600), Some(450), ["KVM" 5090 Svm];
    "exit.mmio_read_warm", Instructions, Some(600), Some(450), ["KVM" 5454 Svm];
    "doorbell.vmcall", Instructions, Some(200), Some(100), ["KVM" 1402 Svm];
    "doorbell.pio", Instructions, Some(350), Some(150), ["KVM" 1402 Svm];
    "doorbell.mmio", Instructions, Some(1000), Some(500), ["KVM" 3706 Svm];
    "doorbell.roundtrip", Instructions, Some(2500), Some(1500), ["KVM" 18069 Svm];
    "ipi.self", Instructions, Some(1800), Some(900), ["KVM" 7489 Svm];
    "ipi.self_noapicv", Instructions, Some(1800), Some(900), ["KVM" 7489 Svm];
    "ipi.self_vapic", Instructions, Some(1800), Some(900), ["KVM" 7489 Svm];
    "pv.block_4k_read", Instructions, Some(4000), Some(2000), ["KVM" 40300 Svm];
    "pv.block_4k_read_qd32", Instructions, Some(400), Some(190), ["KVM" 7800 Svm];
    "pv.net_ping64", Instructions, Some(8000), Some(4000), ["KVM" 180_500 Svm];
    "pv.net_stream1500", Instructions, Some(1200), Some(500), ["KVM" 69_000 Svm];
    "irq.to_thread", Instructions, Some(1500), Some(600), [];
    "timer.preempt", Instructions, Some(1500), Some(600), [];
    "signal.cross_cpu", Instructions, Some(2500), Some(1200), [];
    "fault.guest_4k", Instructions, Some(1600), Some(900), ["KVM" 3280 Svm];
    "boot.kernel_to_user", Instructions, Some(3_000_000), Some(1_000_000),
        ["NOVA" 3_000_000 Vtx, "Hedron" 9_160_000 Vtx, "Genode NOVA" 28_100_000 Vtx, "seL4" 19_100_000 Vtx];
    "vm.create_to_first_insn", Instructions, Some(5_000_000), Some(2_000_000), ["Xen" 45_000_000 Svm];
    "vm.create_zeroed", Bytes, None, None, [];
    "linux.outside_guest", Instructions, Some(80_000_000), Some(25_000_000), [];
    "boot.to_shell", Instructions, None, None, [];
    "virtio.block_4k_read", Instructions, Some(5000), Some(2500), ["KVM" 40_300 Svm];
    "virtio.block_4k_read_qd32", Instructions, Some(900), Some(400), ["KVM" 7800 Svm];
    "virtio.net_ping64", Instructions, Some(60_000), Some(40_000), ["KVM" 180_500 Svm];
    "virtio.net_stream1500", Instructions, Some(20_000), Some(15_000), ["KVM" 69_000 Svm];
    "sm.signal.64vms", Instructions, Some(142), Some(80), ["NOVA" 142 Both];
    "ipc.call_cross.64vms", Instructions, Some(280), Some(160), ["NOVA" 280 Both];
    "exit.cpuid.64vms", Instructions, Some(480), Some(300), ["KVM" 2709 Svm];
    "mem.kernel_bytes", Bytes, Some(8 << 20), Some(4 << 20), ["Xen" 24_117_248 Svm];
    "mem.per_vm_bytes", Bytes, Some(1 << 20), Some(256 << 10), [];
    "size.kernel_lines", Lines, Some(12_000), Some(10_000),
        ["Hedron" 11_171 Both, "NOVA" 13_957 Both, "Genode NOVA" 15_029 Both, "Xen" 254_171 Both, "KVM" 65_504 Both];
    "size.text_rodata", Bytes, Some(110_000), Some(84_000),
        ["NOVA" 84_000 Both, "seL4" 82_900 Both, "Hedron" 90_000 Both, "Genode NOVA" 167_000 Both];
    "irqoff.max", Instructions, Some(50_000), Some(10_000), [];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_a_column_and_every_operation_one_row() {
        for (index, op) in OPERATIONS.iter().enumerate() {
            assert!(op.peers.iter().all(|peer| COLUMNS.contains(&peer.name)), "{}", op.name);
            assert!(OPERATIONS[..index].iter().all(|earlier| earlier.name != op.name));
        }
    }

    #[test]
    fn a_peer_measured_on_both_machines_has_a_figure_for_each() {
        let op = OPERATIONS.iter().find(|op| op.name == "exit.cpuid_real").unwrap();
        let figure = |machine| op.peer("Genode NOVA", machine).map(|peer| peer.value);
        assert_eq!(figure(Machine::Vtx), Some(900));
        assert_eq!(figure(Machine::Svm), Some(814));
    }
}
