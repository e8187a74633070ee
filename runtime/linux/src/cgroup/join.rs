//! Moving processes into a cgroup, or to places below it.

use std::path::Path;

use super::hierarchy::Place;
use super::{Cgroup, Error, file};

/// A place below a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubCgroup {
    /// v1 controllers whose hierarchies are meant; none are all in which there is such a place, and the v2 tree.
    pub controllers: Vec<String>,
    /// Relative to the cgroup; `/` is the cgroup itself.
    pub path: String,
}

impl Cgroup {
    /// Moves a process, with all its threads, into the cgroup.
    pub fn add(&self, pid: i32) -> Result<(), Error> {
        self.hierarchy.places().iter().try_for_each(|place| join(&place.join(&self.path), pid))
    }

    /// Moves a process to `below` where that names a hierarchy, and into the cgroup itself elsewhere. Nothing is made.
    pub fn add_below(&self, pid: i32, below: &[SubCgroup]) -> Result<(), Error> {
        for sub in below {
            if sub.path.split('/').any(|part| part == "..") {
                return Err(Error::SubPath { path: sub.path.clone() });
            }
            for controller in &sub.controllers {
                if !self.hierarchy.places().iter().any(|place| is_meant(place, controller)) {
                    return Err(Error::UnknownController { controller: controller.clone() });
                }
            }
        }
        let place_below = |place: &Place, sub: &SubCgroup| {
            let mut directory = place.join(&self.path);
            directory.extend(sub.path.split('/').filter(|part| !part.is_empty() && *part != "."));
            directory
        };
        // On v1 a container may have made it in some hierarchies only; then those are meant. Where it is nowhere, the first says so.
        let exists = |sub: &SubCgroup| self.hierarchy.places().iter().any(|place| place_below(place, sub).is_dir());
        for place in self.hierarchy.places() {
            let named = below.iter().find(|sub| sub.controllers.iter().any(|controller| is_meant(place, controller)));
            let unnamed = below
                .iter()
                .find(|sub| sub.controllers.is_empty() && (place_below(place, sub).is_dir() || !exists(sub)));
            let directory = match named.or(unnamed) {
                Some(sub) => place_below(place, sub),
                None => place.join(&self.path),
            };
            join(&directory, pid)?;
        }
        Ok(())
    }
}

/// `systemd` stands for the hierarchy of that name.
fn is_meant(place: &Place, controller: &str) -> bool {
    place.has(controller) || place.has(&format!("name={controller}"))
}

fn join(directory: &Path, pid: i32) -> Result<(), Error> {
    match file::write(&directory.join("cgroup.procs"), &pid.to_string()) {
        Err(Error::Write { source, .. }) => Err(Error::Join { pid, path: directory.to_owned(), source }),
        other => other,
    }
}
