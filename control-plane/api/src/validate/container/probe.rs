//! Probes and hooks.

use super::Context;
use crate::validate::field::Field;
use crate::validate::{Causes, syntax};

const NUMBERS: &[&str] =
    &["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
/// signal(7), by the names that a container may stop with.
const SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMIN",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

/// The hooks and probes of a container that has a life of its own.
pub(super) fn check(container: &Field<'_, '_>, context: &Context<'_>, causes: &mut Causes) {
    let lifecycle = container.key("lifecycle");
    for hook in ["postStart", "preStop"] {
        let hook = lifecycle.key(hook);
        if hook.is_set() {
            check_handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], context, causes);
        }
    }
    check_stop_signal(&lifecycle.key("stopSignal"), context, causes);
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.key(kind);
        if !probe.is_set() {
            continue;
        }
        check_handler(&probe, &["exec", "httpGet", "tcpSocket", "grpc"], context, causes);
        probe.none_negative(NUMBERS, causes);
        let grace = probe.key("terminationGracePeriodSeconds");
        if grace.number().is_some_and(|seconds| seconds <= 0) {
            grace.invalid("must be greater than 0", causes);
        }
        if kind == "readinessProbe" {
            if grace.is_set() {
                grace.invalid("must not be set for readinessProbes", causes);
            }
        } else if probe.key("successThreshold").int() != 1 {
            let times = probe.key("successThreshold");
            times.invalid_as(&times.int().into(), "must be 1", causes);
        }
    }
}

/// Exactly one of `kinds`, and a sound one.
fn check_handler(handler: &Field<'_, '_>, kinds: &[&str], context: &Context<'_>, causes: &mut Causes) {
    let mut given = kinds.iter().filter(|kind| handler.key(kind).is_set());
    let Some(first) = given.next() else {
        handler.required("must specify a handler type", causes);
        return;
    };
    for more in given {
        handler.key(more).forbidden("may not specify more than 1 handler type", causes);
    }
    let action = handler.key(first);
    match *first {
        "exec" => {
            let command = action.key("command");
            if command.list().is_empty() {
                command.required("", causes);
            }
        }
        "httpGet" => {
            if action.key("path").text().is_empty() {
                action.key("path").required("", causes);
            }
            action.key("port").port_or_name(causes);
            action.key("scheme").one_of(&["HTTP", "HTTPS"], causes);
            let headers = action.key("httpHeaders");
            for header in headers.items() {
                let given = header.key("name");
                for fault in syntax::http_header(given.text()) {
                    headers.invalid_as(&given.text().into(), &fault, causes);
                }
            }
        }
        "tcpSocket" => action.key("port").port_or_name(causes),
        "grpc" => action.key("port").port_number(causes),
        _ => {
            let seconds = action.key("seconds").int();
            if seconds < 0 || seconds > context.grace_seconds {
                let detail = format!(
                    "must be non-negative and less than terminationGracePeriodSeconds ({})",
                    context.grace_seconds
                );
                action.invalid_as(&seconds.into(), &detail, causes);
            }
        }
    }
}

fn check_stop_signal(signal: &Field<'_, '_>, context: &Context<'_>, causes: &mut Causes) {
    if !signal.is_set() {
        return;
    }
    let is_real_time = |text: &str| {
        let offset = text.strip_prefix("SIGRTMIN+").or_else(|| text.strip_prefix("SIGRTMAX-"));
        offset.and_then(|digits| digits.parse::<u8>().ok()).is_some_and(|offset| (1..=15).contains(&offset))
    };
    match context.os {
        "" => signal.forbidden("may not be set for containers with empty `spec.os.name`", causes),
        "windows" => signal.one_of_if_set(&["SIGKILL", "SIGTERM"], causes),
        _ if SIGNALS.contains(&signal.text()) || is_real_time(signal.text()) => {}
        _ => signal.unsupported(SIGNALS, causes),
    }
}
