//! kill, delete, pause and resume; the first two also for every container whose id matches a pattern.

use runtime_linux::pattern::Pattern;
use runtime_oci::{ContainerId, Deletion, StateRoot, Target};

use super::arguments::{Delete, Kill};
use super::lifecycle::parse_id;
use super::report::Reporter;
use super::{Error, signal};

pub(crate) fn kill(root: &StateRoot, kill: &Kill, reporter: &Reporter) -> Result<u8, Error> {
    let signal = signal::parse(&kill.signal)?;
    let target = if kill.all { Target::All } else { Target::Init };
    for_each(root, &kill.id, kill.regex, reporter, |id| Ok(runtime_oci::kill(root, id, signal, target)?))
}

pub(crate) fn delete(root: &StateRoot, delete: &Delete, reporter: &Reporter) -> Result<u8, Error> {
    let deletion = if delete.force { Deletion::Force } else { Deletion::Stopped };
    for_each(root, &delete.id, delete.regex, reporter, |id| {
        reporter.warnings(&runtime_oci::delete(root, id, deletion)?);
        Ok(())
    })
}

pub(crate) fn pause(root: &StateRoot, id: &str) -> Result<u8, Error> {
    runtime_oci::pause(root, &parse_id(id)?)?;
    Ok(0)
}

pub(crate) fn resume(root: &StateRoot, id: &str) -> Result<u8, Error> {
    runtime_oci::resume(root, &parse_id(id)?)?;
    Ok(0)
}

/// One container, or all that match. Of several, one that fails does not keep the others from their turn.
fn for_each(
    root: &StateRoot,
    id: &str,
    is_pattern: bool,
    reporter: &Reporter,
    mut act: impl FnMut(&ContainerId) -> Result<(), Error>,
) -> Result<u8, Error> {
    if !is_pattern {
        act(&parse_id(id)?)?;
        return Ok(0);
    }
    let pattern = Pattern::new(id).ok_or_else(|| {
        Error::Usage(format!("--regex: \"{id}\" is not an extended regular expression; see regex(7)"))
    })?;
    let (mut all, mut failed) = (0, 0);
    for (id, _) in runtime_oci::list(root)?.iter().filter(|(id, _)| pattern.matches(id.as_str())) {
        all += 1;
        if let Err(error) = act(id) {
            reporter.error(&error, "");
            failed += 1;
        }
    }
    if failed == 0 { Ok(0) } else { Err(Error::Several { failed, all }) }
}
