//! Writes the name into the shared library by which programs ask for it at run time.

fn main() {
    // The major version of the ABI: a program that was linked with one never meets another.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libconsort.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}
