//! What a process has used, as the system counts it.

use std::process::Command;

use anyhow::Context;

/// Processor time, user and system, in microseconds from the process's start.
pub(crate) fn cpu_micros(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{path} is not there"))?;
    let ticks = ticks(&text).with_context(|| format!("{path} cannot be read"))?;
    Ok(ticks * 1_000_000 / ticks_per_second()?)
}

fn ticks_per_second() -> anyhow::Result<u64> {
    let output = Command::new("getconf").arg("CLK_TCK").output().context("cannot run getconf")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    text.parse().with_context(|| format!("getconf CLK_TCK says {text:?}"))
}

/// The most memory the process ever held, in KiB.
pub(crate) fn peak_kib(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{path} is not there"))?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
    kib.with_context(|| format!("{path} does not tell the peak of memory"))
}

/// User and system time. The name before them may hold blanks and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_time_are_found_behind_any_name() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 11 22 33 44 500 60 7 8 20 0 3 0";
        assert_eq!(ticks(stat), Some(560));
        assert_eq!(ticks("42 (a) S 1"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(peak_kib(std::process::id()).unwrap() > 100);
        assert!(peak_kib(u32::MAX).is_err());
        assert!(cpu_micros(u32::MAX).is_err());
        assert!((1..=1_000_000).contains(&ticks_per_second().unwrap()));
    }
}
