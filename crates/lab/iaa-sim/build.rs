//! Names the shared object as libqpl asks for it.

fn main() {
    // A library that is already loaded answers to its soname, so libqpl's search for
    // libaccel-config ends at this one wherever its file lies.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libaccel-config.so.1");
    // libqpl closes the library when the process ends, while the work queues' threads still run.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
