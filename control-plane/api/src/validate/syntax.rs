//! Syntaxes that only validation asks for: addresses' and paths' are in files of their own.

/// Bytes of a sysctl's name.
const SYSCTL_BYTES_MAX: usize = 253;
const SYSCTL: &str = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
const HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
const SEARCH: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character or an underscore (e.g. '_example.com')";
/// Bytes of a driver's name.
const DRIVER_BYTES_MAX: usize = 63;

fn is_segment(text: &str, inner: impl Fn(u8) -> bool) -> bool {
    let outer = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if outer(*first) && outer(*last))
        && bytes.iter().all(|byte| outer(*byte) || inner(*byte))
}

/// The name of a kernel parameter, with dots or slashes; sysctl(8).
pub(super) fn sysctl(text: &str) -> Vec<String> {
    let sound = text.len() <= SYSCTL_BYTES_MAX
        && text.split(['.', '/']).all(|part| is_segment(part, |byte| matches!(byte, b'-' | b'_')));
    if sound { Vec::new() } else { vec![SYSCTL.into()] }
}

pub(super) fn http_header(text: &str) -> Vec<String> {
    let sound = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if sound { Vec::new() } else { vec![HEADER.into()] }
}

/// A search domain: a subdomain whose labels may have underscores, with or without the last dot. A single dot stands for the root.
pub(super) fn search_domain(text: &str) -> Vec<String> {
    if text == "." {
        return Vec::new();
    }
    let plain = text.strip_suffix('.').unwrap_or(text);
    let mut wrong = Vec::new();
    if plain.len() > 253 {
        wrong.push("must be no more than 253 bytes".into());
    }
    let sound = |label: &str| is_segment(label.strip_prefix('_').unwrap_or(label), |byte| matches!(byte, b'-' | b'_'));
    if !plain.split('.').all(sound) {
        wrong.push(SEARCH.into());
    }
    wrong
}

/// A driver's name: a subdomain in upper or lower case.
pub(super) fn driver(text: &str) -> Vec<String> {
    let mut wrong = crate::name::dns1123_subdomain(&text.to_lowercase());
    if text.len() > DRIVER_BYTES_MAX {
        wrong.insert(0, format!("must be no more than {DRIVER_BYTES_MAX} bytes"));
    }
    wrong
}

/// A percentage: digits and a percent sign.
pub(super) fn percent(text: &str) -> Vec<String> {
    const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
    let sound = text
        .strip_suffix('%')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    if sound { Vec::new() } else { vec![PERCENT.into()] }
}

/// Names whose upper case is nobody's concern: annotation keys, `metadata.annotations['Key']`.
pub(super) fn qualified_any_case(text: &str) -> Vec<String> {
    crate::name::qualified(&text.to_lowercase())
}

/// A generated name's base: what follows it makes its end sound, so that it may end with a hyphen.
pub(super) fn base(syntax: super::field::Syntax, text: &str) -> Vec<String> {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => syntax(&format!("{rest}a")),
        _ => syntax(text),
    }
}
