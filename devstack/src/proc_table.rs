//! What the system's process table says: `/proc` on Linux, `ps` elsewhere.

use std::fs;
use std::process::Command;

/// Text that identifies one life of a process id; `None` when it is dead or a zombie.
pub(crate) fn start_time(pid: u32) -> Option<String> {
    if cfg!(target_os = "linux") {
        let stat = Stat::read(pid)?;
        // A killed Java is a zombie while its other threads still hold its ports.
        let dead = matches!(stat.state, 'Z' | 'X') && thread_count(pid) <= 1;
        if dead {
            return None;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        return Some(format!("{}:{}", boot.trim(), stat.start_ticks));
    }
    let started = ps(pid, "stat=,lstart=")?;
    (!started.starts_with('Z')).then(|| started.split_once(' ').map(|(_, at)| at.to_owned()))?
}

/// False for a process that is gone or only waits for its parent to take note of its end.
pub fn alive(pid: u32) -> bool {
    start_time(pid).is_some()
}

/// True while the process is stopped by a signal.
pub fn paused(pid: u32) -> bool {
    if cfg!(target_os = "linux") {
        return Stat::read(pid).is_some_and(|stat| stat.state == 'T');
    }
    ps(pid, "stat=").is_some_and(|state| state.starts_with('T'))
}

/// Program and arguments with blanks between them; empty for a dead process or a zombie.
pub(crate) fn command_line(pid: u32) -> String {
    if cfg!(target_os = "linux") {
        let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        return String::from_utf8_lossy(&raw).replace('\0', " ");
    }
    ps(pid, "command=").unwrap_or_default()
}

pub(crate) fn children(parent: u32) -> Vec<u32> {
    if cfg!(target_os = "linux") {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        return pids
            .filter(|&pid| Stat::read(pid).is_some_and(|stat| stat.parent == parent))
            .collect();
    }
    let output = Command::new("pgrep").args(["-P", &parent.to_string()]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Proportional memory: a page that `PostgreSQL`'s processes share is counted once among them.
pub(crate) fn memory_bytes(pid: u32) -> Option<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn thread_count(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

fn ps(pid: u32, columns: &str) -> Option<String> {
    let output = Command::new("ps").args(["-o", columns, "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (!text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// The fields of `/proc/PID/stat` that are needed here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: u32,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The second field is the program's name in parentheses and may hold anything, so fields
    /// are counted from the last closing parenthesis.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, state: char) {
        let text = format!(
            "77 ({name}) {state} 42 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 50 18446744073709551615"
        );
        let expected = Stat { state, parent: 42, start_ticks: 987_654 };
        assert_eq!(Stat::parse(&text), Some(expected), "{text}");
    }

    #[test]
    fn a_program_name_may_hold_blanks_and_parentheses() {
        check("java", 'S');
        check("postgres: io worker 1", 'T');
        check("odd) R 1 (name", 'Z');
    }

    #[test]
    fn a_short_line_is_refused() {
        assert_eq!(Stat::parse("77 (java) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_is_alive_and_not_paused() {
        let pid = std::process::id();
        assert!(alive(pid));
        assert_eq!(start_time(pid), start_time(pid));
        assert!(!paused(pid));
    }
}
