//! No `sleep(..)` made anew in an arm of `select!`: whenever another arm wins, it begins again, and where another arm comes
//! oftener than it lasts, it never ends. What has a time of its own is an `Interval`, a pinned sleep, or `sleep_until(time)`; a wait
//! for one thing with an end is `timeout(..)`.

/// Lines, from one, of arms whose future is a sleep that is made in the arm.
pub(super) fn sleeping_arms(text: &str) -> Vec<usize> {
    let code = blank(text);
    let mut lines = Vec::new();
    for (start, _) in code.match_indices("select!") {
        let rest = &code[start..];
        let Some(open) = rest.find('{') else { continue };
        // Only a name or an import of the macro, unless its block follows.
        if !rest["select!".len()..open].trim().is_empty() {
            continue;
        }
        for (offset, head) in heads(&rest[open + 1..]) {
            if let Some(at) = head.find("sleep(") {
                lines.push(text[..start + open + 1 + offset + at].matches('\n').count() + 1);
            }
        }
    }
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// What stands before each `=>` of the block that `text` continues, with its place.
fn heads(text: &str) -> Vec<(usize, &str)> {
    let bytes = text.as_bytes();
    let (mut heads, mut depth, mut begin) = (Vec::new(), 0usize, Some(0));
    for (index, byte) in bytes.iter().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b'}' if depth == 0 => return heads,
            b')' | b']' | b'}' => {
                depth = depth.saturating_sub(1);
                // The end of a body in braces is the end of its arm.
                if *byte == b'}' && depth == 0 && begin.is_none() {
                    begin = Some(index + 1);
                }
            }
            b',' if depth == 0 && begin.is_none() => begin = Some(index + 1),
            b'=' if depth == 0 && bytes.get(index + 1) == Some(&b'>') => {
                if let Some(begin) = begin.take() {
                    heads.push((begin, &text[begin..index]));
                }
            }
            _ => {}
        }
    }
    heads
}

/// The same text with the insides of comments, strings and characters as spaces, so that no brace of theirs counts.
fn blank(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let mut index = 0;
    while index < bytes.len() {
        let rest = &text.as_bytes()[index..];
        let end = if rest.starts_with(b"//") {
            rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
        } else if rest[0] == b'"' {
            string_end(rest)
        } else if rest[0] == b'\'' && (rest.get(2) == Some(&b'\'') || rest.starts_with(b"'\\")) {
            rest.iter().skip(2).position(|byte| *byte == b'\'').map_or(rest.len(), |at| at + 3)
        } else {
            index += 1;
            continue;
        };
        let end = (index + end).min(bytes.len());
        for byte in &mut bytes[index..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        index = end;
    }
    // Whole characters were replaced by as many spaces as they had bytes.
    String::from_utf8(bytes).unwrap_or_default()
}

fn string_end(rest: &[u8]) -> usize {
    let mut escaped = false;
    for (index, byte) in rest.iter().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return index + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms() {
        let check = |arms: &str, expect: &[usize]| {
            let text = format!("loop {{\n    tokio::select! {{\n{arms}\n    }}\n}}\n");
            assert_eq!(sleeping_arms(&text), expect, "{text}");
        };
        check("_ = tick.tick() => {}\n() = tokio::time::sleep(pause) => pause = again().await,", &[4]);
        check("() = sleep(PAUSE), if is_due => {}", &[3]);
        check("Some(x) = next() => match x { A => f(), B => { g(); } },\n() = sleep(PAUSE) => {}", &[4]);
        check("Some(x) = next() => { f(\"}, =>\"); }\n() = sleep(PAUSE) => {}", &[4]);
        check("() = stop.cancelled() => {\n    tokio::time::sleep(PAUSE).await;\n}", &[]);
        check("() = tokio::time::sleep_until(time) => {}", &[]);
        check("// () = sleep(PAUSE) => {}\n() = &mut pause => {}", &[]);
        check("() = async { f('{').await } => {}\n() = async { sleep(PAUSE).await } => {}", &[4]);
        assert_eq!(sleeping_arms("use tokio::select;\n// select! is a macro\nfn f() { g(sleep(PAUSE)) }"), [0; 0]);
    }
}
