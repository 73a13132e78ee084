//! Links the kernel with the runtime's linker script.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none")
        && let Ok(script) = std::env::var("DEP_TRT_SCRIPT")
    {
        println!("cargo::rustc-link-arg-bins=-T{script}");
        println!("cargo::rerun-if-changed={script}");
    }
}
