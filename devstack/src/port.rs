//! Who listens on a TCP port, so that "port in use" comes with a name.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::proc_table::command_line;

/// The process that listens on a port, as far as this user may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub pid: u32,
    pub command: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// Longest command line worth showing: a Java class path would hide the message.
const COMMAND_CHARS_MAX: usize = 160;

/// True when something listens on the port of the loopback address.
pub(crate) async fn in_use(port: u16) -> bool {
    tokio::net::TcpListener::bind((crate::addresses::HOST, port)).await.is_err()
}

/// The listener's process, or `None` when it belongs to another user or cannot be found.
pub(crate) fn owner(port: u16) -> Option<Owner> {
    if cfg!(target_os = "linux") { owner_from_proc(port) } else { owner_from_lsof(port) }
}

fn owner_from_proc(port: u16) -> Option<Owner> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).ok());
    let inode = tables.iter().flatten().find_map(|table| listening_inode(table, port))?;
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        let holds = |path: &Path| fs::read_link(path).is_ok_and(|to| to.as_os_str() == &*wanted);
        if descriptors.flatten().any(|descriptor| holds(&descriptor.path())) {
            return Some(Owner { pid, command: readable_command(&command_line(pid)) });
        }
    }
    None
}

/// The socket inode of the listener on `port` in the text of `/proc/net/tcp` or `tcp6`.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (_, local_port) = fields.nth(1)?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let listens = state == LISTEN && u16::from_str_radix(local_port, 16) == Ok(port);
        listens.then(|| fields.nth(5)?.parse().ok()).flatten()
    })
}

fn owner_from_lsof(port: u16) -> Option<Owner> {
    let output = Command::new("lsof")
        .args(["-nP", "-t", &format!("-iTCP:{port}"), "-sTCP:LISTEN"])
        .output()
        .ok()?;
    let pid = String::from_utf8(output.stdout).ok()?.lines().next()?.trim().parse().ok()?;
    Some(Owner { pid, command: readable_command(&command_line(pid)) })
}

fn readable_command(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(COMMAND_CHARS_MAX) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000 65534        0 4711 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C3A2 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 0 10 -1
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0 100 0 0 10 0
";

    fn check(port: u16, inode: Option<u64>) {
        assert_eq!(listening_inode(TABLE, port), inode, "port {port}");
    }

    #[test]
    fn only_a_listener_owns_a_port() {
        check(5432, Some(4711));
        check(22, Some(99));
        check(8080, None); // a connection, not a listener
        check(50082, None); // the remote end of it
        check(1, None);
    }

    #[test]
    fn an_ipv6_listener_is_found_too() {
        let table = "header\n 0: 00000000000000000000000000000000:2383 00000000000000000000000000000000:0000 0A \
                     00000000:00000000 00:00000000 00000000 0 0 77 1 0 100 0 0 10 0\n";
        assert_eq!(listening_inode(table, 9091), Some(77));
    }

    #[tokio::test]
    async fn the_owner_of_our_own_listener_is_this_process() {
        let listener = tokio::net::TcpListener::bind((crate::addresses::HOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(in_use(port).await);
        assert_eq!(owner(port).map(|owner| owner.pid), Some(std::process::id()));
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        let command = readable_command(&"java -cp ".repeat(50));
        assert!(command.starts_with("java -cp java") && command.ends_with(" ..."), "{command}");
        assert_eq!(readable_command("감시 "), "감시");
    }
}
