//! Signals by name: the interface's enumeration and the image's `StopSignal`. Pure.

use runtime_cri_api::v1::Signal;

/// SIGTERM, unless somebody says otherwise.
const DEFAULT: i32 = 15;

/// glibc's and musl's SIGRTMIN for programs; the kernel's two lower ones are theirs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The container's own wish, then its image's, then SIGTERM. `Err` is the name nobody knows.
pub(crate) fn stop_signal(wanted: Signal, image: Option<&str>) -> Result<i32, String> {
    match (wanted, image) {
        (Signal::RuntimeDefault, None | Some("")) => Ok(DEFAULT),
        (Signal::RuntimeDefault, Some(name)) => parse(name).ok_or_else(|| name.to_owned()),
        (signal, _) => parse(signal.as_str_name()).ok_or_else(|| signal.as_str_name().to_owned()),
    }
}

/// The interface's name for what is sent in the end.
pub(crate) fn told(number: i32) -> Signal {
    let mut known = (1..).map_while(|value| Signal::try_from(value).ok());
    known.find(|signal| parse(signal.as_str_name()) == Some(number)).unwrap_or(Signal::RuntimeDefault)
}

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, and the interface's `SIGRTMINPLUS3`.
fn parse(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| -> Option<i32> {
        if text.is_empty() { Some(0) } else { text.trim_start_matches(['+', '-']).parse().ok() }
    };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        let number = RTMIN.checked_add(offset(rest.trim_start_matches("PLUS"))?)?;
        return (RTMIN..=RTMAX).contains(&number).then_some(number);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        let number = RTMAX.checked_sub(offset(rest.trim_start_matches("MINUS"))?)?;
        return (RTMIN..=RTMAX).contains(&number).then_some(number);
    }
    let old_names = match bare {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        other => other,
    };
    format!("SIG{old_names}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |wanted: Signal, image: Option<&str>, expect: Option<i32>| {
            assert_eq!(stop_signal(wanted, image).ok(), expect, "{wanted:?} {image:?}");
        };
        check(Signal::RuntimeDefault, None, Some(15));
        check(Signal::RuntimeDefault, Some("SIGQUIT"), Some(3));
        check(Signal::RuntimeDefault, Some("9"), Some(9));
        check(Signal::RuntimeDefault, Some("SIGRTMIN+3"), Some(37));
        check(Signal::RuntimeDefault, Some("SIGNOT"), None);
        check(Signal::RuntimeDefault, Some("SIGRTMIN+2147483647"), None);
        check(Signal::RuntimeDefault, Some("RTMIN+-2147483648"), None);
        check(Signal::RuntimeDefault, Some("SIGRTMAX--9"), Some(55));
        check(Signal::Sigusr1, Some("SIGQUIT"), Some(10));
        check(Signal::Sigrtminplus3, None, Some(37));
        check(Signal::Sigrtmaxminus14, None, Some(50));
        check(Signal::Sigcld, None, Some(17));
    }

    #[test]
    fn the_effective_signal_is_told() {
        let check = |number: i32, expect: Signal| assert_eq!(told(number), expect, "{number}");
        check(15, Signal::Sigterm);
        check(3, Signal::Sigquit);
        check(9, Signal::Sigkill);
        check(37, Signal::Sigrtminplus3);
        check(0, Signal::RuntimeDefault);
    }

    #[test]
    fn every_signal_of_the_interface_is_known() {
        for number in 1..=65 {
            let signal = Signal::try_from(number).unwrap();
            assert!(stop_signal(signal, None).is_ok(), "{signal:?}");
        }
    }
}
