//! Has the linker put what every command runs side by side: see layout.ld.

fn main() {
    println!("cargo::rerun-if-changed=layout.ld");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    // Only what is optimized for size has these functions as they are named there; elsewhere the order is of no use to anybody. And musl is
    // small enough to be taken whole.
    if is("CARGO_CFG_TARGET_ENV", "musl") && is("OPT_LEVEL", "s") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{directory}/layout.ld");
    }
}
