//! state and list.

use std::os::unix::fs::MetadataExt;

use runtime_oci::{State, StateRoot};

use super::arguments::{Format, List};
use super::lifecycle::parse_id;
use super::{Error, print, print_json};

pub(crate) fn state(root: &StateRoot, id: &str) -> Result<u8, Error> {
    print_json(&runtime_oci::state(root, &parse_id(id)?)?)?;
    Ok(0)
}

pub(crate) fn list(root: &StateRoot, list: &List) -> Result<u8, Error> {
    let mut states: Vec<State> = Vec::new();
    for (id, state) in runtime_oci::list(root)? {
        match state {
            Ok(mut state) => {
                state.owner = owner(root, id.as_str());
                states.push(state);
            }
            // One that cannot be read does not hide the others.
            Err(error) => eprintln_line(&format!("sampan-oci: warning: {id}: {error}")),
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

fn eprintln_line(text: &str) {
    // Nobody is left to be told when standard error is closed.
    let _closed = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
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
