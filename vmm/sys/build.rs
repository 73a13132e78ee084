//! Publishes the linker script of user programs to the build scripts of the packages that depend on this one
//! (`DEP_USYS_LINK_SCRIPT`).

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo names the package's folder");
    println!("cargo:link_script={folder}/link.ld");
    println!("cargo:rerun-if-changed=link.ld");
}
