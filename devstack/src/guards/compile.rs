//! Whether the sources still compile without each guard. A removal that does not shows nothing, and
//! without this it is found only when all guards are tried, which takes half an hour.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use devstack::Progress;

use super::list::{Guard, Removal};
use super::report::Finding;
use super::workshop::{self, Workshop};

/// Guards that are taken out together, and the texts of their files without them.
#[derive(Debug)]
struct Group<'a> {
    guards: Vec<&'a Guard>,
    texts: BTreeMap<PathBuf, String>,
}

/// The guards without which the sources do not compile.
pub(super) async fn broken(
    guards: &[Guard],
    workshop: &Workshop,
    progress: &Progress,
) -> anyhow::Result<Vec<Finding>> {
    let groups = groups(guards, &workshop.tree())?;
    let step = progress.step("guards", "checking that the sources compile without them");
    let mut broken = Vec::new();
    for group in &groups {
        if workshop.check(&group.texts).await?.is_ok() {
            continue;
        }
        // Some of them, or only all of them together.
        for (done, guard) in (0..).zip(&group.guards) {
            step.message(format!("checking alone: {}", guard.name));
            step.count(done, group.guards.len() as u64);
            let alone = Group::of(guard, &workshop.tree())?;
            if let Err(said) = workshop.check(&alone.texts).await? {
                broken.push(Finding::broken(guard, said));
            }
        }
    }
    step.done(&format!("{} of {} can be taken out", guards.len() - broken.len(), guards.len()));
    Ok(broken)
}

/// Groups in which each guard's text is still there once the others are taken out.
fn groups<'a>(guards: &'a [Guard], tree: &Path) -> anyhow::Result<Vec<Group<'a>>> {
    let mut groups: Vec<Group> = Vec::new();
    for guard in guards {
        let mut placed = false;
        for group in &mut groups {
            placed = placed || group.add(guard, tree)?;
        }
        if !placed {
            groups.push(Group::of(guard, tree)?);
        }
    }
    Ok(groups)
}

impl<'a> Group<'a> {
    fn of(guard: &'a Guard, tree: &Path) -> anyhow::Result<Self> {
        let Removal { path, without, .. } = guard.removal(tree)?;
        Ok(Self { guards: vec![guard], texts: BTreeMap::from([(path, without)]) })
    }

    /// Takes one more out; false if its text is not there once, with the others taken out.
    fn add(&mut self, guard: &'a Guard, tree: &Path) -> anyhow::Result<bool> {
        let path = guard.path(tree);
        let without = match self.texts.get(&path) {
            Some(text) => guard.taken_from(text),
            None => guard.taken_from(&workshop::read(&path)?),
        };
        let Some(without) = without else { return Ok(false) };
        self.texts.insert(path, without);
        self.guards.push(guard);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::list;
    use super::*;

    #[test]
    fn each_guard_is_in_one_group_and_not_with_one_of_the_same_text() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let guards = list::read(root).unwrap();
        let groups = groups(&guards, root).unwrap();
        let names = |group: &Group| group.guards.iter().map(|guard| guard.name.clone()).collect();
        let names: Vec<Vec<String>> = groups.iter().map(names).collect();
        assert_eq!(names.concat().len(), guards.len());
        let group_of = |name: &str| names.iter().position(|group| group.iter().any(|n| n == name));
        assert_ne!(group_of("settled-epoch"), group_of("settled-offset"), "they share a line");
        assert!(groups.len() < guards.len() / 10, "{names:?}");
    }
}
