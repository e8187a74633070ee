//! ImageFsInfo: what images and containers take of their file system, which is one.

use runtime_cri_api::v1::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};

use crate::node::{Node, now_ns};
use crate::status::Error;

pub(crate) fn run(node: &Node) -> Result<ImageFsInfoResponse, Error> {
    let found = node.images.fs_usage()?;
    let usage = FilesystemUsage {
        timestamp: now_ns(),
        fs_id: Some(FilesystemIdentifier { mountpoint: found.dir.display().to_string() }),
        used_bytes: Some(UInt64Value { value: found.used.bytes }),
        inodes_used: Some(UInt64Value { value: found.used.inodes }),
    };
    Ok(ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
}
