//! Links the program by the one linker script of user programs.

fn main() {
    // `usys` publishes its path (`links = "usys"`).
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let script = std::env::var("DEP_USYS_LINK_SCRIPT").expect("usys publishes its linker script");
        println!("cargo:rustc-link-arg-bins=-T{script}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
