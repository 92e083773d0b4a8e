//! The script `./dev`, on machines of all kinds.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::replay::{ended, program, temporary};

/// What the script itself uses, and no compiler, Maven or Rust.
const TOOLS: [&str; 8] = ["awk", "dirname", "env", "grep", "readlink", "sed", "sort", "tr"];

#[tokio::test]
async fn what_is_missing_is_named_although_it_cannot_be_installed() {
    let (root, bin) = clone();
    program(&bin.join("id"), "echo 0");
    program(&bin.join("apt-get"), "echo \"$@\" >> \"${0%/*}/asked\"; [ \"$1\" = update ]");
    // Debian 12 has no rustup; other packages mention it.
    program(&bin.join("apt-cache"), "[ \"$2\" = rustup ] || echo \"Package: $2\"");

    let done = ended(dev(&root, &bin).arg("up").output().await.unwrap());
    let asked = fs::read_to_string(bin.join("asked")).unwrap();
    let hint = done.text.lines().find(|line| line.contains("as root:")).unwrap_or_default();
    assert_eq!(done.code, Some(1), "{}", done.text);
    assert!(done.text.contains("* Rust's cargo"), "{}", done.text);
    assert!(done.text.contains("* Maven"), "{}", done.text);
    for packages in [asked.as_str(), hint] {
        assert!(packages.contains("maven") && !packages.contains("rustup"), "{packages}");
    }
    fs::remove_dir_all(root).unwrap();
}

#[tokio::test]
async fn no_proxy_stands_before_the_local_stack() {
    let (root, bin) = clone();
    for tool in ["cargo", "cc", "curl", "make", "mvn", "perl", "pkg-config", "tar", "xz"] {
        program(&bin.join(tool), "");
    }
    fs::create_dir_all(root.join("java/bin")).unwrap();
    fs::create_dir_all(root.join("target/debug")).unwrap();
    program(&root.join("java/bin/java"), "");
    fs::write(root.join("java/release"), "JAVA_VERSION=\"21.0.1\"\n").unwrap();
    program(&root.join("target/debug/devstack"), "echo \"$NO_PROXY $no_proxy\"");

    let mut command = dev(&root, &bin);
    command.arg("status").env("JAVA_HOME", root.join("java")).env_remove("CARGO_TARGET_DIR");
    let hosts = "127.0.0.1,localhost,example.com";
    // Also in a shell that has been given the addresses, which are printed with these.
    for (upper, lower) in [("example.com", ""), ("", "example.com"), (hosts, hosts)] {
        command.env("NO_PROXY", upper).env("no_proxy", lower);
        let done = ended(command.output().await.unwrap());
        assert_eq!((done.code, done.text.trim()), (Some(0), format!("{hosts} {hosts}").as_str()));
    }
    fs::remove_dir_all(root).unwrap();
}

/// A directory with the script alone, and one for the programs it may find.
fn clone() -> (PathBuf, PathBuf) {
    let (root, repository) = (temporary(), Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    let bin = root.join("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy(repository.join("dev"), root.join("dev")).unwrap();
    for tool in TOOLS {
        symlink(Path::new("/usr/bin").join(tool), bin.join(tool)).unwrap();
    }
    (root, bin)
}

fn dev(root: &Path, bin: &Path) -> Command {
    let mut command = Command::new("/bin/bash");
    command.arg(root.join("dev")).env("PATH", bin).env("HOME", root);
    command
}
