//! What lies on the host: nobody else can look into it, and no content, however strange, hinders its removal.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use runtime_cri_api::v1::*;

use crate::server::{Server, shell};

/// Everything below a directory that another user could reach: through directories that others may enter.
fn reachable(path: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let metadata = fs::symlink_metadata(entry.path()).unwrap();
        let others = metadata.mode() & 0o7;
        if metadata.is_dir() {
            if others & 0o5 != 0 {
                found.push(format!("{} {:o}", entry.path().display(), metadata.mode()));
            }
            if others & 0o1 != 0 {
                reachable(&entry.path(), found);
            }
        } else if !metadata.file_type().is_symlink() && others != 0 {
            found.push(format!("{} {:o}", entry.path().display(), metadata.mode()));
        }
    }
}

#[tokio::test]
async fn another_user_of_the_host_reaches_nothing() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let mut config = shell("main", "exec sleep 1000");
    config.envs = vec![KeyValue { key: "SECRET".into(), value: b"hidden".to_vec() }];
    let id = server.run(&pod, config).await;
    let request = ExecRequest { container_id: id, cmd: vec!["true".into()], stdout: true, ..ExecRequest::default() };
    let url = server.runtime.exec(request).await.unwrap().into_inner().url;
    assert!(url.starts_with("unix:///"), "{url}");
    let mut found = Vec::new();
    for below in ["data/cri", "run"] {
        // Its root itself counts, not the temporary directory that holds this test.
        let mode = fs::metadata(server.path(below)).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o700, "{below}");
        reachable(&server.path(below), &mut found);
    }
    // Behind 0700 of the roots; the files themselves are as tight as their readers allow.
    let record = fs::read_dir(server.path("data/cri/containers")).unwrap().next().unwrap().unwrap();
    assert_eq!(record.metadata().unwrap().mode() & 0o777, 0o600);
    let bundle = fs::read_dir(server.pod_dir(&pod).join("bundles")).unwrap().next().unwrap().unwrap();
    assert_eq!(fs::metadata(bundle.path().join("config.json")).unwrap().mode() & 0o777, 0o600);
    for socket in ["run/cri.sock", "run/streams.sock"] {
        let metadata = fs::metadata(server.path(socket)).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o777, 0o600, "{socket}");
    }
    let secret = |path: &String| path.contains("config.json") || path.contains(".sock") || path.contains("containers/");
    assert!(!found.iter().any(secret), "{found:?}");
}

/// Four thousand nested directories, which a recursive removal pays with its stack and a descriptor each.
#[tokio::test]
async fn a_deep_tree_in_a_volume_is_removed_with_its_container() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let thousand = vec!["d"; 1000].join("/");
    let script = format!("cd /fresh; for i in $(seq 4); do mkdir -p {thousand} && cd -P {thousand} || exit 1; done");
    let id = server.run(&pod, shell("main", &script)).await;
    assert_eq!(server.until_exited(&id).await.exit_code, 0);
    server.remove_container(&id).await.unwrap();
    assert_eq!(fs::read_dir(server.path("data/cri/volumes")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_source_that_is_missing_is_made_for_others_to_enter() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let host = server.path("made/deep");
    let mounts =
        vec![Mount { container_path: "/q/../z".into(), host_path: host.display().to_string(), ..Mount::default() }];
    let id = server.run(&pod, ContainerConfig { mounts, ..shell("main", "exec sleep 1000") }).await;
    assert_eq!(fs::metadata(&host).unwrap().mode() & 0o777, 0o755);
    server.said(&id, &["touch", "/z/here"]).await;
    assert!(host.join("here").exists());
}
