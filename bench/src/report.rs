//! Where results go.

use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use crate::cli::{Output, print};
use crate::servers::Servers;

/// Writes a result: as JSON to its file, and for people, or as JSON when asked, to standard output.
pub(crate) fn write(
    servers: &Servers,
    output: &Output,
    name: &str,
    result: &impl Serialize,
    table: &str,
) -> anyhow::Result<()> {
    let path = match &output.out {
        Some(path) => path.clone(),
        None => directory(servers)?.join(format!("{name}.json")),
    };
    let text = serde_json::to_string_pretty(result)?;
    std::fs::write(&path, format!("{text}\n")).with_context(|| path.display().to_string())?;
    servers.progress.line(&format!("  written to {}", path.display()));
    print(if output.json { &text } else { table });
    Ok(())
}

/// Where results and what belongs to them are kept.
pub(crate) fn directory(servers: &Servers) -> anyhow::Result<PathBuf> {
    let programs = &servers.stack.places().programs;
    let target = programs.parent().context("programs are built into a directory of a profile")?;
    let directory = target.join("bench");
    std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory)
}
