//! Parse, run, exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Fails only when a provider is already there, and then that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    can_sync::cli::run()
}
