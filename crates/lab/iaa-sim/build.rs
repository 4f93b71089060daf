//! Gives the shared object the name that libqpl asks for.

fn main() {
    // A loaded library is found by its soname, so libqpl's search for libaccel-config ends at this
    // one, wherever its file is.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libaccel-config.so.1");
    // libqpl closes the library at process exit, while the work queues' threads still run.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
