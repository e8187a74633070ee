//! What a container may do: users, capabilities, seccomp, namespaces, mounts, read-only roots.

use runtime_cri_api::v1::{security_profile::ProfileType, *};

use crate::house::with_server;

fn context(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The hexadecimal sets of /proc/self/status, by name.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split(':').nth(1)).unwrap_or_default().trim().to_owned()
}

#[test]
fn users_and_capabilities() {
    with_server(|house, mut runtime| async move {
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let cat = ["cat", "/proc/1/status"];

        let plain = house.start(&mut runtime, &pod, &house.container("plain", &["sleep", "1000"])).await;
        let (_, status, _) = house.exec(&mut runtime, &plain, &cat).await;
        assert_eq!(field(&status, "CapEff"), "00000000a80425fb");
        assert_eq!(field(&status, "CapInh"), "0000000000000000");
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("0".into(), "0".into()));

        let mut config = house.container("web", &["sleep", "1000"]);
        let rights = context(&mut config);
        rights.run_as_username = "web".into();
        rights.no_new_privs = true;
        rights.supplemental_groups = vec![99];
        rights.seccomp =
            Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() });
        rights.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
        let web = house.start(&mut runtime, &pod, &config).await;
        let (_, status, _) = house.exec(&mut runtime, &web, &cat).await;
        assert_eq!(field(&status, "Uid"), "33\t33\t33\t33");
        assert_eq!(field(&status, "Groups"), "34 40 99");
        assert_eq!((field(&status, "CapBnd"), field(&status, "CapEff")), ("0".repeat(16), "0".repeat(16)));
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1".into(), "2".into()));
        let told = house.status(&mut runtime, &web).await.user.unwrap().linux.unwrap();
        assert_eq!((told.uid, told.gid, told.supplemental_groups), (33, 34, vec![34, 40, 99]));
        let (_, id, _) = house.exec(&mut runtime, &web, &["id", "-u"]).await;
        assert_eq!(id, "33\n");

        let mut config = house.container("privileged", &["sleep", "1000"]);
        context(&mut config).privileged = true;
        let privileged = house.start(&mut runtime, &pod, &config).await;
        let (_, status, _) = house.exec(&mut runtime, &privileged, &cat).await;
        assert_ne!(field(&status, "CapEff"), "00000000a80425fb");
        let (code, ..) = house.exec(&mut runtime, &privileged, &["ls", "/dev/kmsg"]).await;
        assert_eq!(code, 0);
        house.remove_pod(&mut runtime, &pod).await;
    });
}

#[test]
fn roots_and_mounts() {
    with_server(|house, mut runtime| async move {
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let mut config = house.container("c", &["sleep", "1000"]);
        context(&mut config).readonly_rootfs = true;
        context(&mut config).masked_paths = vec!["/proc/keys".into(), "/etc/group".into()];
        let mount = |name: &str, readonly| Mount {
            container_path: format!("/data/{name}"),
            host_path: house.path(name).display().to_string(),
            readonly,
            ..Default::default()
        };
        config.mounts = vec![mount("write", false), mount("read", true)];
        std::fs::create_dir(house.path("write")).unwrap();
        std::fs::create_dir(house.path("read")).unwrap();
        let id = house.start(&mut runtime, &pod, &config).await;
        let script = "touch /x; touch /data/read/x; touch /data/write/x && echo wrote; touch /dev/shm/y && echo shm; \
                      cat /etc/group; echo done";
        let (_, out, err) = house.exec(&mut runtime, &id, &["sh", "-c", script]).await;
        assert_eq!(out, "wrote\nshm\ndone\n", "{err}");
        assert_eq!(err.matches("Read-only file system").count(), 2, "{err}");
        assert!(house.path("write/x").exists());

        // /dev/shm is the pod's, the PID namespace is the container's own.
        let other = house.start(&mut runtime, &pod, &house.container("d", &["sleep", "1000"])).await;
        let (code, ..) = house.exec(&mut runtime, &other, &["ls", "/dev/shm/y"]).await;
        assert_eq!(code, 0);
        let (_, pids, _) = house.exec(&mut runtime, &other, &["sh", "-c", "cat /proc/1/cmdline"]).await;
        assert!(pids.starts_with("sleep"), "{pids}");
        house.remove_pod(&mut runtime, &pod).await;
    });
}

#[test]
fn namespaces_of_host_and_pod() {
    with_server(|house, mut runtime| async move {
        let options = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: NamespaceMode::Pod.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        };
        let mut pod_config = house.pod("host");
        pod_config.hostname = String::new();
        pod_config.linux.as_mut().unwrap().security_context =
            Some(LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() });
        let pod = house.run_pod(&mut runtime, &pod_config).await;
        assert_eq!(house.address(&mut runtime, &pod).await, "");
        let mut config = house.container("a", &["sleep", "1001"]);
        context(&mut config).namespace_options = Some(options.clone());
        let first = house.start(&mut runtime, &pod, &config).await;
        let mut config = house.container("b", &["sleep", "1002"]);
        context(&mut config).namespace_options = Some(options);
        house.start(&mut runtime, &pod, &config).await;
        let (_, out, _) = house.exec(&mut runtime, &first, &["sh", "-c", "cat /proc/[0-9]*/cmdline"]).await;
        assert!(out.contains("1001") && out.contains("1002"), "{out:?}");
        let (_, out, _) = house.exec(&mut runtime, &first, &["ip", "addr"]).await;
        assert!(!out.contains("eth0"), "{out}");
        house.remove_pod(&mut runtime, &pod).await;
    });
}

#[test]
fn sysctls_are_the_pods_and_the_hosts_stay() {
    with_server(|house, mut runtime| async move {
        let mut config = house.pod("p");
        config.linux.as_mut().unwrap().sysctls =
            [("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned())].into();
        let pod = house.run_pod(&mut runtime, &config).await;
        let id = house.start(&mut runtime, &pod, &house.container("c", &["sleep", "1000"])).await;
        let file = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        assert_eq!(house.exec(&mut runtime, &id, &["cat", file]).await.1, "77\n");
        let before = house.traces();
        let mut config = house.pod("q");
        config.linux.as_mut().unwrap().sysctls = [("vm.swappiness".to_owned(), "1".to_owned())].into();
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let refused = runtime.run_pod_sandbox(request).await.unwrap_err();
        assert!(refused.message().contains("vm.swappiness"), "{refused}");
        assert_eq!(house.traces(), before);
        house.remove_pod(&mut runtime, &pod).await;
    });
}
