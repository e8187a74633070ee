//! Names that runtime-spec 1.3 and the library's types spell differently, and names that no version knows yet.
//!
//! Works on what the types have refused, or read with a gap; what it does not know it leaves for the error.

use oci_spec::runtime::Spec;
use serde_json::Value;

/// (runtime-spec's name, the library's).
const FLAGS: [(&str, &str); 2] =
    [("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"), ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN")];

pub(super) fn correct(process: &mut Value, warnings: &mut Vec<String>) {
    for flag in process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some((_, ours)) = FLAGS.iter().find(|(theirs, _)| flag.as_str() == Some(theirs)) {
            *flag = (*ours).into();
        }
    }
    // runtime-spec 1.3, "Linux Process": a capability that is not known is no error.
    if let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) {
        for names in sets.values_mut().filter_map(Value::as_array_mut) {
            names.retain(|name| {
                let Some(name) = name.as_str() else { return true };
                let is_known = runtime_linux::capability::number(name).is_some();
                let warning = format!("capability {name} is not known here, and so not granted");
                if !is_known && !warnings.contains(&warning) {
                    warnings.push(warning);
                }
                is_known
            });
        }
    }
}

/// A limit on huge pages of no size: the library fills the gap with nothing.
pub(super) fn lacks_page_size(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let limits = resources.and_then(|resources| resources.hugepage_limits().as_ref());
    limits.into_iter().flatten().any(|limit| limit.page_size().is_empty())
}

/// Go's reader takes a property's name in any case, so there are configurations that say `pagesize`.
pub(super) fn with_page_sizes(raw: &[u8]) -> Option<Vec<u8>> {
    const NAME: &str = "pageSize";
    let mut spec: Value = serde_json::from_slice(raw).ok()?;
    for limit in spec.pointer_mut("/linux/resources/hugepageLimits")?.as_array_mut()? {
        let limit = limit.as_object_mut()?;
        if let Some(other) = limit.keys().find(|key| key.eq_ignore_ascii_case(NAME)).cloned() {
            let size = limit.remove(&other)?;
            limit.insert(NAME.to_owned(), size);
        }
    }
    serde_json::to_vec(&spec).ok()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxSchedulerFlag;

    #[test]
    fn runtime_specs_spelling_is_read() {
        let text = r#"{"cwd":"/","user":{"uid":0,"gid":0},"capabilities":{"bounding":["CAP_KILL","CAP_FUTURE"]},
            "scheduler":{"policy":"SCHED_DEADLINE","flags":["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_DL_OVERRUN"]}}"#;
        let (process, warnings) = crate::parse_process(text.as_bytes()).expect("process");
        assert_eq!(warnings, ["capability CAP_FUTURE is not known here, and so not granted"]);
        let flags = process.scheduler().as_ref().and_then(|scheduler| scheduler.flags().clone());
        assert_eq!(flags, Some(vec![LinuxSchedulerFlag::SchedResetOnFork, LinuxSchedulerFlag::SchedFlagDLOverrun]));
        let bounding = process.capabilities().as_ref().and_then(|sets| sets.bounding().clone()).expect("bounding");
        assert_eq!(bounding.len(), 1);
        assert!(crate::parse_process(br#"{"cwd":"/","scheduler":{"policy":"SCHED_NONE"}}"#).is_err());
    }

    #[test]
    fn a_page_size_in_any_case_is_read() {
        let read = |name: &str| {
            let limits = format!(r#"[{{"{name}":"2MB","limit":7}}]"#);
            let text = format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{{"hugepageLimits":{limits}}}}}}}"#);
            let (spec, warnings) = crate::bundle::parse(text.as_bytes()).expect("configuration");
            let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).expect("resources");
            let limits = resources.hugepage_limits().clone().unwrap_or_default();
            (limits[0].page_size().clone(), warnings.len())
        };
        assert_eq!(read("pageSize"), ("2MB".to_owned(), 0));
        assert_eq!(read("pagesize"), ("2MB".to_owned(), 0));
        assert_eq!(read("page"), (String::new(), 1));
    }
}
