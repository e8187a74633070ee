//! Errors and warnings: to standard error for people, and to `--log` for machines.
//!
//! The JSON line is stable: `level`, `msg`, `time` as runc has them, and for a refused step `step` and `errno`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::Error;
use super::arguments::{Global, LogFormat};

#[derive(Debug)]
pub(crate) struct Reporter {
    log: Option<PathBuf>,
    format: LogFormat,
}

impl Reporter {
    pub(crate) fn new(global: &Global) -> Self {
        Self { log: global.log.clone(), format: global.log_format }
    }

    /// The whole chain, once.
    pub(crate) fn error(&self, error: &Error, prefix: &str) {
        let mut text = format!("{prefix}{error}");
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        let (step, errno) = match error {
            Error::Oci(error) => (error.step(), error.errno()),
            _ => (None, None),
        };
        self.say("error", &text, step, errno);
    }

    pub(crate) fn warnings(&self, warnings: &[String]) {
        for warning in warnings {
            self.say("warning", warning, None, None);
        }
    }

    fn say(&self, level: &str, text: &str, step: Option<&str>, errno: Option<i32>) {
        let mut line = match self.format {
            LogFormat::Text => format!("time=\"{}\" level={level} msg={text:?}", now()),
            LogFormat::Json => {
                let mut entry = serde_json::json!({ "level": level, "msg": text, "time": now() });
                if let Some(step) = step {
                    entry["step"] = step.into();
                }
                if let Some(errno) = errno {
                    entry["errno"] = errno.into();
                }
                entry.to_string()
            }
        };
        line.push('\n');
        if let Some(log) = &self.log {
            let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(log);
            if opened.and_then(|mut file| file.write_all(line.as_bytes())).is_ok() && level != "error" {
                return;
            }
        }
        let for_people = match self.format {
            LogFormat::Json if self.log.is_none() => line,
            _ => format!("sampan-oci: {}{text}\n", if level == "error" { "" } else { "warning: " }),
        };
        // Nobody is left to be told when standard error is closed.
        let _closed = std::io::stderr().write_all(for_people.as_bytes());
    }
}

fn now() -> String {
    runtime_oci::timestamp(std::time::SystemTime::now())
}
