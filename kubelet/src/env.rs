//! The environment of a container, from literals, fields, ConfigMaps, Secrets and Services. Pure: objects are fetched before.
//! Invariant: a reference that is not optional and cannot be resolved is an error with upstream's text, never an empty variable.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, ResourceFieldSelector, Secret, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::LocalPod;
use crate::resources;

/// Bytes of all variables that a pod gives, or of what its command is expanded to: as much as the kernel hands to a program (execve(2), a
/// quarter of the usual stack). Each expansion may name earlier ones, so that without a bound thirty lines are gigabytes.
const BYTES_MAX: usize = 2 << 20;

/// What is left of [`BYTES_MAX`].
#[derive(Debug)]
pub struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(BYTES_MAX)
    }
}

impl Room {
    fn take(&mut self, bytes: usize) -> Result<(), Error> {
        self.0 = self.0.checked_sub(bytes).ok_or(Error::TooLarge)?;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("configmap \"{name}\" not found")]
    NoConfigMap { name: String },
    #[error("secret \"{name}\" not found")]
    NoSecret { name: String },
    #[error("couldn't find key {key} in ConfigMap {namespace}/{name}")]
    NoConfigMapKey { key: String, namespace: String, name: String },
    #[error("couldn't find key {key} in Secret {namespace}/{name}")]
    NoSecretKey { key: String, namespace: String, name: String },
    #[error("unsupported fieldPath: {path}")]
    Field { path: String },
    #[error("unsupported container resource: {resource}")]
    Resource { resource: String },
    #[error("container {name} not found")]
    Container { name: String },
    #[error("the environment and command take more than {BYTES_MAX} bytes, which no program could be started with")]
    TooLarge,
    #[error("environment variable {name}: fileKeyRef is not supported by this node")]
    FileKey { name: String },
}

/// All that a reference can lead to. A map holds `None` for an object that does not exist.
#[derive(Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
    pub services: Vec<Arc<Service>>,
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    pub node_name: String,
    /// What a limit counts as when the container has none.
    pub allocatable_cpu_millis: u64,
    pub allocatable_memory_bytes: u64,
}

/// Names of the ConfigMaps and Secrets that a container's environment needs.
#[must_use]
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(from.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

/// The variables in the order in which the process gets them.
///
/// # Errors
/// See [`Error`]; the text goes into `CreateContainerConfigError`.
pub fn build(pod: &LocalPod, container: &Container, sources: &Sources) -> Result<Vec<(String, String)>, Error> {
    let services = service_variables(pod, &sources.services);
    let mut own = Ordered::default();
    let mut room = Room::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(map) = find_map(sources, &reference.name, optional)? {
                for (key, value) in map.data.iter().flatten() {
                    room.take(prefix.len().saturating_add(key.len()).saturating_add(value.len()))?;
                    own.set(format!("{prefix}{key}"), value.clone());
                }
            }
        }
        if let Some(reference) = &from.secret_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(secret) = find_secret(sources, &reference.name, optional)? {
                for (key, value) in secret.data.iter().flatten() {
                    room.take(prefix.len().saturating_add(key.len()).saturating_add(value.0.len()))?;
                    own.set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                }
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(from) => match value_from(pod, container, from, sources, &variable.name)? {
                Some(value) => {
                    room.take(value.len())?;
                    value
                }
                None => continue,
            },
            None => expand(variable.value.as_deref().unwrap_or_default(), &mut room, |name| {
                own.get(name).or_else(|| services.get(name).map(String::as_str))
            })?,
        };
        own.set(variable.name.clone(), value);
    }
    for (name, value) in services {
        if own.get(&name).is_none() {
            own.set(name, value);
        }
    }
    Ok(own.list)
}

/// A list that keeps the order of first mention and the value of the last; a namespace's Services alone can be tens of thousands.
#[derive(Default)]
struct Ordered {
    list: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Ordered {
    fn get(&self, name: &str) -> Option<&str> {
        self.list.get(*self.places.get(name)?).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        match self.places.get(&name).and_then(|place| self.list.get_mut(*place)) {
            Some(entry) => entry.1 = value,
            None => {
                self.places.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
}

fn find_map<'a>(sources: &'a Sources, name: &str, optional: bool) -> Result<Option<&'a ConfigMap>, Error> {
    match sources.config_maps.get(name).and_then(Option::as_deref) {
        None if !optional => Err(Error::NoConfigMap { name: name.into() }),
        found => Ok(found),
    }
}

fn find_secret<'a>(sources: &'a Sources, name: &str, optional: bool) -> Result<Option<&'a Secret>, Error> {
    match sources.secrets.get(name).and_then(Option::as_deref) {
        None if !optional => Err(Error::NoSecret { name: name.into() }),
        found => Ok(found),
    }
}

/// `None` if what is referred to is optional and absent.
fn value_from(
    pod: &LocalPod,
    container: &Container,
    from: &EnvVarSource,
    sources: &Sources,
    variable: &str,
) -> Result<Option<String>, Error> {
    if let Some(field) = &from.field_ref {
        return field_value(pod, &field.field_path, sources).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return resource_value(pod, Some(container), resource, sources).map(Some);
    }
    if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let Some(map) = find_map(sources, &reference.name, optional)? else { return Ok(None) };
        return match map.data.as_ref().and_then(|d| d.get(&reference.key)) {
            None if !optional => Err(Error::NoConfigMapKey {
                key: reference.key.clone(),
                namespace: pod.key.namespace.clone(),
                name: reference.name.clone(),
            }),
            value => Ok(value.cloned()),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let Some(secret) = find_secret(sources, &reference.name, optional)? else { return Ok(None) };
        return match secret.data.as_ref().and_then(|d| d.get(&reference.key)) {
            None if !optional => Err(Error::NoSecretKey {
                key: reference.key.clone(),
                namespace: pod.key.namespace.clone(),
                name: reference.name.clone(),
            }),
            value => Ok(value.map(|v| String::from_utf8_lossy(&v.0).into_owned())),
        };
    }
    if from.file_key_ref.is_some() {
        return Err(Error::FileKey { name: variable.into() });
    }
    Ok(Some(String::new()))
}

/// The value of a field of the pod, as the downward API gives it.
///
/// # Errors
/// If the downward API has no such field.
pub fn field_value(pod: &LocalPod, path: &str, sources: &Sources) -> Result<String, Error> {
    let meta = pod.meta();
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels['") {
        return Ok(meta.labels.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations['") {
        return Ok(meta.annotations.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.key.name.clone(),
        "metadata.namespace" => pod.key.namespace.clone(),
        "metadata.uid" => pod.uid.clone(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => sources.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => sources.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => sources.host_ips.join(","),
        "status.podIP" => sources.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => sources.pod_ips.join(","),
        _ => return Err(Error::Field { path: path.into() }),
    })
}

/// `key="value"` per line, sorted, values quoted as Go does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(k, v): (&String, &String)| format!("{k}={}", quote(v));
    map.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A request or limit divided by the divisor, rounded up.
///
/// # Errors
/// If there is no such container or resource.
pub fn resource_value(
    pod: &LocalPod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    sources: &Sources,
) -> Result<String, Error> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let container = match named {
        Some(name) => pod.member(name).map(|m| &m.container).ok_or_else(|| Error::Container { name: name.into() })?,
        None => own.ok_or_else(|| Error::Container { name: String::new() })?,
    };
    let needs = container.resources.as_ref();
    let unknown = || Error::Resource { resource: selector.resource.clone() };
    let (of, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let fallback = || match name {
        "cpu" => i128::from(sources.allocatable_cpu_millis),
        "memory" => i128::from(sources.allocatable_memory_bytes) * 1000,
        _ => 0,
    };
    if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
        return Err(unknown());
    }
    let value = match of {
        "limits" => resources::limit(needs, name).filter(|v| *v > 0).unwrap_or_else(fallback),
        "requests" => resources::request(needs, name).unwrap_or(0),
        _ => return Err(unknown()),
    };
    let divisor = selector.divisor.as_ref().filter(|q: &&Quantity| !q.0.is_empty() && q.0 != "0");
    let divisor = divisor.and_then(resources::millis).filter(|d| *d > 0).unwrap_or(1000);
    Ok(((value + divisor - 1) / divisor).to_string())
}

/// Replaces `$(NAME)` by what `lookup` knows; `$$` is a plain `$`, an unknown name stays as it was written.
///
/// # Errors
/// If the result is more than there is room for.
pub fn expand<'a>(text: &str, room: &mut Room, lookup: impl Fn(&str) -> Option<&'a str>) -> Result<String, Error> {
    room.take(text.len())?;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match lookup(name) {
                Some(value) => {
                    room.take(value.len())?;
                    out.push_str(value);
                }
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The Docker-link style variables of every Service that the pod may be told of.
fn service_variables(pod: &LocalPod, services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let links = pod.spec.enable_service_links.unwrap_or(true);
    let mut out = BTreeMap::new();
    for service in services {
        let (namespace, name) =
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref().unwrap_or_default());
        let master = namespace == Some("default") && name == "kubernetes";
        let linked = links && namespace == Some(pod.key.namespace.as_str());
        let Some(spec) = service.spec.as_ref().filter(|_| master || linked) else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let upper = |text: &str| text.to_uppercase().replace('-', "_");
        let prefix = upper(name);
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            let number = port.port;
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{number}", protocol.to_lowercase());
            if index == 0 {
                out.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
                out.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
                out.insert(format!("{prefix}_PORT"), url.clone());
            }
            if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                out.insert(format!("{prefix}_SERVICE_PORT_{}", upper(name)), number.to_string());
            }
            let stem = format!("{prefix}_PORT_{number}_{protocol}");
            out.insert(format!("{stem}_PROTO"), protocol.to_lowercase());
            out.insert(format!("{stem}_PORT"), number.to_string());
            out.insert(format!("{stem}_ADDR"), ip.to_owned());
            out.insert(stem, url);
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json! at the call reads better")]
mod tests {
    use super::*;
    use crate::pod::Source;
    use serde_json::json;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then_some("1");
        for (text, expect) in
            [("$(A)b", "1b"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A $", "$A $"), ("$(A", "$(A"), ("a$$$(A)", "a$1")]
        {
            assert_eq!(expand(text, &mut Room::default(), lookup).as_deref(), Ok(expect), "{text}");
        }
    }

    #[test]
    fn variables_that_double_each_other_end_at_what_a_program_can_have() {
        let mut room = Room::default();
        let mut value = "x".repeat(16);
        let mut steps = 0;
        let ended = loop {
            match expand("$(A)$(A)", &mut room, |_| Some(value.as_str())) {
                Ok(next) => value = next,
                Err(error) => break error,
            }
            steps += 1;
        };
        assert_eq!(ended, Error::TooLarge);
        assert!(steps < 20 && value.len() <= BYTES_MAX, "{steps} steps, {} bytes", value.len());
    }

    fn check(container: serde_json::Value, expect: Result<&[(&str, &str)], &str>) {
        let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {"x": "a\"b", "w": "1"}},
            "spec": {"serviceAccountName": "sa", "enableServiceLinks": false, "containers": [container]}});
        let pod = LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap();
        let map: ConfigMap = serde_json::from_value(json!({"data": {"k": "v", "l": "w"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"s": "c2VjcmV0"}})).unwrap();
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.43.0.1", "ports": [{"port": 443, "name": "https"}]}}))
            .unwrap();
        let sources = Sources {
            config_maps: [("m".to_owned(), Some(Arc::new(map))), ("none".to_owned(), None)].into(),
            secrets: [("s".to_owned(), Some(Arc::new(secret)))].into(),
            services: vec![Arc::new(service)],
            pod_ips: vec!["10.0.0.2".into()],
            allocatable_memory_bytes: 4096,
            ..Sources::default()
        };
        let got = build(&pod, &pod.spec.containers[0], &sources).map_err(|e| e.to_string());
        let got = got.map(|list| list.into_iter().filter(|(n, _)| !n.starts_with("KUBERNETES_")).collect::<Vec<_>>());
        let expect =
            expect.map(|list| list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>());
        assert_eq!(got, expect.map_err(str::to_owned));
    }

    #[test]
    fn sources_in_order() {
        check(
            json!({"name": "c", "resources": {"requests": {"cpu": "250m", "memory": "1Ki"}}, "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
              "env": [{"name": "A", "value": "$(P_k)-$(KUBERNETES_SERVICE_HOST)"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "s"}}},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['w']"}}},
                {"name": "D", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
                {"name": "E", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
                {"name": "F", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Ki"}}},
                {"name": "G", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k", "optional": true}}},
                {"name": "H", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}, {"name": "P_k", "value": "over"}]}),
            Ok(&[
                ("P_k", "over"),
                ("P_l", "w"),
                ("A", "v-10.43.0.1"),
                ("B", "secret"),
                ("C", "1"),
                ("D", "1"),
                ("E", "250"),
                ("F", "4"),
                ("H", "10.0.0.2"),
            ]),
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let key = |from: serde_json::Value| json!({"name": "c", "env": [{"name": "A", "valueFrom": from}]});
        check(key(json!({"configMapKeyRef": {"name": "none", "key": "k"}})), Err("configmap \"none\" not found"));
        check(key(json!({"configMapKeyRef": {"name": "m", "key": "z"}})), Err("couldn't find key z in ConfigMap d/m"));
        check(key(json!({"secretKeyRef": {"name": "t", "key": "z"}})), Err("secret \"t\" not found"));
        check(key(json!({"fieldRef": {"fieldPath": "spec.x"}})), Err("unsupported fieldPath: spec.x"));
        check(json!({"name": "c", "envFrom": [{"secretRef": {"name": "t"}}]}), Err("secret \"t\" not found"));
    }

    #[test]
    fn labels_as_lines() {
        let map: BTreeMap<String, String> = [("b".into(), "x\"y".into()), ("a".into(), "1\n".into())].into();
        assert_eq!(lines(Some(&map)), "a=\"1\\n\"\nb=\"x\\\"y\"");
    }
}
