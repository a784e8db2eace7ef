//! `cargo xtask codegen`: Rust code and a descriptor set from `proto/`, without protoc.
//!
//! The output is checked in, so that building needs nothing but cargo. A test here fails when it is stale.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::metadata::root;

/// The files to compile, in `proto/`. What they import comes along.
const FILES: [&str; 8] = [
    "common/v2/common.proto",
    "errordetails/v2/errordetails.proto",
    "dfdaemon/v2/dfdaemon.proto",
    "scheduler/v2/scheduler.proto",
    "manager/v2/manager.proto",
    "damselfly/v1/types.proto",
    "damselfly/v1/cluster.proto",
    "damselfly/v1/local.proto",
];

/// Fields that carry content: `Bytes`, so that decoding shares the receive buffer instead of copying out of it.
const CONTENT: [&str; 2] = [".common.v2.Piece.content", ".dfdaemon.v2.PersistentCacheTaskChunk.content"];

/// The descriptors of every file, for gRPC reflection.
const DESCRIPTORS: &str = "descriptors.bin";

/// Why there is no generated code.
#[derive(Debug, Error)]
pub(crate) enum CodegenError {
    /// A file in `proto/` does not compile: the place and the reason.
    #[error("cannot compile proto/: {0}")]
    Proto(String),
    /// The generator failed.
    #[error("cannot generate Rust code")]
    Generate(#[source] io::Error),
    /// A file or folder cannot be read or written.
    #[error("cannot access {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CodegenError + '_ {
    move |source| CodegenError::File { path: path.to_owned(), source }
}

/// Generated files by name.
type Output = BTreeMap<String, Vec<u8>>;

/// Brings the checked-in code up to date and prints the names of the files it changed.
///
/// # Errors
/// When `proto/` does not compile or a file cannot be written.
pub(crate) fn run() -> Result<(), CodegenError> {
    let root = root();
    let folder = root.join("crates/api/src/gen");
    let output = generate(&root.join("proto"))?;
    std::fs::create_dir_all(&folder).map_err(at(&folder))?;
    for name in stale(&output, &read(&folder)?) {
        let path = folder.join(&name);
        match output.get(&name) {
            Some(content) => std::fs::write(&path, content).map_err(at(&path))?,
            None => std::fs::remove_file(&path).map_err(at(&path))?,
        }
        println!("{name}");
    }
    Ok(())
}

fn generate(protos: &Path) -> Result<Output, CodegenError> {
    // Only the debug form of protox's errors names file, line and column.
    let proto = |error: protox::Error| CodegenError::Proto(format!("{error:?}"));
    let mut compiler = protox::Compiler::new([protos]).map_err(proto)?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES).map_err(proto)?;
    let files = compiler.file_descriptor_set();
    // Comments would be most of its size, and reflection does not show them.
    let descriptors = compiler.include_source_info(false).encode_file_descriptor_set();

    let folder = tempfile::tempdir().map_err(CodegenError::Generate)?;
    let mut builder = tonic_prost_build::configure()
        .out_dir(folder.path())
        .emit_rerun_if_changed(false)
        // Header maps encode in one order only, and are the same type as in core.
        .btree_map(".")
        // A server answers UNIMPLEMENTED to what it leaves out.
        .generate_default_stubs(true);
    for field in CONTENT {
        builder = builder.bytes(field);
    }
    builder.compile_fds(files).map_err(CodegenError::Generate)?;

    let mut output = read(folder.path())?;
    output.insert(DESCRIPTORS.to_owned(), descriptors);
    Ok(output)
}

fn read(folder: &Path) -> Result<Output, CodegenError> {
    let mut files = Output::new();
    for entry in std::fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, std::fs::read(&path).map_err(at(&path))?);
    }
    Ok(files)
}

/// Names of the files that are missing, superfluous or different in `present`.
fn stale(output: &Output, present: &Output) -> BTreeSet<String> {
    let names = output.keys().chain(present.keys());
    names.filter(|name| output.get(*name) != present.get(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_code_is_fresh() {
        let output = generate(&root().join("proto")).unwrap();
        let present = read(&root().join("crates/api/src/gen")).unwrap();
        let stale = stale(&output, &present);
        assert!(stale.is_empty(), "stale: {stale:?}; run `cargo xtask codegen` and commit what it writes");
    }

    #[test]
    fn missing_superfluous_and_different_files_are_stale() {
        let files = |list: &[(&str, &str)]| -> Output {
            list.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
        };
        let output = files(&[("same", "1"), ("different", "1"), ("missing", "1")]);
        let present = files(&[("same", "1"), ("different", "2"), ("superfluous", "1")]);
        let stale: Vec<_> = stale(&output, &present).into_iter().collect();
        assert_eq!(stale, ["different", "missing", "superfluous"]);
    }

    #[test]
    fn every_proto_file_is_compiled() {
        let protos = root().join("proto");
        let mut found = BTreeSet::new();
        let mut folders = vec![protos.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.insert(path.strip_prefix(&protos).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        assert_eq!(found, FILES.iter().map(|name| (*name).to_owned()).collect());
    }

    #[test]
    fn a_proto_file_that_does_not_compile_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let common = folder.path().join("common/v2");
        std::fs::create_dir_all(&common).unwrap();
        std::fs::write(common.join("common.proto"), "syntax = \"proto3\"; message {").unwrap();
        let error = generate(folder.path()).err().unwrap().to_string();
        assert!(error.contains("common.proto:1:"), "{error}");
    }
}
