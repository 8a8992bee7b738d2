//! The binary: an allocator that suits many threads, the cryptography that all TLS uses, and the command line.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Refused only where one is installed already, and nothing ran before this line.
    _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    skep::cli::main()
}
