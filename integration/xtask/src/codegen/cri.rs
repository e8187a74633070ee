//! `runtime/cri-api/proto` -> `runtime/cri-api/src/generated`, without protoc.
//!
//! Messages that the server keeps on disk (everything below a sandbox's or a container's configuration) also get serde's
//! derives; `AuthConfig` gets no `Debug`, because the package prints it by hand without its secrets.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use anyhow::Context;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// Roots of what is kept on disk.
const KEPT: [&str; 4] = ["PodSandboxConfig", "ContainerConfig", "ContainerUser", "PodSandboxNetworkStatus"];

pub(super) fn generate(root: &Path) -> anyhow::Result<()> {
    let package = root.join("runtime/cri-api");
    let proto = package.join("proto");
    let files = protox::compile(["runtime/v1/api.proto"], [&proto]).context("compile runtime/v1/api.proto")?;

    let mut builder = tonic_prost_build::configure()
        .out_dir(package.join("src/generated"))
        .build_transport(true)
        .skip_debug([".runtime.v1.AuthConfig"]);
    for name in kept(&files) {
        builder = builder.message_attribute(
            format!(".runtime.v1.{name}"),
            "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]",
        );
    }
    builder.compile_fds(files).context("write the generated code")
}

/// Every message reachable from [`KEPT`], by its name. Enumerations are plain numbers in a message and need no derive.
fn kept(files: &FileDescriptorSet) -> BTreeSet<String> {
    let messages: HashMap<&str, &DescriptorProto> =
        files.file.iter().flat_map(|file| &file.message_type).map(|message| (message.name(), message)).collect();
    let mut found = BTreeSet::new();
    let mut open: Vec<String> = KEPT.map(String::from).to_vec();
    while let Some(name) = open.pop() {
        let Some(message) = messages.get(name.as_str()) else { continue };
        if found.insert(name) {
            let fields = message.field.iter().chain(message.nested_type.iter().flat_map(|nested| &nested.field));
            open.extend(fields.map(|field| field.type_name().trim_start_matches(".runtime.v1.").to_string()));
        }
    }
    found
}
