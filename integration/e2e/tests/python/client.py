"""The Python client through one pod's life: create, watch, list, patch, exec, logs, scale, conflicts, delete."""

import sys

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

config.load_kube_config(sys.argv[1])
core, apps = client.CoreV1Api(), client.AppsV1Api()
image = sys.argv[2]

container = client.V1Container(name="c", image=image, command=["sh", "-c", "echo started; exec sleep 100000"])
spec = client.V1PodSpec(containers=[container], termination_grace_period_seconds=1)
metadata = client.V1ObjectMeta(name="py", labels={"app": "py"})
core.create_namespaced_pod("default", client.V1Pod(metadata=metadata, spec=spec))
phases = []
watching = watch.Watch()
for event in watching.stream(core.list_namespaced_pod, "default", label_selector="app=py", timeout_seconds=60):
    phases.append((event["type"], event["object"].status.phase))
    if event["object"].status.phase == "Running":
        watching.stop()
assert phases[0] == ("ADDED", "Pending") or phases[0][1] == "Running", phases
assert [one.metadata.name for one in core.list_namespaced_pod("default", label_selector="app=py").items] == ["py"]
assert core.list_pod_for_all_namespaces(field_selector="metadata.name=py").items[0].spec.node_name == "node-1"

patched = core.patch_namespaced_pod("py", "default", {"metadata": {"labels": {"x": "y"}}})
assert patched.metadata.labels == {"app": "py", "x": "y"}, patched.metadata.labels
said = stream(core.connect_get_namespaced_pod_exec, "py", "default", command=["sh", "-c", "echo out; echo err >&2"],
              stdout=True, stderr=True, stdin=False, tty=False, _preload_content=False)
said.run_forever(timeout=30)
assert (said.read_stdout(), said.read_stderr(), said.returncode) == ("out\n", "err\n", 0)
assert core.read_namespaced_pod_log("py", "default") == "started\n"

template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels={"app": "d"}), spec=spec)
selector = client.V1LabelSelector(match_labels={"app": "d"})
deployment = client.V1Deployment(metadata=client.V1ObjectMeta(name="d"),
                                 spec=client.V1DeploymentSpec(replicas=1, selector=selector, template=template))
made = apps.create_namespaced_deployment("default", deployment)
assert apps.read_namespaced_deployment_scale("d", "default").spec.replicas == 1
# Zero is left out of a Scale, and so read as nothing.
assert not apps.patch_namespaced_deployment_scale("d", "default", {"spec": {"replicas": 0}}).spec.replicas
assert apps.read_namespaced_deployment("d", "default").spec.replicas == 0
made.spec.replicas = 5
for call, code, reason in [
    (lambda: apps.replace_namespaced_deployment("d", "default", made), 409, "Conflict"),
    (lambda: core.read_namespaced_pod("nope", "default"), 404, "NotFound"),
    (lambda: core.create_namespaced_config_map("default", {"metadata": {"name": "Bad_Name"}}), 422, "Invalid"),
]:
    try:
        call()
        raise SystemExit(f"no error where {code} {reason} should be")
    except ApiException as error:
        assert error.status == code and reason in error.body, error
assert client.VersionApi().get_code().minor == "36"
assert "apps" in [group.name for group in client.ApisApi().get_api_versions().groups]

apps.delete_namespaced_deployment("d", "default", propagation_policy="Foreground")
core.delete_namespaced_pod("py", "default")
for event in watch.Watch().stream(core.list_namespaced_pod, "default", label_selector="app=py", timeout_seconds=60):
    if event["type"] == "DELETED":
        break
else:
    raise SystemExit("the pod did not go")
print("all is well")
