//! A field that the API server's table says is acted on is named in the code of a part that acts.
//!
//! A name says little, its absence much: a part that stops reading a field, or a row that claims too much, is found.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Relative to the workspace; fields.rs beside it says what it is.
const TABLE: &str = "control-plane/apiserver/src/admission/inert/fields.txt";
/// Who acts. Schema, defaults, validation and printing know every field and act on none.
const PARTS: [&str; 9] = [
    "kubelet/src",
    "cni/services/src",
    "control-plane/scheduler/src",
    "control-plane/controllers/src",
    "control-plane/apiserver/src/admission",
    "control-plane/apiserver/src/allocate",
    "control-plane/apiserver/src/authz",
    "control-plane/apiserver/src/proxy",
    "control-plane/apiserver/src/subresource",
];
/// What the API server does with an object when it stores it: nobody else needs to read these.
const AT_STORING: [&str; 3] = ["immutable", "stringData", "description"];

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let table = fs::read_to_string(root.join(TABLE)).with_context(|| format!("read {TABLE}"))?;
    let mut words = BTreeSet::new();
    for part in PARTS {
        collect(&root.join(part), &mut words)?;
    }
    Ok(missing(&table, &words))
}

fn missing(table: &str, words: &BTreeSet<String>) -> Vec<String> {
    let rows = table.lines().filter(|line| !line.starts_with(['#', '\t'])).filter_map(|line| line.split_once(':'));
    let mut found = Vec::new();
    for (of, fields) in rows {
        for field in fields.split_whitespace().filter(|field| !AT_STORING.contains(field)) {
            let snake = snake_case(field);
            // A keyword as a name has an underscore behind it.
            if ![field, &snake, &format!("{snake}_")].iter().any(|name| words.contains(*name)) {
                found.push(format!("{TABLE}: {of}.{field} is said to be acted on, but no part names it"));
            }
        }
    }
    found
}

/// `hostIPC` -> `host_ipc`, `setHostnameAsFQDN` -> `set_hostname_as_fqdn`: as the generated types call them.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    let mut was_upper = true;
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !was_upper {
            snake.push('_');
        }
        was_upper = letter.is_ascii_uppercase();
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// Every word of every source file, the table itself aside.
fn collect(directory: &Path, words: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("inert") {
            collect(&path, words)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            words.extend(text.split(|letter| !is_part(letter)).map(str::to_owned));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expect) in
            [("hostIPC", "host_ipc"), ("setHostnameAsFQDN", "set_hostname_as_fqdn"), ("clusterIPs", "cluster_ips")]
        {
            assert_eq!(snake_case(name), expect);
        }
        let words = BTreeSet::from(["host_ipc".to_owned(), "type_".to_owned()]);
        let found = missing("# x: y\na.B: hostIPC type lost\n\tother: what\n", &words);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("a.B.lost"));
    }
}
