//! Starting a pod's shim and hearing whether it stands.
//!
//! The program forks, and its first process ends once the socket listens: status 0, or a [`Failure`] as JSON on its
//! standard output. Nothing of the caller stays behind in the shim: it has its own session, cgroup and descriptors.

use crate::client::{Client, ClientError};
use crate::protocol::Failure;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("run the shim program {}", binary.display())]
    Run { binary: PathBuf, source: io::Error },
    #[error("the shim of {} could not start", dir.display())]
    Refused { dir: PathBuf, source: Failure },
    #[error("the shim of {} ended with {status} and said: {said:?}", dir.display())]
    Died { dir: PathBuf, status: std::process::ExitStatus, said: String },
    #[error("reach the shim that has just started")]
    Connect(#[source] ClientError),
}

/// Starts `binary` for the pod at `dir`, whose `config.json` is written, and connects. If that pod's shim already runs
/// the start is refused with [`crate::FailureCode::AlreadyExists`].
pub fn spawn(binary: &Path, dir: &Path) -> Result<Client, SpawnError> {
    let output = Command::new(binary)
        .arg("--dir")
        .arg(dir)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|source| SpawnError::Run { binary: binary.to_owned(), source })?;
    if !output.status.success() {
        let dir = dir.to_owned();
        return Err(match serde_json::from_slice::<Failure>(&output.stdout) {
            Ok(source) => SpawnError::Refused { dir, source },
            Err(_) => {
                let said = [output.stdout, output.stderr].concat();
                SpawnError::Died { dir, status: output.status, said: String::from_utf8_lossy(&said).into_owned() }
            }
        });
    }
    Client::connect(dir).map_err(SpawnError::Connect)
}
