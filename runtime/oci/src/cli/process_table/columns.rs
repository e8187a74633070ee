//! The columns of ps(1), each from what /proc says of a process; proc(5).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `USER_HZ`: what the kernel tells times to programs in, on every architecture that we run on.
const TICKS: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// Titled UID, and a name all the same, as `ps -f` has it.
    UserName,
    User,
    UserId,
    Pid,
    Parent,
    Percent,
    CpuPercent,
    MemoryPercent,
    VirtualSize,
    ResidentSize,
    StartTime,
    Start,
    Elapsed,
    Terminal,
    State,
    Time,
    ShortTime,
    Threads,
    Nice,
    Name,
    NameTitled,
    Command,
    Arguments,
}

/// For -o: the names that ps(1) gives them.
const NAMED: [(&str, Column); 25] = [
    ("user", Column::User),
    ("euser", Column::User),
    ("uid", Column::UserId),
    ("euid", Column::UserId),
    ("pid", Column::Pid),
    ("ppid", Column::Parent),
    ("c", Column::Percent),
    ("pcpu", Column::CpuPercent),
    ("%cpu", Column::CpuPercent),
    ("pmem", Column::MemoryPercent),
    ("%mem", Column::MemoryPercent),
    ("vsz", Column::VirtualSize),
    ("rss", Column::ResidentSize),
    ("stime", Column::StartTime),
    ("start", Column::Start),
    ("etime", Column::Elapsed),
    ("tty", Column::Terminal),
    ("tt", Column::Terminal),
    ("stat", Column::State),
    ("time", Column::Time),
    ("nlwp", Column::Threads),
    ("ni", Column::Nice),
    ("comm", Column::NameTitled),
    ("cmd", Column::Command),
    ("args", Column::Arguments),
];

pub(crate) fn names() -> String {
    NAMED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",")
}

/// The moment that times are told against.
#[derive(Debug)]
pub(crate) struct Clock {
    booted: SystemTime,
    now: SystemTime,
    users: String,
    memory_kib: u64,
}

impl Clock {
    pub(crate) fn now() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let stat = read("/proc/stat");
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0);
        let memory = read("/proc/meminfo");
        let total =
            memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
        Self {
            booted: UNIX_EPOCH.checked_add(Duration::from_secs(booted)).unwrap_or(UNIX_EPOCH),
            now: SystemTime::now(),
            users: read("/etc/passwd"),
            memory_kib: total.unwrap_or(1),
        }
    }

    fn user(&self, uid: &str) -> String {
        let named = self.users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid).then(|| name.to_owned())
        });
        named.unwrap_or_else(|| uid.to_owned())
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    uid: String,
    name: String,
    command: String,
    /// From the third field of /proc/PID/stat on.
    stat: Vec<String>,
    locked: bool,
}

impl Process {
    /// `None` for one that has ended.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).ok();
        let status = String::from_utf8_lossy(&read("status")?).into_owned();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next().map(str::to_owned)
        };
        let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
        // The name stands in parentheses and may hold any of them.
        let (front, rest) = stat.rsplit_once(')')?;
        let name = printable(front.split_once('(')?.1);
        let command = read("cmdline")?;
        let words: Vec<_> = command.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
        let command = if words.is_empty() {
            format!("[{name}]")
        } else {
            printable(&String::from_utf8_lossy(&words.join(&b' ')))
        };
        let stat = rest.split_ascii_whitespace().map(str::to_owned).collect();
        let locked = field("VmLck:").is_some_and(|size| size != "0");
        Some(Self { pid, uid: field("Uid:")?, name, command, stat, locked })
    }

    /// By proc_pid_stat(5)'s number.
    fn number(&self, field: usize) -> i64 {
        self.stat.get(field - 3).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn ticks(&self, field: usize) -> u64 {
        self.number(field).unsigned_abs()
    }

    fn cpu_seconds(&self) -> u64 {
        (self.ticks(14) + self.ticks(15)) / TICKS
    }

    fn started(&self, clock: &Clock) -> SystemTime {
        let since_boot = Duration::from_millis(self.ticks(22).saturating_mul(1000) / TICKS);
        clock.booted.checked_add(since_boot).unwrap_or(clock.booted)
    }

    fn age_seconds(&self, clock: &Clock) -> u64 {
        clock.now.duration_since(self.started(clock)).unwrap_or_default().as_secs()
    }

    /// In tenths of a percent.
    fn cpu_share(&self, clock: &Clock) -> u64 {
        self.cpu_seconds() * 1000 / self.age_seconds(clock).max(1)
    }

    fn terminal(&self) -> String {
        let device = self.ticks(7);
        let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
        match major {
            0 => "?".to_owned(),
            4 if minor < 64 => format!("tty{minor}"),
            4 => format!("ttyS{}", minor - 64),
            136..=143 => format!("pts/{}", minor + (major - 136) * 256),
            _ => format!("{major}:{minor}"),
        }
    }

    fn state(&self) -> String {
        let mut state = self.stat.first().cloned().unwrap_or_default();
        let nice = self.number(19);
        let marks = [
            (nice < 0, '<'),
            (nice > 0, 'N'),
            (self.locked, 'L'),
            (self.number(6) == i64::from(self.pid), 's'),
            (self.number(20) > 1, 'l'),
            (self.number(8) == self.number(5) && self.number(8) > 0, '+'),
        ];
        state.extend(marks.iter().filter(|(holds, _)| *holds).map(|(_, mark)| mark));
        state
    }
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `[DD-]HH:MM:SS`.
fn long_time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let time = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days == 0 { time } else { format!("{days}-{time}") }
}

/// The hour of a day, in UTC, or the date of an earlier day.
fn clock_time(moment: SystemTime, now: SystemTime) -> String {
    let text = runtime_oci::timestamp(moment);
    let today = runtime_oci::timestamp(now);
    let (date, time) = text.split_once('T').unwrap_or((&text, ""));
    if today.starts_with(date) {
        time.get(..5).unwrap_or("").to_owned()
    } else {
        date.get(5..).unwrap_or("").to_owned()
    }
}

impl Column {
    pub(crate) fn named(name: &str) -> Option<Self> {
        NAMED.iter().find(|(known, _)| *known == name).map(|(_, column)| *column)
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::UserName | Self::UserId => "UID",
            Self::User => "USER",
            Self::Pid => "PID",
            Self::Parent => "PPID",
            Self::Percent => "C",
            Self::CpuPercent => "%CPU",
            Self::MemoryPercent => "%MEM",
            Self::VirtualSize => "VSZ",
            Self::ResidentSize => "RSS",
            Self::StartTime => "STIME",
            Self::Start => "START",
            Self::Elapsed => "ELAPSED",
            Self::Terminal => "TTY",
            Self::State => "STAT",
            Self::Time | Self::ShortTime => "TIME",
            Self::Threads => "NLWP",
            Self::Nice => "NI",
            Self::Name | Self::Command => "CMD",
            Self::NameTitled | Self::Arguments => "COMMAND",
        }
    }

    pub(crate) fn is_number(self) -> bool {
        !matches!(
            self,
            Self::UserName
                | Self::User
                | Self::Terminal
                | Self::State
                | Self::Name
                | Self::NameTitled
                | Self::Command
                | Self::Arguments
        )
    }

    pub(crate) fn cell(self, process: &Process, clock: &Clock) -> String {
        let tenths = |value: u64| format!("{}.{}", value / 10, value % 10);
        let resident_kib = process.ticks(24) * page_kib();
        match self {
            Self::UserName | Self::User => clock.user(&process.uid),
            Self::UserId => process.uid.clone(),
            Self::Pid => process.pid.to_string(),
            Self::Parent => process.number(4).to_string(),
            Self::Percent => (process.cpu_share(clock) / 10).min(99).to_string(),
            Self::CpuPercent => tenths(process.cpu_share(clock)),
            Self::MemoryPercent => tenths(resident_kib * 1000 / clock.memory_kib.max(1)),
            Self::VirtualSize => (process.ticks(23) / 1024).to_string(),
            Self::ResidentSize => resident_kib.to_string(),
            Self::StartTime | Self::Start => clock_time(process.started(clock), clock.now),
            Self::Elapsed => long_time(process.age_seconds(clock)),
            Self::Terminal => process.terminal(),
            Self::State => process.state(),
            Self::Time => long_time(process.cpu_seconds()),
            Self::ShortTime => format!("{}:{:02}", process.cpu_seconds() / 60, process.cpu_seconds() % 60),
            Self::Threads => process.number(20).to_string(),
            Self::Nice => process.number(19).to_string(),
            Self::Name | Self::NameTitled => process.name.clone(),
            Self::Command | Self::Arguments => process.command.clone(),
        }
    }
}

fn page_kib() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
        / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_ps_does() {
        assert_eq!((long_time(61), long_time(90_061)), ("00:01:01".to_owned(), "1-01:01:01".to_owned()));
        let moment = UNIX_EPOCH + Duration::from_secs(3661);
        assert_eq!(clock_time(moment, moment), "01:01");
        assert_eq!(clock_time(moment, moment + Duration::from_secs(86_400)), "01-01");
    }

    #[test]
    fn our_own_process_is_read() {
        let process = Process::read(i32::try_from(std::process::id()).expect("pid")).expect("our own");
        let clock = Clock::now();
        for (_, column) in NAMED {
            assert!(!column.cell(&process, &clock).is_empty(), "{column:?}");
        }
    }
}
