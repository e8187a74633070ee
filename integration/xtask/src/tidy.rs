//! The house rules: what ARCHITECTURE.md promises, checked from `cargo metadata` and the source text.
//!
//! Every rule collects its violations, so that one run shows them all. Generated files say so in their first line
//! (`@generated`) and are only held to the arrows.

mod arrows;
mod fields;
mod select;
mod source;

use std::path::Path;

use anyhow::{Result, bail};

/// Everything that may stand at the root of the repository, beside dot files.
const ROOT_ENTRIES: [&str; 12] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "cni",
    "control-plane",
    "integration",
    "kubelet",
    "runtime",
    "target",
];

pub(crate) fn run(root: &Path) -> Result<()> {
    let violations = check(root)?;
    if violations.is_empty() {
        return Ok(());
    }
    bail!("the house is untidy:\n  {}", violations.join("\n  "))
}

pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !ROOT_ENTRIES.contains(&name.as_str()) {
            violations.push(format!("{name}: nothing but the five folders and the known files stands at the root"));
        }
    }
    violations.extend(arrows::check(root)?);
    violations.extend(source::check(root)?);
    violations.extend(fields::check(root)?);
    Ok(violations)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_house_is_tidy() {
        let violations = super::check(&crate::workspace_root()).unwrap();
        assert!(violations.is_empty(), "\n  {}", violations.join("\n  "));
    }
}
