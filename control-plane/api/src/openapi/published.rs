//! The published descriptions, collected when this package was built.

use std::collections::HashMap;

use super::Descriptions;

const TEXTS: &str = include_str!(concat!(env!("OUT_DIR"), "/descriptions.tsv"));

/// Upstream's descriptions by type and field. Made for one document and dropped with it: they are large.
#[derive(Debug)]
pub struct Published(HashMap<&'static str, HashMap<&'static str, String>>);

impl Published {
    pub fn load() -> Self {
        let mut types: HashMap<&str, HashMap<&str, String>> = HashMap::new();
        let mut current = "";
        for (name, text) in TEXTS.lines().filter_map(|line| line.split_once('\t')) {
            let field = match name.strip_prefix('=') {
                Some(type_name) => {
                    current = type_name;
                    ""
                }
                None => name,
            };
            types.entry(current).or_default().insert(field, unescape(text));
        }
        Self(types)
    }
}

impl Descriptions for Published {
    fn describe(&self, type_name: &str, field: &str) -> Option<&str> {
        Some(self.0.get(type_name)?.get(field)?.as_str())
    }
}

/// The escapes of a Rust string literal that occur in descriptions.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_fields_are_described() {
        let texts = Published::load();
        let port = "io.k8s.api.core.v1.ContainerPort";
        assert!(texts.describe(port, "").unwrap().contains("network port"));
        assert!(texts.describe(port, "protocol").unwrap().ends_with("\"TCP\"."));
        assert!(texts.describe("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "name").is_some());
        // A field that is another type has a text of its own.
        assert!(texts.describe("io.k8s.api.core.v1.Pod", "spec").unwrap().contains("desired behavior"));
        assert_eq!(texts.describe(port, "none"), None);
    }
}
