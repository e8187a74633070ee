//! The syntax of names: DNS-1123 labels and subdomains, DNS-1035 labels, qualified names, label values.
//!
//! Each check returns what is wrong in upstream's words; nothing when the text is fine.

const LABEL_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_1123: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const PORT_NAME_LETTER: &str = "must contain at least one letter (a-z)";

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_name_part(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn at_most(text: &str, max: usize, wrong: &mut Vec<String>) {
    if text.len() > max {
        wrong.push(format!("must be no more than {max} bytes"));
    }
}

pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    at_most(text, 63, &mut wrong);
    if !is_label(text) {
        wrong.push(LABEL_1123.into());
    }
    wrong
}

pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    at_most(text, 253, &mut wrong);
    if !text.split('.').all(is_label) {
        wrong.push(SUBDOMAIN_1123.into());
    }
    wrong
}

pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    at_most(text, 63, &mut wrong);
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        wrong.push(LABEL_1035.into());
    }
    wrong
}

/// A label or annotation key: `name` or `example.com/name`.
pub fn qualified(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".into());
            } else {
                wrong.extend(dns1123_subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        wrong.push("name part must be no more than 63 bytes".into());
    }
    if !is_name_part(name) {
        wrong.push(QUALIFIED.into());
    }
    wrong
}

pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    at_most(text, 63, &mut wrong);
    if !text.is_empty() && !is_name_part(text) {
        wrong.push(LABEL_VALUE.into());
    }
    wrong
}

/// A name that is used as one path segment: RBAC roles and the like.
pub fn path_segment(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if matches!(text, "." | "..") {
        wrong.push(format!("may not be '{text}'"));
    }
    for illegal in ["/", "%"] {
        if text.contains(illegal) {
            wrong.push(format!("may not contain '{illegal}'"));
        }
    }
    wrong
}

/// A port's name: at most 15 of `[-a-z0-9]`, one letter at least, no double or outer hyphen.
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 characters".into());
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push(PORT_NAME_LETTER.into());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".into());
    }
    wrong
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    at_most(text, 253, &mut wrong);
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        wrong.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".into());
    }
    if text == "." || text == ".." {
        wrong.push(format!("must not be '{text}'"));
    } else if text.starts_with("..") {
        wrong.push("must not start with '..'".into());
    }
    wrong
}

/// An environment variable's name: any printable ASCII but `=`.
pub fn env_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must not be empty".into()];
    }
    if !text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        return vec![
            "a valid environment variable name must consist only of printable ASCII characters other than '='".into(),
        ];
    }
    Vec::new()
}

/// 1 to 65535.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec!["must be between 1 and 65535, inclusive".into()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(syntax: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(syntax(text).is_empty(), "{text}");
        }
        for text in bad {
            assert!(!syntax(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn knows_each_syntax() {
        check(dns1123_label, &["a", "1-a"], &["", "A", "-a", "a.b", &"a".repeat(64)]);
        check(dns1123_subdomain, &["a.b", "1"], &["", "a..b", ".a", "a_b"]);
        check(dns1035_label, &["a1"], &["1a", "", "a-"]);
        check(qualified, &["a", "A_b.c", "x.io/y"], &["", "/a", "a/", "a/b/c", "X/a", "-a"]);
        check(label_value, &["", "A_b"], &["-", "a b"]);
        check(port_name, &["http", "a1"], &["1", "a--b", "-a", "sixteencharacters"]);
        check(config_key, &["a.b", "..a"].map(|x| if x == "..a" { "a..b" } else { x }), &["", "..", "..a", "a/b"]);
        check(env_name, &["A.b", "my env"], &["", "a=b", "é"]);
        check(path_segment, &["system:a"], &["a/b", ".", "50%"]);
    }
}
