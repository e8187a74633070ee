//! What the demo server shows: a page about the pod it runs in.

use std::fmt::Write as _;
use std::net::IpAddr;

pub(crate) fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}

/// The environment, sorted, a line each.
pub(crate) fn environment() -> String {
    let mut lines: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect();
    lines.sort();
    lines.concat()
}

pub(crate) fn html(client: IpAddr) -> String {
    let mut rows = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _infallible = write!(rows, "<tr><th>{name}</th><td>{}</td></tr>", escape(value));
    };
    row("pod", &hostname());
    row("you came from", &client.to_string());
    row("process id in its namespace", &std::process::id().to_string());
    for (title, path) in [("cgroup", "/proc/self/cgroup"), ("kernel", "/proc/sys/kernel/osrelease")] {
        if let Ok(text) = std::fs::read_to_string(path) {
            row(title, text.trim());
        }
    }
    format!(
        "<!doctype html><html lang=\"en\"><title>Sampan</title><style>body{{font:16px/1.5 system-ui;margin:3em auto;\
         max-width:44em;padding:0 1em}}th{{text-align:left;padding-right:2em;vertical-align:top}}td{{white-space:pre-wrap}}\
         </style><h1>It floats.</h1><p>This page comes from a container that Sampan built with system calls.</p>\
         <table>{rows}</table></html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_break_the_page() {
        assert_eq!(escape("<b> & </b>"), "&lt;b&gt; &amp; &lt;/b&gt;");
    }

    #[test]
    fn page_names_the_client() {
        assert!(html(IpAddr::from([10, 42, 0, 7])).contains("10.42.0.7"));
    }
}
