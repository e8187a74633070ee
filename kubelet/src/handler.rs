//! The four ways to ask a container something: run a command in it, GET a page, open a connection, ask its gRPC health. Used by
//! probes and hooks. Not the judgement of the answers over time; see probe.rs.

mod http;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cri::Runtime;

/// As much of an answer as an event shows.
const ANSWER_BYTES_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is what upstream puts behind "probe failed: ".
    #[error("{0}")]
    Failed(String),
    #[error("command '{command}' exited with {code}: {output}")]
    Exit { command: String, code: i32, output: String },
    #[error("{port:?} is no port of container {container}")]
    Port { port: String, container: String },
    #[error("command timed out: \"{command}\" timed out after {seconds}s")]
    CommandTimeout { command: String, seconds: u64 },
}

impl Error {
    /// What upstream tells of a probe: of a command its output alone.
    #[must_use]
    pub fn answer(&self) -> String {
        match self {
            Error::Exit { output, .. } => output.clone(),
            other => other.to_string(),
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    Exec(ExecAction),
    HttpGet(HTTPGetAction),
    TcpSocket(TCPSocketAction),
    Grpc(GRPCAction),
}

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Target {
    pub runtime: Runtime,
    pub container_id: String,
    pub container: Container,
    /// Address of the pod; questions that name no host go there.
    pub ip: String,
}

impl Target {
    /// # Errors
    /// Why the answer is no.
    pub async fn ask(&self, question: &Question, timeout: Duration) -> Result<(), Error> {
        match question {
            Question::Exec(exec) => self.exec(exec.command.clone().unwrap_or_default(), timeout).await,
            Question::HttpGet(get) => {
                let port = self.port(&get.port)?;
                http::get(get, get.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&self.ip), port, timeout).await
            }
            Question::TcpSocket(tcp) => {
                let port = self.port(&tcp.port)?;
                let host = tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&self.ip);
                http::connect(host, port, timeout).await.map(drop)
            }
            Question::Grpc(grpc) => {
                let port = self.port(&IntOrString::Int(grpc.port))?;
                http::grpc_health(&self.ip, port, grpc.service.as_deref().unwrap_or_default(), timeout).await
            }
        }
    }

    async fn exec(&self, command: Vec<String>, timeout: Duration) -> Result<(), Error> {
        let text = command.join(" ");
        match self.runtime.exec_sync(&self.container_id, command, timeout).await {
            Ok(answer) if answer.exit_code == 0 => Ok(()),
            Ok(answer) => {
                let mut output = answer.stdout;
                output.extend_from_slice(&answer.stderr);
                output.truncate(ANSWER_BYTES_MAX);
                let output = String::from_utf8_lossy(&output).into_owned();
                Err(Error::Exit { command: text, code: answer.exit_code, output })
            }
            Err(crate::cri::Error::Call { source, .. }) if source.code() == tonic::Code::DeadlineExceeded => {
                Err(Error::CommandTimeout { command: text, seconds: timeout.as_secs() })
            }
            Err(error) => Err(Error::Failed(error.to_string())),
        }
    }

    fn port(&self, port: &IntOrString) -> Result<u16, Error> {
        let wrong = || Error::Port { port: format!("{port:?}"), container: self.container.name.clone() };
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                let named = ports.find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port);
                named.or_else(|| name.parse().ok()).ok_or_else(wrong)?
            }
        };
        u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_told_whole_to_hooks_and_by_its_output_to_probes() {
        let error = Error::Exit { command: "test -e /x".into(), code: 1, output: String::new() };
        assert_eq!(error.to_string(), "command 'test -e /x' exited with 1: ");
        assert_eq!(error.answer(), "");
        let other = Error::Failed("dial tcp".into());
        assert_eq!(other.answer(), other.to_string());
    }
}
