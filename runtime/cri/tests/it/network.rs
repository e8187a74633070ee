//! The pod network: addresses given and given back, whatever a plugin does.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use runtime_cri_api::v1::*;
use serde_json::json;

use crate::server::{Server, command, eventually, security};

/// A pod with a network namespace of its own.
fn networked(server: &Server, name: &str) -> PodSandboxConfig {
    let mut config = server.pod(name);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().network = NamespaceMode::Pod.into();
    config
}

fn bridge(server: &Server, chained: &[serde_json::Value]) {
    let bridge = json!({
        "type": "bridge", "bridge": "test0", "isGateway": true,
        "ipam": {
            "type": "host-local", "ranges": [[{ "subnet": "10.99.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
            "dataDir": server.path("leases"),
        },
    });
    let plugins: Vec<_> = std::iter::once(bridge).chain(chained.iter().cloned()).collect();
    let list = json!({ "cniVersion": "1.0.0", "name": "test", "plugins": plugins });
    fs::write(server.path("cni/10-test.conflist"), list.to_string()).unwrap();
}

/// A plugin that does what a file says, and writes down how it was called.
fn script(server: &Server) {
    let control = server.path("control");
    fs::create_dir_all(&control).unwrap();
    let text = format!(
        "#!/bin/sh\ncat > /dev/null\ncd {}\nns=none; [ -n \"$CNI_NETNS\" ] && ns=gone && [ -e \"$CNI_NETNS\" ] && ns=there\n\
         echo \"$CNI_COMMAND $ns\" >> calls\nif [ -e \"fail-$CNI_COMMAND\" ]; then\n\
         echo '{{\"cniVersion\":\"1.0.0\",\"code\":100,\"msg\":\"on purpose\"}}'; exit 1; fi\n\
         [ \"$CNI_COMMAND\" = ADD ] && echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.99.0.9/24\"}}]}}'\n\
         [ \"$CNI_COMMAND\" = VERSION ] && echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}}'\nexit 0\n",
        control.display()
    );
    fs::write(server.path("bin/script"), text).unwrap();
    fs::set_permissions(server.path("bin/script"), fs::Permissions::from_mode(0o755)).unwrap();
    let list = json!({ "cniVersion": "1.0.0", "name": "test", "plugins": [{ "type": "script" }] });
    fs::write(server.path("cni/10-test.conflist"), list.to_string()).unwrap();
}

#[tokio::test]
async fn pods_have_addresses_and_give_them_back() {
    let mut server = Server::start().await;
    bridge(&server, &[]);
    let status = server.runtime.status(StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    assert!(status.conditions.iter().all(|condition| condition.status), "{status:?}");
    let pod = server.run_pod(networked(&server, "web")).await;
    let address = server.pod_status(&pod).await.network.unwrap().ip;
    assert!(address.starts_with("10.99.0."), "{address}");
    let mut config = command("main", &["sleep", "1000"]);
    security(&mut config).namespace_options.as_mut().unwrap().network = NamespaceMode::Pod.into();
    let id = server.run(&pod, config).await;
    assert!(server.said(&id, &["cat", "/etc/hosts"]).await.contains(&address));
    let stats = server.runtime.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: pod.clone() }).await.unwrap();
    let linux = stats.into_inner().stats.unwrap().linux.unwrap();
    assert_eq!(linux.network.unwrap().default_interface.unwrap().name, "eth0");
    server.restart().await;
    assert_eq!(server.pod_status(&pod).await.network.unwrap().ip, address);
    server.stop_pod(&pod).await.unwrap();
    assert_eq!(server.pod_status(&pod).await.network.unwrap().ip, "");
    server.remove_pod(&pod).await.unwrap();
    let mut leases = Vec::new();
    for entry in fs::read_dir(server.path("leases/test")).into_iter().flatten().flatten() {
        leases.push(entry.file_name());
    }
    assert!(!leases.iter().any(|name| name.to_string_lossy().starts_with("10.99.")), "{leases:?}");
}

#[tokio::test]
async fn a_pod_that_could_neither_be_attached_nor_detached_is_listed_and_can_be_removed() {
    let mut server = Server::start().await;
    script(&server);
    for verb in ["ADD", "DEL"] {
        fs::write(server.path(&format!("control/fail-{verb}")), "").unwrap();
    }
    let failed = server.try_run_pod(networked(&server, "web")).await.unwrap_err();
    assert!(failed.message().contains("on purpose"), "{failed}");
    let pods = server.pods().await;
    assert_eq!((pods.len(), pods[0].1), (1, PodSandboxState::SandboxNotready));
    let pod = pods[0].0.clone();
    // Its stop fails as long as the plugin does, and may be repeated; a restart changes nothing of that.
    for restart in [false, true] {
        if restart {
            server.restart().await;
        }
        let error = server.stop_pod(&pod).await.unwrap_err();
        assert!(error.message().contains("on purpose"), "{error}");
        assert_eq!(server.pods().await, [(pod.clone(), PodSandboxState::SandboxNotready)]);
    }
    // The kubelet's next attempt has another name, and is not in its way.
    let mut next = networked(&server, "web");
    next.metadata.as_mut().unwrap().attempt = 1;
    fs::remove_file(server.path("control/fail-ADD")).unwrap();
    let second = server.run_pod(next).await;
    assert_eq!(server.pods().await.len(), 2);
    fs::remove_file(server.path("control/fail-DEL")).unwrap();
    for _ in 0..2 {
        server.stop_pod(&pod).await.unwrap();
    }
    server.remove_pod(&pod).await.unwrap();
    server.remove_pod(&second).await.unwrap();
    let calls = fs::read_to_string(server.path("control/calls")).unwrap();
    let dels: Vec<_> = calls.lines().filter(|line| line.starts_with("DEL")).collect();
    // Each of them with the namespace still there, the repeated ones too.
    assert!(dels.iter().all(|line| *line == "DEL there"), "{calls}");
    assert!(server.cgroup("").pids_recursive().unwrap().is_empty());
}

#[tokio::test]
async fn the_address_goes_back_before_the_namespace_ends_also_when_the_shim_is_dead() {
    let mut server = Server::start().await;
    script(&server);
    let pod = server.run_pod(networked(&server, "web")).await;
    nix::sys::signal::kill(server.shim_pid(&pod), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is not ready", async || server.pods().await[0].1 == PodSandboxState::SandboxNotready).await;
    server.stop_pod(&pod).await.unwrap();
    server.remove_pod(&pod).await.unwrap();
    assert_eq!(fs::read_to_string(server.path("control/calls")).unwrap(), "ADD there\nDEL there\n");
}

#[tokio::test]
async fn no_pod_can_map_the_port_that_streams_are_served_on() {
    let mut server = Server::on_loopback().await;
    script(&server);
    let pod = server.run_pod(networked(&server, "web")).await;
    let request = PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![80] };
    let url = server.runtime.port_forward(request).await.unwrap().into_inner().url;
    let authority = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let port: i32 = authority.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
    let mapped = |name: &str, host_port: i32| {
        let mut config = networked(&server, name);
        config.port_mappings = vec![PortMapping { host_port, container_port: 80, ..PortMapping::default() }];
        config
    };
    let (thief, neighbour) = (mapped("thief", port), mapped("neighbour", port + 1));
    let refused = server.try_run_pod(thief).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    server.run_pod(neighbour).await;
}
