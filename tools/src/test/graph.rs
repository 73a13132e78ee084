//! Dependencies between the workspace's packages point one way: the kernel and user space see only the ABI between them.

use super::record::Outcome;
use crate::compile;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// Which of the workspace's packages each may depend on. Development dependencies are free, as they are not shipped.
const ALLOWED: &[(&str, &[&str])] = &[
    ("hypercall-abi", &[]),
    ("kcore", &["hypercall-abi"]),
    ("khw", &["kcore", "hypercall-abi"]),
    ("kernel", &["khw", "kcore", "hypercall-abi"]),
    ("vmm-protocol", &["hypercall-abi"]),
    ("usys", &["hypercall-abi"]),
    ("vdev", &["hypercall-abi"]),
    ("vmm-core", &["vdev", "hypercall-abi", "vmm-protocol"]),
    ("block-channel", &["vdev", "usys", "vmm-protocol"]),
    ("net-channel", &["vdev", "usys", "vmm-protocol"]),
    ("switch", &["net-channel", "usys", "hypercall-abi", "vmm-protocol", "vdev"]),
    ("drv-ata", &["block-channel", "usys", "hypercall-abi", "vmm-protocol"]),
    ("virtio-driver", &["vdev", "usys", "vmm-protocol"]),
    ("drv-virtio-blk", &["virtio-driver", "block-channel", "usys", "hypercall-abi", "vmm-protocol"]),
    ("uplink", &["net-channel", "vdev", "usys", "hypercall-abi", "vmm-protocol"]),
    ("drv-ne2000", &["uplink", "vdev", "usys", "hypercall-abi", "vmm-protocol"]),
    ("drv-virtio-net", &["uplink", "virtio-driver", "vdev", "usys", "hypercall-abi", "vmm-protocol"]),
    (
        "monitor",
        &["vmm-core", "vdev", "block-channel", "net-channel", "usys", "hypercall-abi", "vmm-protocol"],
    ),
    ("console", &["usys", "hypercall-abi", "vmm-protocol"]),
    ("root-task", &["block-channel", "usys", "hypercall-abi", "vmm-protocol"]),
    ("guest-pv-driver", &["hypercall-abi"]),
    ("tproto", &[]),
    ("trt", &["tproto", "guest-pv-driver"]),
    ("guests", &["trt", "tproto", "guest-pv-driver"]),
    ("unikernel", &["trt", "guest-pv-driver"]),
    ("conformance", &["usys", "tproto", "bench-protocol", "hypercall-abi"]),
    ("test-monitor", &["monitor", "usys", "tproto", "vmm-protocol"]),
    ("test-driver", &["drv-virtio-blk", "block-channel", "usys", "tproto", "hypercall-abi", "vmm-protocol"]),
    ("test-switch", &["switch", "usys", "tproto", "vmm-protocol"]),
    ("test-power", &["drv-ata", "usys", "tproto", "hypercall-abi", "vmm-protocol"]),
    ("bench-protocol", &[]),
    ("bench-linux", &[]),
    ("test-linux", &[]),
    ("guest-vsock", &[]),
    ("bench-guest", &["bench-protocol", "trt", "guest-pv-driver"]),
    ("bench", &["bench-protocol", "root-task", "usys", "hypercall-abi", "vmm-protocol"]),
    ("nacre", &["hypercall-abi", "vmm-protocol", "tproto", "bench-protocol"]),
];

/// The check.
pub fn check() -> Result<Outcome> {
    let violations = violations(&edges(&compile::metadata()?)?);
    Ok(if violations.is_empty() { Outcome::Passed } else { Outcome::Failed(violations.join("\n")) })
}

/// The workspace's packages and which of them each depends on.
fn edges(metadata: &Value) -> Result<BTreeMap<String, Vec<String>>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let name = |value: &Value| value["name"].as_str().map(str::to_owned);
    let names: Vec<String> = packages.iter().filter_map(name).collect();
    let dependencies = |package: &Value| {
        let all = package["dependencies"].as_array().into_iter().flatten();
        all.filter(|dependency| dependency["kind"] != "dev")
            .filter_map(name)
            .filter(|name| names.contains(name))
            .collect()
    };
    Ok(packages.iter().filter_map(|package| Some((name(package)?, dependencies(package)))).collect())
}

fn violations(edges: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut violations = Vec::new();
    for (package, dependencies) in edges {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == package) else {
            violations.push(format!(
                "package {package} is not in the list of allowed dependencies (tools/src/test/graph.rs)"
            ));
            continue;
        };
        for dependency in dependencies.iter().filter(|name| !allowed.contains(&name.as_str())) {
            violations.push(format!("{package} must not depend on {dependency}"));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metadata(kernel_depends_on: &str, kind: Value) -> Value {
        json!({ "packages": [
            { "name": "kernel", "dependencies": [{ "name": kernel_depends_on, "kind": kind }, { "name": "log", "kind": null }] },
            { "name": "usys", "dependencies": [] },
            { "name": "kcore", "dependencies": [] },
        ]})
    }

    #[test]
    fn the_kernel_must_not_see_user_space() {
        let found = violations(&edges(&metadata("usys", Value::Null)).unwrap());
        assert_eq!(found, ["kernel must not depend on usys"]);
    }

    #[test]
    fn allowed_and_development_dependencies_pass() {
        assert!(violations(&edges(&metadata("kcore", Value::Null)).unwrap()).is_empty());
        assert!(violations(&edges(&metadata("usys", json!("dev"))).unwrap()).is_empty());
    }
}
