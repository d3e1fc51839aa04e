//! Compiles `proto/` to Rust with protox, so that no `protoc` needs to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        ["store.proto", "peer.proto", "journal.proto", "folders.proto"],
        ["proto"],
    )?;
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}
