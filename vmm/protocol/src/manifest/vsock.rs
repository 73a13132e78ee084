//! Sockets of VMs that need no network's addresses (AF_VSOCK).

use super::{Manifest, ManifestError, VmConfig};
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// Context ids that a VM can have: those below are the host's, and reserved; the one above stands for any.
pub const CIDS: core::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// The socket device of a VM. At context id 2 are services of the VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The VM's context id, by which the VMs on the same network know it.
    pub cid: u32,
    /// Name of the network whose VMs it reaches; not there: none. Ethernet frames do not go there.
    #[serde(default)]
    pub network: Option<String>,
}

impl VmConfig {
    fn vsock_on(&self, network: &str) -> Option<&VsockConfig> {
        self.vsock.as_ref().filter(|vsock| vsock.network.as_deref() == Some(network))
    }
}

impl Manifest {
    /// The socket devices on a network: number of the VM, context id.
    pub fn vsocks<'a>(&'a self, network: &'a str) -> impl Iterator<Item = (usize, u32)> + 'a {
        let all = self.vms.iter().enumerate();
        all.filter_map(move |(vm, config)| Some((vm, config.vsock_on(network)?.cid)))
    }

    /// Checks what the types leave open about socket devices.
    pub(super) fn check_vsocks(&self) -> Result<(), ManifestError> {
        for (index, vm) in self.vms.iter().enumerate() {
            let Some(VsockConfig { cid, network }) = &vm.vsock else { continue };
            if !CIDS.contains(cid) {
                return Err(ManifestError::Cid { vm: vm.name.clone(), cid: *cid });
            }
            let Some(network) = network else { continue };
            if !self.networks.iter().any(|other| other.name == *network) {
                return Err(ManifestError::NoNetwork { vm: vm.name.clone(), network: network.clone() });
            }
            if self.vsocks(network).any(|(other, other_cid)| other < index && other_cid == *cid) {
                return Err(ManifestError::DuplicateCid { network: network.clone(), cid: *cid });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{manifest, vm};
    use super::super::{NetworkConfig, OnCrash, Uplink};
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    fn with(name: &str, cid: u32, network: Option<&str>) -> VmConfig {
        VmConfig { vsock: Some(VsockConfig { cid, network: network.map(Into::into) }), ..vm(name) }
    }

    fn check(vms: Vec<VmConfig>) -> Result<(), ManifestError> {
        let network =
            |name: &str| NetworkConfig { name: name.into(), uplink: Uplink::None, on_crash: OnCrash::Report };
        Manifest { networks: vec![network("lan"), network("other")], ..manifest(vms) }.check()
    }

    #[test]
    fn a_context_id_is_one_vms_on_its_network() {
        let twins = |one, other| vec![with("a", 3, one), with("b", 3, other)];
        assert_eq!(check(twins(None, None)), Ok(()));
        assert_eq!(check(twins(Some("lan"), Some("other"))), Ok(()));
        let twice = Err(ManifestError::DuplicateCid { network: "lan".into(), cid: 3 });
        assert_eq!(check(twins(Some("lan"), Some("lan"))), twice);
    }

    #[test]
    fn a_context_id_that_no_vm_can_have_is_named() {
        for cid in [0, 2, u32::MAX] {
            assert_eq!(check(vec![with("a", cid, None)]), Err(ManifestError::Cid { vm: "a".into(), cid }));
        }
        let nowhere = ManifestError::NoNetwork { vm: "a".into(), network: "wan".into() };
        assert_eq!(check(vec![with("a", 3, Some("wan"))]), Err(nowhere));
    }
}
