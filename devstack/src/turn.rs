//! The directories of a stack's state, and who may change it now: programs that act on the same thing at the
//! same time wait for each other.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::settings::running_as_root;
use crate::stack::{Stack, StackError};

impl Stack {
    pub(crate) fn create_directories(&self) -> Result<(), StackError> {
        for name in ["classes", "log", "run"] {
            let directory = self.places.state.join(name);
            make_directory(&directory).map_err(StackError::file(&directory))?;
        }
        Ok(())
    }

    /// Programs that act on the same thing at the same time wait for each other.
    pub(crate) async fn take_turn(&self, name: &str) -> Result<File, StackError> {
        let path = self.places.state.join("run").join(format!("{name}.lock"));
        loop {
            self.create_directories()?;
            let file = File::create(&path).map_err(StackError::file(&path))?;
            let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
            let locked = locked.expect("locking a file does not panic");
            let file = locked.map_err(StackError::file(&path))?;
            // Who held it may have deleted it with the stack's state; then a newcomer locks another file.
            if is_at(&file, &path) {
                return Ok(file);
            }
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let (ours, theirs) = (file.metadata().map(id), fs::metadata(path).map(id));
    matches!((ours, theirs), (Ok(ours), Ok(theirs)) if ours == theirs)
}

/// Root's `PostgreSQL` runs as another user, who must be able to enter what root makes, whatever root's umask.
fn make_directory(path: &Path) -> io::Result<()> {
    let ancestors = path.ancestors().take_while(|directory| !directory.exists());
    let absent: Vec<&Path> = ancestors.collect();
    fs::create_dir_all(path)?;
    if !running_as_root() {
        return Ok(());
    }
    let open = |directory: &&Path| fs::set_permissions(directory, Permissions::from_mode(0o755));
    absent.iter().try_for_each(open)
}

#[cfg(test)]
mod tests {
    use rustix::fs::Mode;
    use rustix::process::umask;

    use tokio::time::sleep;

    use crate::settings::Settings;
    use crate::stack::POLL_INTERVAL;

    use super::*;

    fn stack(state: &Path) -> Stack {
        let mut settings = Settings::from_environment();
        settings.state = Some(state.to_path_buf());
        Stack::new(&settings).unwrap()
    }

    /// Whether somebody waits for the lock on this file; Linux alone tells.
    fn awaited(file: &File) -> bool {
        let inode = format!(":{} ", file.metadata().unwrap().ino());
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains("->") && line.contains(&inode))
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_turn_is_one_programs_also_when_its_file_was_deleted_with_the_state() {
        let directory = tempfile::tempdir().unwrap();
        let stack = stack(directory.path());
        let first = stack.take_turn("stack").await.unwrap();
        let waiting = tokio::spawn({
            let stack = stack.clone();
            async move { stack.take_turn("stack").await.unwrap() }
        });
        while !awaited(&first) {
            sleep(POLL_INTERVAL / 10).await;
        }
        fs::remove_dir_all(directory.path().join("run")).unwrap();
        drop(first);
        let second = waiting.await.unwrap();
        let newcomer = File::create(directory.path().join("run/stack.lock")).unwrap();
        assert!(newcomer.try_lock().is_err(), "two programs have the turn");
        drop(second);
        newcomer.try_lock().unwrap();
    }

    #[test]
    fn directories_that_root_makes_can_be_entered_whatever_its_umask() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("a/b");
        let before = umask(Mode::RWXG | Mode::RWXO);
        let created = stack(&state).create_directories();
        umask(before);
        created.unwrap();
        let wanted = if running_as_root() { 0o755 } else { 0o700 };
        for path in [&state, state.parent().unwrap(), &state.join("run")] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, wanted, "{}", path.display());
        }
    }
}
