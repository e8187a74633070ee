//! ps: the container's processes, read from /proc; no ps(1) is run.

use runtime_oci::StateRoot;

use super::arguments::{Format, Ps};
use super::inspect::aligned;
use super::lifecycle::parse_id;
use super::{Error, print as print_text};

pub(crate) fn print(root: &StateRoot, ps: &Ps) -> Result<u8, Error> {
    let pids = runtime_oci::processes(root, &parse_id(&ps.id)?)?;
    if ps.format == Format::Json {
        let list: Vec<String> = pids.iter().map(i32::to_string).collect();
        print_text(&format!("[{}]\n", list.join(",")))?;
        return Ok(0);
    }
    if !ps.options.is_empty() {
        return Err(Error::Usage("options of ps(1) are not supported: no program is run".to_owned()));
    }
    let mut rows = vec![["UID", "PID", "PPID", "STATE", "CMD"].map(str::to_owned)];
    // One that has ended meanwhile is not listed.
    rows.extend(pids.into_iter().filter_map(row));
    print_text(&aligned(&rows))?;
    Ok(0)
}

fn row(pid: i32) -> Option<[String; 5]> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next().map(str::to_owned)
    };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = command.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
    let command = if words.is_empty() {
        format!("[{}]", field("Name:")?)
    } else {
        String::from_utf8_lossy(&words.join(&b' ')).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    };
    Some([field("Uid:")?, pid.to_string(), field("PPid:")?, field("State:")?, command])
}
