//! One parsed request: environment, configuration object, version, previous result.
//!
//! What every plugin needs and nothing of what only one needs.

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
    /// The configuration as read.
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
        let config: Map<String, Value> = serde_json::from_slice(input)
            .map_err(|error| failed(Code::Decoding, "read the network configuration", &error))?;
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
        Ok(Self { environment, config, version, name, previous })
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
