//! The hypervisor's CPUID leaves (Linux, Documentation/virt/kvm/x86/cpuid.rst).

/// EAX, EBX, ECX and EDX of a CPUID leaf.
pub type Leaf = [u32; 4];

/// The signature of KVM's interface, which Nacre implements.
pub const KVM_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";

/// First leaf that a hypervisor may use; its interfaces begin at multiples of [`STRIDE`] from there.
const FIRST: u32 = 0x4000_0000;
const END: u32 = 0x4001_0000;
const STRIDE: u32 = 0x100;

/// Where a hypervisor's interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The leaf with the signature.
    pub base: u32,
    /// The last leaf of the interface.
    pub last: u32,
}

/// Looks for an interface by its signature; `cpuid` is the instruction, with subleaf 0.
pub fn find(signature: [u8; 12], cpuid: impl Fn(u32) -> Leaf) -> Option<Interface> {
    let under_hypervisor = cpuid(1)[2] >> 31 != 0;
    if !under_hypervisor {
        return None;
    }
    (FIRST..END).step_by(STRIDE as usize).find_map(|base| {
        let [last, words @ ..] = cpuid(base);
        let mut found = [0; 12];
        for (bytes, word) in found.chunks_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        // Early KVM reported a last leaf of 0 and meant the one behind the signature.
        (found == signature).then(|| Interface { base, last: last.max(base + 1) })
    })
}

#[cfg(test)]
mod tests {
    use super::{Interface, KVM_SIGNATURE, Leaf, find};

    fn kvm_at(base: u32, last: u32) -> impl Fn(u32) -> Leaf {
        move |leaf| match leaf {
            1 => [0, 0, 1 << 31, 0],
            leaf if leaf == base => [last, 0x4b4d_564b, 0x564b_4d56, 0x4d],
            _ => [0; 4],
        }
    }

    #[test]
    fn an_interface_is_found_at_any_of_its_places() {
        for base in [0x4000_0000, 0x4000_0100, 0x4000_ff00] {
            let found = find(KVM_SIGNATURE, kvm_at(base, base + 0x10));
            assert_eq!(found, Some(Interface { base, last: base + 0x10 }));
        }
    }

    #[test]
    fn a_last_leaf_of_zero_means_the_one_behind_the_signature() {
        let found = find(KVM_SIGNATURE, kvm_at(0x4000_0000, 0));
        assert_eq!(found.map(|interface| interface.last), Some(0x4000_0001));
    }

    #[test]
    fn bare_hardware_and_other_hypervisors_have_no_such_interface() {
        assert_eq!(find(KVM_SIGNATURE, |_| [0; 4]), None);
        assert_eq!(find(*b"Microsoft Hv", kvm_at(0x4000_0000, 0)), None);
        // Without the hypervisor bit these leaves mean nothing, whatever they hold.
        let without_bit = |leaf| {
            if leaf == 1 { [0; 4] } else { kvm_at(0x4000_0000, 0)(leaf) }
        };
        assert_eq!(find(KVM_SIGNATURE, without_bit), None);
    }
}
