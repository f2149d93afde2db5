//! Generates the wire types and the gRPC stubs of `proto/`, without protoc.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_file("cri.proto")?
        .open_file("store.proto")?;
    // The descriptors, for tests that compare them with the published API. The compiler encodes
    // them itself, since prost's types would lose the options that they do not know.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("cri.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        // prost does not know debug_redact, and a derived Debug would show passwords.
        .skip_debug(["runtime.v1.AuthConfig"])
        // Sorted, as the specs are: answers to the same question are the same bytes.
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
