//! The directories of a stack's state, and who may change it now: programs that act on the same thing at the
//! same time wait for each other.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::stack::{Stack, StackError};

impl Stack {
    pub(crate) fn create_directories(&self) -> Result<(), StackError> {
        for name in ["classes", "log", "run"] {
            let directory = self.places.state.join(name);
            fs::create_dir_all(&directory).map_err(StackError::file(&directory))?;
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

#[cfg(test)]
mod tests {

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
}
