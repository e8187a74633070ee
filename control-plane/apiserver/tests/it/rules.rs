//! Rules as a caller meets them: refusals with fields, warnings in headers, and Services that change their type in every way
//! of writing.

use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::http::Caller;
use crate::server::Server;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, kind: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": kind, "externalName": "x.example", "ports": [{"name": "a", "port": 80}]}})
}

/// The account that pods of the default namespace have.
async fn account(caller: &mut Caller) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let (code, made) = caller.json("POST", "/api/v1/namespaces/default/serviceaccounts", account).await;
    assert_eq!(code, 201, "{made}");
}

/// The fields of a refusal, each with its reason.
fn fields(status: &Value) -> Vec<String> {
    let causes = status["details"]["causes"].as_array().cloned().unwrap_or_default();
    let text = |cause: &Value, key: &str| cause[key].as_str().unwrap_or_default().to_owned();
    causes.iter().map(|cause| format!("{} {}", text(cause, "field"), text(cause, "reason"))).collect()
}

#[tokio::test]
async fn a_service_becomes_each_type_in_every_way_of_writing() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let kinds = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    let media = [
        "application/json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/json-patch+json",
        "application/apply-patch+yaml",
    ];
    let pairs = kinds.iter().flat_map(|from| kinds.iter().map(move |to| (*from, *to)));
    for (index, (from, to)) in pairs.enumerate() {
        for (way, media) in media.iter().enumerate() {
            let name = format!("s{index}-{way}");
            let (code, made) = caller.json("POST", SERVICES, service(&name, from)).await;
            assert_eq!(code, 201, "{made}");
            let uri = format!("{SERVICES}/{name}");
            let (code, changed) = match *media {
                "application/json" => {
                    let mut sent = made.clone();
                    sent["spec"]["type"] = to.into();
                    sent["spec"]["externalName"] = "x.example".into();
                    caller.json("PUT", &uri, sent).await
                }
                "application/json-patch+json" => {
                    let patch = json!([{"op": "add", "path": "/spec/type", "value": to},
                        {"op": "add", "path": "/spec/externalName", "value": "x.example"}]);
                    caller.typed("PATCH", &uri, media, patch).await
                }
                "application/apply-patch+yaml" => {
                    let uri = format!("{uri}?fieldManager=m&force=true");
                    caller.typed("PATCH", &uri, media, service(&name, to)).await
                }
                _ => {
                    let patch = json!({"spec": {"type": to, "externalName": "x.example"}});
                    caller.typed("PATCH", &uri, media, patch).await
                }
            };
            assert_eq!(code, 200, "{from} to {to} by {media}: {changed}");
            let spec = &changed["spec"];
            assert_eq!(spec["clusterIP"].is_string(), to != "ExternalName", "{from} to {to} by {media}: {spec}");
            let has_port = ["NodePort", "LoadBalancer"].contains(&to);
            assert_eq!(spec["ports"][0]["nodePort"].is_number(), has_port, "{from} to {to} by {media}: {spec}");
            assert_eq!(caller.json("DELETE", &uri, Value::Null).await.0, 200);
        }
    }
}

#[tokio::test]
async fn a_replace_from_the_file_keeps_address_and_ports() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    for kind in ["ClusterIP", "NodePort"] {
        let name = kind.to_lowercase();
        let (_, made) = caller.json("POST", SERVICES, service(&name, kind)).await;
        let (code, replaced) = caller.json("PUT", &format!("{SERVICES}/{name}"), service(&name, kind)).await;
        assert_eq!(code, 200, "{replaced}");
        assert_eq!(replaced["spec"], made["spec"]);
    }
}

#[tokio::test]
async fn what_no_cluster_can_mean_is_refused() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    account(&mut caller).await;
    let mut with_port = service("p", "ClusterIP");
    with_port["spec"]["ports"][0]["nodePort"] = 30000.into();
    let mut external = service("e", "ClusterIP");
    external["spec"]["externalIPs"] = json!(["127.0.0.1"]);
    let mut six = service("f", "ClusterIP");
    six["spec"]["ipFamilies"] = json!(["IPv6"]);
    let mut dual = service("g", "ClusterIP");
    dual["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
    let pod = |container: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}});
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "e"},
        "subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 80}]}]});
    let pods = "/api/v1/namespaces/default/pods";
    for (uri, object, expect) in [
        (SERVICES, with_port, "spec.ports[0].nodePort FieldValueForbidden"),
        (SERVICES, external, "spec.externalIPs[0] FieldValueInvalid"),
        (SERVICES, six, "spec.ipFamilies[0] FieldValueInvalid"),
        (SERVICES, dual, "spec.ipFamilyPolicy FieldValueInvalid"),
        ("/api/v1/namespaces/default/endpoints", endpoints, "subsets[0].addresses[0].ip FieldValueInvalid"),
        (
            pods,
            pod(json!({"name": "c", "image": "i", "securityContext": {"procMount": "Unmasked"}})),
            "spec.containers[0].securityContext.procMount FieldValueInvalid",
        ),
        (
            pods,
            pod(
                json!({"name": "c", "image": "i", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.foo"}}}]}),
            ),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath FieldValueInvalid",
        ),
    ] {
        let (code, status) = caller.json("POST", uri, object).await;
        assert_eq!((code, fields(&status)), (422, vec![expect.to_owned()]), "{status}");
    }
}

#[tokio::test]
async fn what_is_taken_and_helps_nobody_is_told() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    account(&mut caller).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "n", "labels": {"pod-security.kubernetes.io/audit": "restricted"}}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"memory": "100m"}}}]}});
    for (uri, object, expect) in [
        ("/api/v1/namespaces", namespace, "nothing is audited yet"),
        ("/api/v1/namespaces/default/pods", pod, "fractional byte value"),
    ] {
        let response =
            caller.send("POST", uri, &[("content-type", "application/json")], object.to_string().into_bytes()).await;
        let warnings: Vec<String> =
            response.headers().get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
        assert!(warnings.iter().any(|warning| warning.contains(expect)), "{warnings:?}");
        let _ = response.into_body().collect().await.unwrap();
    }
}

#[tokio::test]
async fn a_namespace_holds_its_pods_to_their_level() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    let named = |name: &str, mode: &str, level: &str| {
        json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {format!("pod-security.kubernetes.io/{mode}"): level}}})
    };
    let plain = json!({"containers": [{"name": "c", "image": "i"}]});
    let host = json!({"hostPID": true, "containers": [{"name": "c", "image": "i"}]});
    let kept = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": "i",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
    for (level, of_plain, of_host) in [("privileged", 201, 201), ("baseline", 201, 403), ("restricted", 403, 403)] {
        let name = format!("n-{level}");
        assert_eq!(caller.json("POST", "/api/v1/namespaces", named(&name, "enforce", level)).await.0, 201);
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        caller.json("POST", &format!("/api/v1/namespaces/{name}/serviceaccounts"), account).await;
        for (pod, spec, expect) in [("plain", &plain, of_plain), ("host", &host, of_host), ("kept", &kept, 201)] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": spec});
            let (code, answer) = caller.json("POST", &format!("/api/v1/namespaces/{name}/pods"), pod).await;
            assert_eq!(code, expect, "{level}: {answer}");
            if code == 403 {
                let message = answer["message"].as_str().unwrap();
                assert!(message.contains(&format!("violates PodSecurity \"{level}:latest\": ")), "{message}");
            }
        }
    }
    // Whoever writes a template is told in time.
    caller.json("POST", "/api/v1/namespaces", named("told", "warn", "restricted")).await;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": plain}}});
    let uri = "/apis/apps/v1/namespaces/told/deployments";
    let headers = [("content-type", "application/json")];
    let response = caller.send("POST", uri, &headers, deployment.to_string().into_bytes()).await;
    let told = response.headers().get_all("warning").iter().any(|one| one.to_str().unwrap().contains("would violate"));
    assert!(told && response.status() == 201, "{:?}", response.headers());
}
