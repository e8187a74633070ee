//! state and list.

use std::os::unix::fs::MetadataExt;

use runtime_oci::{State, StateRoot};

use super::arguments::{Format, List};
use super::lifecycle::parse_id;
use super::report::Reporter;
use super::{Error, print, print_json};

pub(crate) fn state(root: &StateRoot, id: &str) -> Result<u8, Error> {
    print_json(&runtime_oci::state(root, &parse_id(id)?)?)?;
    Ok(0)
}

/// A directory that the caller named is expected to be there; the default one is made with the first container.
pub(crate) fn list(root: &StateRoot, list: &List, is_named: bool, reporter: &Reporter) -> Result<u8, Error> {
    if is_named {
        std::fs::metadata(root.dir())
            .map_err(Error::io(format!("read the state directory {}", root.dir().display())))?;
    }
    let mut states: Vec<State> = Vec::new();
    for (id, state) in runtime_oci::list(root)? {
        match state {
            Ok(mut state) => {
                state.owner = owner(root, id.as_str());
                states.push(state);
            }
            // One that cannot be read does not hide the others.
            Err(error) => reporter.warnings(&[format!("{id}: {error}")]),
        }
    }
    if list.quiet {
        let ids: String = states.iter().map(|state| format!("{}\n", state.id)).collect();
        print(&ids)?;
    } else if list.format == Format::Json {
        let what = || "encode the list".to_owned();
        let text = serde_json::to_string(&states).map_err(|source| Error::Json { what: what(), source })?;
        print(&format!("{text}\n"))?;
    } else {
        print(&table(&states))?;
    }
    Ok(0)
}

/// Who made it: the name where /etc/passwd has one.
fn owner(root: &StateRoot, id: &str) -> String {
    let Ok(metadata) = std::fs::metadata(root.dir().join(id)) else { return String::new() };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = metadata.uid().to_string();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("#{uid}"))
}

fn table(states: &[State]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    for state in states {
        rows.push([
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_string(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]);
    }
    aligned(&rows)
}

/// Columns as wide as their widest cell and at least runc's 12.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [9; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
