//! ps: the container's processes, read from /proc; no ps(1) is run.
//!
//! The options of ps(1) that choose columns are understood, those that choose processes have nothing to choose: it is always the
//! container's.

mod columns;

use runtime_oci::StateRoot;

use super::arguments::{Format, Ps};
use super::lifecycle::parse_id;
use super::{Error, print as print_text};
use columns::{Column, Process};

const FULL: [Column; 8] = [
    Column::UserName,
    Column::Pid,
    Column::Parent,
    Column::Percent,
    Column::StartTime,
    Column::Terminal,
    Column::Time,
    Column::Command,
];
const SHORT: [Column; 4] = [Column::Pid, Column::Terminal, Column::Time, Column::Name];
const STATES: [Column; 5] = [Column::Pid, Column::Terminal, Column::State, Column::ShortTime, Column::Arguments];
const USAGE: [Column; 11] = [
    Column::User,
    Column::Pid,
    Column::CpuPercent,
    Column::MemoryPercent,
    Column::VirtualSize,
    Column::ResidentSize,
    Column::Terminal,
    Column::State,
    Column::Start,
    Column::ShortTime,
    Column::Arguments,
];

pub(crate) fn print(root: &StateRoot, ps: &Ps) -> Result<u8, Error> {
    let (format, options) = format(ps)?;
    let pids = runtime_oci::processes(root, &parse_id(&ps.id)?)?;
    if format == Format::Json {
        let list: Vec<String> = pids.iter().map(i32::to_string).collect();
        print_text(&format!("[{}]\n", list.join(",")))?;
        return Ok(0);
    }
    let chosen = choose(&options)?;
    let clock = columns::Clock::now();
    let mut rows: Vec<Vec<String>> = vec![chosen.iter().map(|column| column.title().to_owned()).collect()];
    // One that has ended meanwhile is not listed.
    let processes = pids.into_iter().filter_map(Process::read);
    rows.extend(processes.map(|process| chosen.iter().map(|column| column.cell(&process, &clock)).collect()));
    print_text(&table(&chosen, &rows))?;
    Ok(0)
}

/// crun takes `--format` after the id too; beside it nothing that begins with `-f` or `--format` is an option of ps(1) with a value.
fn format(ps: &Ps) -> Result<(Format, Vec<String>), Error> {
    let mut format = ps.format;
    let mut rest = Vec::new();
    let mut words = ps.options.iter();
    while let Some(word) = words.next() {
        let value = match word.as_str() {
            "--format" => words.next().map(String::as_str),
            "-f" if matches!(words.as_slice().first().map(String::as_str), Some("json" | "table")) => {
                words.next().map(String::as_str)
            }
            word => word.strip_prefix("--format="),
        };
        match value {
            Some("json") => format = Format::Json,
            Some("table") => format = Format::Table,
            Some(other) => return Err(Error::Usage(format!("--format {other}: choose table or json"))),
            None => rest.push(word.clone()),
        }
    }
    Ok((format, rest))
}

/// ps(1): letters may be bundled, with a dash (UNIX) or without (BSD).
fn choose(options: &[String]) -> Result<Vec<Column>, Error> {
    let unknown = |word: &str| {
        Error::Usage(format!(
            "ps {word} is not understood: no ps(1) is run; -f, -x, u and -o with some of {} are",
            columns::names()
        ))
    };
    let mut chosen: &[Column] = if options.is_empty() { &FULL } else { &SHORT };
    let mut custom = Vec::new();
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let (is_unix, letters) = word.strip_prefix('-').map_or((false, word.as_str()), |letters| (true, letters));
        for (at, letter) in letters.char_indices() {
            match letter {
                // Whose processes: the container's in any case.
                'e' | 'A' | 'a' | 'w' => {}
                'f' | 'F' => chosen = &FULL,
                'x' | 'g' => chosen = &STATES,
                'u' if !is_unix || letters.contains('x') => chosen = &USAGE,
                'o' => {
                    let rest = &letters[at + 1..];
                    let list = if rest.is_empty() { words.next().ok_or_else(|| unknown(word))? } else { rest };
                    for name in list.split([',', ' ']).filter(|name| !name.is_empty()) {
                        custom.push(Column::named(name).ok_or_else(|| unknown(&format!("-o {name}")))?);
                    }
                    break;
                }
                _ => return Err(unknown(word)),
            }
        }
        if letters.is_empty() {
            return Err(unknown(word));
        }
    }
    // "aux": the last letter is not the one that says most.
    let has = |letter: char| options.iter().any(|word| word.contains(letter) && !word.contains('o'));
    if chosen == STATES && has('u') {
        chosen = &USAGE;
    }
    Ok(if custom.is_empty() { chosen.to_vec() } else { custom })
}

/// Columns as wide as their widest cell; numbers to the right, as ps(1) has them; the last one open.
fn table(chosen: &[Column], rows: &[Vec<String>]) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..chosen.len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cell = |(at, cell): (usize, &String)| {
            let width = widths[at];
            if chosen[at].is_number() { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        };
        let line: Vec<String> = row.iter().enumerate().map(cell).collect();
        text.push_str(line.join(" ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_choose_columns() {
        let choose = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            let titles = |all: Vec<Column>| all.iter().map(|column| column.title()).collect::<Vec<_>>().join(" ");
            choose(&words).ok().map(titles)
        };
        let full = Some("UID PID PPID C STIME TTY TIME CMD".to_owned());
        assert_eq!((choose(&[]), choose(&["-ef"])), (full.clone(), full));
        assert_eq!(choose(&["-e", "-x"]).as_deref(), Some("PID TTY STAT TIME COMMAND"));
        let usage = Some("USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND".to_owned());
        assert_eq!((choose(&["aux"]), choose(&["-aux"])), (usage.clone(), usage));
        assert_eq!(choose(&["-e"]).as_deref(), Some("PID TTY TIME CMD"));
        assert_eq!(choose(&["-eo", "pid,comm"]).as_deref(), Some("PID COMMAND"));
        for bad in [&["-p", "1"][..], &["--forest"], &["-o"], &["-onope"], &["-"]] {
            assert_eq!(choose(bad), None, "{bad:?}");
        }
    }
}
