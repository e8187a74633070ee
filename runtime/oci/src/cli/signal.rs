//! Signals by number or name, as kill(1) and runc take them.

use super::Error;

pub(crate) fn parse(text: &str) -> Result<i32, Error> {
    let unknown =
        || Error::Usage(format!("unknown signal \"{text}\": give a number from 0 to 64, or a name like TERM"));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |rest: Option<&str>, base: i32, sign: i32| {
        let offset = rest?.parse::<i32>().ok()?;
        (0..=30).contains(&offset).then_some(base + sign * offset)
    };
    // signal(7): 34 is glibc's and musl's first real-time signal for programs, 64 the last.
    let number = match name {
        "RTMIN" => Some(34),
        "RTMAX" => Some(64),
        _ => realtime(name.strip_prefix("RTMIN+"), 34, 1).or_else(|| realtime(name.strip_prefix("RTMAX-"), 64, -1)),
    };
    match number {
        Some(number) => Ok(number),
        None => {
            format!("SIG{name}").parse::<nix::sys::signal::Signal>().map(|signal| signal as i32).map_err(|_| unknown())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, expect) in [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("sigterm", Some(15)),
            ("SIGRTMIN+1", Some(35)),
            ("RTMAX-1", Some(63)),
            ("65", None),
            ("-1", None),
            ("SIGNONSENSE", None),
            ("", None),
        ] {
            assert_eq!(parse(text).ok(), expect, "{text}");
        }
    }
}
