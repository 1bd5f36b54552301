//! The broker as a library.
#[cfg(not(target_os = "linux"))]
compile_error!("the Postrider broker runs on Linux only; the client crate runs anywhere");
