//! Numbered errors, the one place where CNI codes are assigned (CNI 1.1, section 5, "Error").
//!
//! A plugin prints a [`PluginError`] on standard output and exits with 1. Codes below 100 belong to the specification.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The reserved codes, and room for a plugin's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum Code {
    /// 1: the plugin does not speak the configuration's version.
    IncompatibleVersion,
    /// 2: a field the plugin cannot honour; the message names key and value.
    UnsupportedField,
    /// 3: the container does not exist; the runtime need not clean up.
    UnknownContainer,
    /// 4: a `CNI_*` variable is missing or wrong.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: standard input is not the expected JSON.
    Decoding,
    /// 7: the configuration is valid JSON but not a valid network.
    InvalidConfig,
    /// 11: a passing condition; the runtime should try again.
    TryAgainLater,
    /// 50: STATUS: the plugin cannot serve ADD.
    NotAvailable,
    /// 51: STATUS: not available, and existing containers may have limited connectivity.
    LimitedConnectivity,
    /// 999: anything inside the plugin that has no better code.
    Internal,
    /// A plugin's own code (100 and above), or one this crate does not know.
    Other(u32),
}

impl From<u32> for Code {
    fn from(code: u32) -> Self {
        match code {
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decoding,
            7 => Self::InvalidConfig,
            11 => Self::TryAgainLater,
            50 => Self::NotAvailable,
            51 => Self::LimitedConnectivity,
            999 => Self::Internal,
            other => Self::Other(other),
        }
    }
}

impl From<Code> for u32 {
    fn from(code: Code) -> Self {
        match code {
            Code::IncompatibleVersion => 1,
            Code::UnsupportedField => 2,
            Code::UnknownContainer => 3,
            Code::InvalidEnvironment => 4,
            Code::Io => 5,
            Code::Decoding => 6,
            Code::InvalidConfig => 7,
            Code::TryAgainLater => 11,
            Code::NotAvailable => 50,
            Code::LimitedConnectivity => 51,
            Code::Internal => 999,
            Code::Other(other) => other,
        }
    }
}

/// The error object of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginError {
    /// The version of this object; empty when a plugin left it out.
    #[serde(rename = "cniVersion", default)]
    pub cni_version: String,
    /// The number.
    pub code: Code,
    /// A short sentence.
    #[serde(default)]
    pub msg: String,
    /// More, when there is more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl PluginError {
    /// An error in the newest version, without details.
    #[must_use]
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { cni_version: crate::SpecVersion::NEWEST.to_string(), code, msg: msg.into(), details: String::new() }
    }
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (CNI code {})", self.msg, u32::from(self.code))?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for PluginError {}
