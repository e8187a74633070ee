//! Security contexts: a container's own, and the parts that pods have too.

use super::Context;
use crate::validate::field::Field;
use crate::validate::{Causes, path};
use crate::{Cause, name};

/// Bytes of a path to a profile; PATH_MAX without its end.
const PROFILE_BYTES_MAX: usize = 4095;
/// Bytes of a Windows account's name and domain.
const WINDOWS_USER_BYTES_MAX: usize = 104;
const WINDOWS_DOMAIN_BYTES_MAX: usize = 255;
const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

pub(super) fn check(security: &Field<'_, '_>, context: &Context<'_>, causes: &mut Causes) {
    if !security.is_set() {
        return;
    }
    check_ids(security, &["runAsUser", "runAsGroup"], causes);
    let mount = security.key("procMount");
    mount.one_of_if_set(&["Default", "Unmasked"], causes);
    // /proc of a container that has the host's users is the host's: core_pattern there is root on the host.
    if mount.text() == "Unmasked" && context.host_users {
        mount.invalid("`hostUsers` must be false to use `Unmasked`", causes);
    }
    check_seccomp(&security.key("seccompProfile"), causes);
    if security.key("allowPrivilegeEscalation").is_false() {
        if security.key("privileged").is_true() {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            security.invalid(detail, causes);
        }
        for added in security.key("capabilities").key("add").items() {
            if added.text() == "CAP_SYS_ADMIN" {
                let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
                security.invalid(detail, causes);
            }
        }
    }
    check_windows(&security.key("windowsOptions"), causes);
    check_apparmor(&security.key("appArmorProfile"), causes);
}

/// Numbers of users and groups: what the kernel's signed 32 bits hold.
pub(in crate::validate) fn check_ids(security: &Field<'_, '_>, keys: &[&str], causes: &mut Causes) {
    for key in keys {
        security.key(key).within(&(0..=i64::from(i32::MAX)), causes);
    }
}

pub(in crate::validate) fn check_seccomp(profile: &Field<'_, '_>, causes: &mut Causes) {
    if !profile.is_set() {
        return;
    }
    let (kind, local) = (profile.key("type"), profile.key("localhostProfile"));
    kind.one_of(PROFILES, causes);
    match (kind.text(), local.is_set()) {
        ("Localhost", false) => local.required("must be set when seccomp type is Localhost", causes),
        ("Localhost", true) => path::descending(&local, local.text(), causes),
        (_, true) => local.invalid_as(profile.value, "can only be set when seccomp type is Localhost", causes),
        (_, false) => {}
    }
}

pub(in crate::validate) fn check_apparmor(profile: &Field<'_, '_>, causes: &mut Causes) {
    const NEEDED: &str = "must be set when AppArmor type is Localhost";
    if !profile.is_set() {
        return;
    }
    let (kind, local) = (profile.key("type"), profile.key("localhostProfile"));
    kind.one_of(PROFILES, causes);
    match kind.text() {
        "Localhost" if local.text().trim().is_empty() => local.required(NEEDED, causes),
        "Localhost" => {
            if local.text() != local.text().trim() {
                local.invalid("must not be padded with whitespace", causes);
            }
            if local.text().len() > PROFILE_BYTES_MAX {
                local.too_long(PROFILE_BYTES_MAX, causes);
            }
        }
        "RuntimeDefault" | "Unconfined" if local.is_set() => {
            local.invalid("can only be set when AppArmor type is Localhost", causes);
        }
        _ => {}
    }
}

/// What only Windows acts on; its syntax is judged all the same.
pub(in crate::validate) fn check_windows(options: &Field<'_, '_>, causes: &mut Causes) {
    if !options.is_set() {
        return;
    }
    let spec = options.key("gmsaCredentialSpecName");
    if spec.is_set() {
        spec.must_be(name::dns1123_subdomain, causes);
    }
    let user = options.key("runAsUserName");
    if !user.is_set() {
        return;
    }
    let parts: Vec<&str> = user.text().split('\\').take(3).collect();
    let (domain, account) = match parts.as_slice() {
        [domain, account] => (*domain, *account),
        [account] => ("", *account),
        _ => return user.invalid("runAsUserName cannot contain more than one backslash", causes),
    };
    let detail = if user.text().is_empty() {
        "runAsUserName cannot be an empty string".into()
    } else if user.text().chars().any(char::is_control) {
        "runAsUserName cannot contain control characters".into()
    } else if domain.len() > WINDOWS_DOMAIN_BYTES_MAX {
        "runAsUserName's Domain length must be under 256 characters".into()
    } else if account.is_empty() {
        "runAsUserName's User cannot be empty".into()
    } else if account.len() > WINDOWS_USER_BYTES_MAX {
        format!("runAsUserName's User length must not be longer than {WINDOWS_USER_BYTES_MAX} characters")
    } else if account.chars().all(|one| matches!(one, '.' | ' ')) {
        "runAsUserName's User cannot contain only periods or spaces".into()
    } else if account.contains(['"', '/', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".into()
    } else {
        return;
    };
    causes.push(Cause::invalid(user.path(), user.value, &detail));
}
