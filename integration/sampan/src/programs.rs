//! Where the tiny static programs lie: beside this one.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("find this program's own file")]
    OwnPath { source: io::Error },
    #[error(
        "{program} is not in {directory}, beside this program; `cargo xtask dist` puts all of them into one directory"
    )]
    Missing { program: &'static str, directory: PathBuf },
    #[error("link {link}")]
    Link { link: PathBuf, source: io::Error },
}

/// Full paths of `sampan-shim` and `sampan-cni`.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub shim: PathBuf,
    pub cni: PathBuf,
}

impl Programs {
    pub(crate) fn find() -> Result<Self, ProgramError> {
        let own = std::env::current_exe().map_err(|source| ProgramError::OwnPath { source })?;
        let directory = own.parent().unwrap_or(Path::new("/")).to_owned();
        let find = |program: &'static str| {
            let path = directory.join(program);
            if path.is_file() { Ok(path) } else { Err(ProgramError::Missing { program, directory: directory.clone() }) }
        };
        Ok(Self { shim: find("sampan-shim")?, cni: find("sampan-cni")? })
    }

    /// Makes a directory in which the CNI plugin is found by the names that a network configuration uses.
    pub(crate) fn link_plugins(&self, directory: &Path) -> Result<(), ProgramError> {
        let failed = |link: &Path| {
            let link = link.to_owned();
            move |source| ProgramError::Link { link, source }
        };
        std::fs::create_dir_all(directory).map_err(failed(directory))?;
        for name in ["bridge", "host-local", "loopback", "portmap"] {
            let link = directory.join(name);
            if std::fs::read_link(&link).is_ok_and(|target| target == self.cni) {
                continue;
            }
            match std::fs::remove_file(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&link)(error)),
                _ => std::os::unix::fs::symlink(&self.cni, &link).map_err(failed(&link))?,
            }
        }
        Ok(())
    }
}
