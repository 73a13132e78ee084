//! Tells dependents where the linker script of a guest is.

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=guest.ld");
    println!("cargo::metadata=script={root}/guest.ld");
}
