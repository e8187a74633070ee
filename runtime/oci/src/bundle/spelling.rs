//! Names that runtime-spec 1.3 and the library's types spell differently, and names that no version knows yet.
//!
//! Works on a process object that the types have refused; what it does not know it leaves for the error.

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
}
