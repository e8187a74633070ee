//! One parsed request: environment, configuration object, version, previous result.
//!
//! What every plugin needs and nothing of what only one needs. Keys are read as Go's decoder reads them, since every runtime
//! is written in it: in any case, and `null` is the same as not there.

use cni_netlink::Namespace;
use cni_spec::{AddResult, Attachment, Code, Environment, PluginError, SpecVersion};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::failed;

/// What a runtime asked for.
#[derive(Debug)]
pub struct Request {
    /// The `CNI_*` variables.
    pub environment: Environment,
    /// The configuration as it came, for a delegate.
    pub original: Map<String, Value>,
    /// The configuration with our own spelling of the keys that we know, and without nulls.
    pub config: Map<String, Value>,
    /// The version to answer in.
    pub version: SpecVersion,
    /// The network's name.
    pub name: String,
    /// The result so far.
    pub previous: Option<AddResult>,
}

impl Request {
    /// Reads the configuration and what every plugin needs from it.
    ///
    /// # Errors
    /// Codes 1, 6 and 7.
    pub fn parse(environment: Environment, input: &[u8]) -> Result<Self, PluginError> {
        let original: Map<String, Value> = serde_json::from_slice(input)
            .map_err(|error| failed(Code::Decoding, "read the network configuration", &error))?;
        let config = canonical_object(&original);
        let version = match config.get("cniVersion") {
            None => SpecVersion::V0_1_0,
            Some(Value::String(text)) => text.parse().map_err(|error| failed(Code::IncompatibleVersion, "", &error))?,
            Some(_) => return Err(PluginError::new(Code::Decoding, "`cniVersion` is not a text")),
        };
        let name = config.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        // The name becomes a directory.
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(PluginError::new(Code::InvalidConfig, format!("`name` is `{name}`, not a network name")));
        }
        let previous = match config.get("prevResult") {
            None | Some(Value::Null) => None,
            Some(value) => Some(
                AddResult::parse(value, version).map_err(|error| failed(Code::Decoding, "read prevResult", &error))?,
            ),
        };
        Ok(Self { environment, original, config, version, name, previous })
    }

    /// A top-level text of the configuration.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key).and_then(Value::as_str)
    }

    /// The configuration in a plugin's own shape.
    ///
    /// # Errors
    /// Code 7 names the key.
    pub fn config_as<T: DeserializeOwned>(&self) -> Result<T, PluginError> {
        T::deserialize(Value::Object(self.config.clone()))
            .map_err(|error| failed(Code::InvalidConfig, "network configuration", &error))
    }

    /// `CNI_ARGS` must be readable where a plugin reads them; the reference's `loopback` and `portmap` do not.
    ///
    /// # Errors
    /// Code 4.
    pub fn check_args(&self) -> Result<(), PluginError> {
        match &self.environment.bad_args {
            None => Ok(()),
            Some(message) => Err(PluginError::new(Code::InvalidEnvironment, message.clone())),
        }
    }

    /// Opens the container's namespace; it must exist and must not be the host's own.
    ///
    /// # Errors
    /// Code 3 when it does not exist, 4 when it is none.
    pub fn namespace(&self) -> Result<Namespace, PluginError> {
        let path = self.environment.netns.as_deref().unwrap_or("".as_ref());
        let code = if path.exists() { Code::InvalidEnvironment } else { Code::UnknownContainer };
        let namespace = Namespace::open(path).map_err(|error| failed(code, "CNI_NETNS", &error))?;
        let own = Namespace::current().map_err(|error| failed(Code::Internal, "", &error))?;
        if own.is_same(&namespace) {
            let message = format!("CNI_NETNS {} is the host's own network namespace", path.display());
            return Err(PluginError::new(Code::InvalidEnvironment, message));
        }
        Ok(namespace)
    }

    /// Path of the namespace as results name it.
    #[must_use]
    pub fn sandbox(&self) -> String {
        self.environment.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// The attachments that are to survive a GC.
    ///
    /// # Errors
    /// Code 7.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, PluginError> {
        match self.config.get("cni.dev/valid-attachments").or_else(|| self.config.get("cni.dev/attachments")) {
            None | Some(Value::Null) => Err(PluginError::new(
                Code::InvalidConfig,
                "GC without `cni.dev/valid-attachments` would free everything",
            )),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|error| failed(Code::InvalidConfig, "cni.dev/valid-attachments", &error)),
        }
    }

    /// A result in the version that was asked for.
    ///
    /// # Errors
    /// The version cannot say it.
    pub fn respond(&self, result: &AddResult) -> Result<Value, PluginError> {
        result.to_json(self.version).map_err(|error| failed(Code::Internal, "write the result", &error))
    }
}

/// Keys of configurations and results in their own spelling.
const KEYS: [&str; 62] = [
    "address",
    "advmss",
    "args",
    "bridge",
    "capabilities",
    "clusterCIDR",
    "cni",
    "cniVersion",
    "containerID",
    "containerPort",
    "dataDir",
    "disableContainerInterface",
    "dns",
    "domain",
    "dst",
    "forceAddress",
    "gateway",
    "gw",
    "hairpinMode",
    "hostIP",
    "hostPort",
    "ifname",
    "interface",
    "interfaces",
    "ip",
    "ip4",
    "ip6",
    "ipMasq",
    "ipRanges",
    "ipam",
    "ips",
    "isDefaultGateway",
    "isGateway",
    "mac",
    "macspoofchk",
    "mtu",
    "name",
    "nameservers",
    "options",
    "pciID",
    "plugin",
    "portIsolation",
    "portMappings",
    "prevResult",
    "priority",
    "promiscMode",
    "protocol",
    "rangeEnd",
    "rangeStart",
    "ranges",
    "reserved",
    "resolvConf",
    "routes",
    "runtimeConfig",
    "sandbox",
    "scope",
    "search",
    "socketPath",
    "subnet",
    "table",
    "type",
    "version",
];

fn canonical_object(object: &Map<String, Value>) -> Map<String, Value> {
    let mut kept = Map::new();
    for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        let known = KEYS.iter().find(|known| known.eq_ignore_ascii_case(key));
        let name = known.map_or(key.as_str(), |known| known);
        // The right spelling wins over any other.
        if name == key || !object.contains_key(name) {
            kept.insert(name.to_owned(), canonical(value));
        }
    }
    kept
}

/// The decoder of JSON bounds the depth.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(canonical_object(object)),
        Value::Array(list) => Value::Array(list.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_read_in_any_case_and_nulls_are_absent() {
        let check = |input: Value, expect: Value| {
            assert_eq!(canonical(&input), expect, "{input}");
        };
        check(
            json!({"RuntimeConfig": {"portMappings": [{"HostPort": 1, "ContainerPort": 2, "Protocol": "tcp", "HostIP": ""}]}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 2, "protocol": "tcp", "hostIP": ""}]}}),
        );
        check(json!({"routes": null, "ipam": {"ROUTES": null, "Type": "x"}}), json!({"ipam": {"type": "x"}}));
        check(json!({"mtu": 1, "MTU": 2}), json!({"mtu": 1}));
        check(json!({"Unknown": {"Key": 1}}), json!({"Unknown": {"Key": 1}}));
        let mut sorted = KEYS;
        sorted.sort_unstable_by_key(|key| key.to_ascii_lowercase());
        assert!(sorted.windows(2).all(|pair| !pair[0].eq_ignore_ascii_case(pair[1])), "each key once");
    }
}
