//! Links of a proxied application, led back through the proxy: a page that says `/style.css` means the application's, and the browser
//! would ask the API server. Rewrites `Location` and the attributes of HTML that hold addresses, as upstream's transport does. Pure.
//!
//! Invariant: what is no link of the application's own host stays byte for byte; one pass, no recursion, no more memory than the page.

/// Elements and their attributes that hold an address; upstream's list.
const LINKS: [(&str, &[&str]); 26] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
    ("track", &["src"]),
];
/// Elements whose content is text up to their end tag, whatever is in it.
const RAW: [&str; 6] = ["script", "style", "textarea", "title", "xmp", "noframes"];

/// Where the application's own addresses lead instead.
#[derive(Clone, Debug)]
pub(super) struct Rewrite {
    /// The path of the proxy, without a slash at its end.
    pub(super) prefix: String,
    /// What the application may call itself: the target's host and port, and the host that the caller asked.
    pub(super) hosts: Vec<String>,
}

impl Rewrite {
    /// The address, led through the proxy when it is the application's own and not relative.
    pub(super) fn url(&self, url: &str) -> Option<String> {
        let trimmed = url.trim_ascii();
        let path = match authority(trimmed) {
            Some((host, _)) if !self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host)) => return None,
            Some((_, "")) => "/",
            Some((_, path)) => path,
            None => trimmed,
        };
        if !path.starts_with('/') {
            return None;
        }
        let is_led =
            path.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
        let led = if is_led { path.to_owned() } else { format!("{}{path}", self.prefix) };
        (led != url).then_some(led)
    }

    /// The page with its links led through the proxy.
    pub(super) fn html(&self, page: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(page.len().saturating_add(page.len() / 8));
        let mut at = 0;
        while let Some(open) = page[at..].iter().position(|byte| *byte == b'<').map(|found| at + found) {
            out.extend_from_slice(&page[at..open]);
            at = open;
            let rest = &page[at..];
            let end = if rest.starts_with(b"<!--") {
                find(rest, b"-->").map_or(rest.len(), |found| found + 3)
            } else if rest.get(1).is_some_and(u8::is_ascii_alphabetic) {
                self.tag(rest, &mut out)
            } else {
                1
            };
            // A tag was written by itself.
            if !rest.get(1).is_some_and(u8::is_ascii_alphabetic) {
                out.extend_from_slice(&rest[..end]);
            }
            at += end;
        }
        out.extend_from_slice(&page[at..]);
        out
    }

    /// Writes the tag that the text begins with, and the raw text after it; returns how much it read.
    fn tag(&self, text: &[u8], out: &mut Vec<u8>) -> usize {
        let name_end = text[1..].iter().position(|byte| is_end_of_name(*byte)).map_or(text.len(), |found| found + 1);
        let name = String::from_utf8_lossy(&text[1..name_end]).to_ascii_lowercase();
        let links = LINKS.iter().find(|(own, _)| *own == name).map_or(&[][..], |(_, links)| links);
        out.extend_from_slice(&text[..name_end]);
        let mut at = name_end;
        while at < text.len() && text[at] != b'>' {
            at = self.attribute(text, at, links, out);
        }
        if at < text.len() {
            out.push(b'>');
            at += 1;
        }
        if RAW.contains(&name.as_str()) {
            let end = end_tag(&text[at..], name.as_bytes());
            out.extend_from_slice(&text[at..at + end]);
            at += end;
        }
        at
    }

    /// Writes one attribute, or one byte that is none; returns where it ends.
    fn attribute(&self, text: &[u8], start: usize, links: &[&str], out: &mut Vec<u8>) -> usize {
        let skip = |from: usize, is: &dyn Fn(u8) -> bool| {
            text[from..].iter().position(|byte| !is(*byte)).map_or(text.len(), |found| from + found)
        };
        if text[start].is_ascii_whitespace() || text[start] == b'/' {
            out.push(text[start]);
            return start + 1;
        }
        // A name may begin with an equals sign, as browsers read it: at least one byte is taken.
        let name_end = skip(start + 1, &|byte| !is_end_of_name(byte) && byte != b'=');
        let name = String::from_utf8_lossy(&text[start..name_end]).to_ascii_lowercase();
        let equals = skip(name_end, &|byte| byte.is_ascii_whitespace());
        if text.get(equals) != Some(&b'=') {
            out.extend_from_slice(&text[start..name_end]);
            return name_end;
        }
        let value_start = skip(equals + 1, &|byte| byte.is_ascii_whitespace());
        let (value_start, value_end, end) = match text.get(value_start) {
            Some(quote @ (b'"' | b'\'')) => {
                let first = value_start + 1;
                let last = skip(first, &|byte| byte != *quote);
                (first, last, last)
            }
            _ => {
                let last = skip(value_start, &|byte| !byte.is_ascii_whitespace() && byte != b'>');
                (value_start, last, last)
            }
        };
        out.extend_from_slice(&text[start..value_start]);
        let value = &text[value_start..value_end];
        let led = links
            .contains(&name.as_str())
            .then(|| std::str::from_utf8(value).ok().and_then(|value| self.url(value)))
            .flatten();
        match led {
            Some(led) => out.extend_from_slice(led.as_bytes()),
            None => out.extend_from_slice(value),
        }
        // The closing quote belongs to the value.
        if value_start > equals + 1 && matches!(text.get(end), Some(b'"' | b'\'')) && text[value_start - 1] == text[end]
        {
            out.push(text[end]);
            return end + 1;
        }
        end
    }
}

fn is_end_of_name(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'>' | b'/')
}

/// Host and path of an address that names a host, with a scheme of the web or without one.
fn authority(url: &str) -> Option<(&str, &str)> {
    let lower = url.get(..8).unwrap_or(url).to_ascii_lowercase();
    let rest = match () {
        () if lower.starts_with("https://") => &url[8..],
        () if lower.starts_with("http://") => &url[7..],
        () => url.strip_prefix("//")?,
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// Where `</name` begins, without regard to case; the end of the text when it never does.
fn end_tag(text: &[u8], name: &[u8]) -> usize {
    let length = name.len() + 2;
    let is_end = |window: &[u8]| window.starts_with(b"</") && window[2..].eq_ignore_ascii_case(name);
    text.windows(length).position(is_end).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PREFIX: &str = "/api/v1/namespaces/d/pods/p:80/proxy";

    fn rewrite() -> Rewrite {
        Rewrite { prefix: PREFIX.to_owned(), hosts: vec!["10.42.0.7:80".to_owned(), "server:6443".to_owned()] }
    }

    #[test]
    fn links_of_the_application_lead_through_the_proxy() {
        let check = |page: &str, expect: &str| {
            let expect = expect.replace("{P}", PREFIX);
            assert_eq!(String::from_utf8(rewrite().html(page.as_bytes())).unwrap(), expect, "{page}");
        };
        check("", "");
        check("a < b > c", "a < b > c");
        check(r#"<a href="/x/">x</a>"#, r#"<a href="{P}/x/">x</a>"#);
        check(r#"<A HREF='/x'>"#, r#"<A HREF='{P}/x'>"#);
        check("<a href=/x>y", "<a href={P}/x>y");
        check("<a class=\"b\" href = \"/x\" id=c/>", "<a class=\"b\" href = \"{P}/x\" id=c/>");
        check(r#"<img src="/i.png" alt="/x"><p title="/x">"#, r#"<img src="{P}/i.png" alt="/x"><p title="/x">"#);
        check(r##"<a href="x"><a href="?q"><a href="#f">"##, r##"<a href="x"><a href="?q"><a href="#f">"##);
        check(r#"<a href="http://10.42.0.7:80/x">"#, r#"<a href="{P}/x">"#);
        check(r#"<a href="//server:6443/x">"#, r#"<a href="{P}/x">"#);
        check(r#"<a href="https://elsewhere/x">"#, r#"<a href="https://elsewhere/x">"#);
        check(r#"<a href="javascript:/x/">"#, r#"<a href="javascript:/x/">"#);
        check(&format!(r#"<a href="{PREFIX}/x"><a href="{PREFIX}y">"#), r#"<a href="{P}/x"><a href="{P}{P}y">"#);
        check(r#"<!-- <a href="/x"> --><a href="/x">"#, r#"<!-- <a href="/x"> --><a href="{P}/x">"#);
        check(
            r#"<script src="/s.js">"<a href='/x'>"</SCRIPT><a href="/x">"#,
            r#"<script src="{P}/s.js">"<a href='/x'>"</SCRIPT><a href="{P}/x">"#,
        );
        check("<a href=\"/x", "<a href=\"{P}/x");
        check("<a href=", "<a href=");
        check("<a =/x>", "<a =/x>");
        check("<!-- never ends", "<!-- never ends");
        check("<script>never ends", "<script>never ends");
        check("<", "<");
    }

    #[test]
    fn redirections_lead_through_the_proxy() {
        let check = |url: &str, expect: Option<&str>| {
            let expect = expect.map(|expect| expect.replace("{P}", PREFIX));
            assert_eq!(rewrite().url(url), expect, "{url}");
        };
        check("/login?a=b", Some("{P}/login?a=b"));
        check("http://10.42.0.7:80", Some("{P}/"));
        check("http://10.42.0.7:80?q", None);
        check("http://10.42.0.7:81/x", None);
        check("login", None);
        check(&format!("{PREFIX}/x"), None);
    }

    proptest! {
        #[test]
        fn a_page_without_links_stays_as_it_is(page in "[a-z<>/!\\- ='\"]{0,80}") {
            let none = Rewrite { prefix: String::new(), hosts: Vec::new() };
            let written = none.html(page.as_bytes());
            prop_assert_eq!(String::from_utf8(written).unwrap(), page);
        }

        #[test]
        fn any_bytes_are_a_page(page in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = rewrite().html(&page);
        }
    }
}
