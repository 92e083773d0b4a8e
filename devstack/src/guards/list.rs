//! The list of guards, `guards/*.toml`: what each promises, how to take it away, and which tests must
//! then fail.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

/// Directory of the list, from the root of the clone.
const DIRECTORY: &str = "guards";

/// A guard of the consumer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guard {
    pub(crate) name: String,
    /// What holds while the guard is there, as a sentence.
    pub(crate) promise: String,
    /// Where the guard stands, from the root of the clone.
    file: String,
    /// The guard's text, which stands there exactly once.
    find: String,
    /// What stands there without the guard. It compiles.
    replace: String,
    /// Unit tests that must fail without the guard, as `module::tests::name`.
    #[serde(default)]
    unit: Vec<String>,
    /// Integration tests that must fail without it, as `module::name`.
    #[serde(default)]
    integration: Vec<String>,
    /// The file of the list it was read from, for messages.
    #[serde(skip)]
    list: String,
}

/// A file with its guard and without.
#[derive(Debug)]
pub(crate) struct Removal {
    pub(crate) path: PathBuf,
    pub(crate) whole: String,
    pub(crate) without: String,
}

/// Which test program holds a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Program {
    Unit,
    Integration,
}

/// A test by its full name in its program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Test {
    pub(crate) program: Program,
    pub(crate) name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListFile {
    guard: Vec<Guard>,
}

impl Guard {
    /// The tests that must notice.
    pub(crate) fn tests(&self) -> Vec<Test> {
        let of = |program, names: &[String]| {
            names.iter().map(|name| Test { program, name: name.clone() }).collect::<Vec<_>>()
        };
        [of(Program::Unit, &self.unit), of(Program::Integration, &self.integration)].concat()
    }

    /// What its removal does to the clone at `root`.
    pub(crate) fn removal(&self, root: &Path) -> anyhow::Result<Removal> {
        let Self { name, file, find, list, .. } = self;
        let path = self.path(root);
        let whole = fs::read_to_string(&path).with_context(|| {
            format!("guard {name}: {file} cannot be read; if it moved, update {list}")
        })?;
        let without = self.taken_from(&whole).with_context(|| {
            let count = whole.matches(find.as_str()).count();
            format!(
                "guard {name}: its text stands {count} times in {file}, not once: the guard moved, \
                 update {list}"
            )
        })?;
        Ok(Removal { path, whole, without })
    }

    /// The file it stands in, in the clone at `root`.
    pub(crate) fn path(&self, root: &Path) -> PathBuf {
        root.join(&self.file)
    }

    /// The text of its file without it; none if it does not stand there exactly once.
    pub(crate) fn taken_from(&self, text: &str) -> Option<String> {
        let once = text.matches(self.find.as_str()).count() == 1;
        once.then(|| text.replace(self.find.as_str(), &self.replace))
    }

    fn faults(&self, root: &Path) -> Vec<String> {
        let mut faults = Vec::new();
        let Self { name, list, .. } = self;
        if let Err(error) = self.removal(root) {
            faults.push(error.to_string());
        }
        if self.find == self.replace {
            faults.push(format!("guard {name}: find and replace are the same, mend {list}"));
        }
        if self.tests().is_empty() {
            faults.push(format!("guard {name}: {list} names no test that notices its removal"));
        }
        let unknown = self.tests().into_iter().filter(|test| test.source(root).is_none());
        faults
            .extend(unknown.map(|test| {
                format!("guard {name}: there is no test {}, update {list}", test.name)
            }));
        faults
    }
}

impl Test {
    /// The text of the file that holds the test.
    fn source(&self, root: &Path) -> Option<String> {
        let (module, function) = self.name.rsplit_once("::")?;
        let (directory, module) = match self.program {
            Program::Unit => ("cdc-consumer/src", module.strip_suffix("::tests")?),
            Program::Integration => ("cdc-consumer/tests/main", module),
        };
        let module = module.replace("::", "/");
        let files = [format!("{module}.rs"), format!("{module}/mod.rs")];
        let mut texts = files
            .iter()
            .filter_map(|file| fs::read_to_string(root.join(directory).join(file)).ok());
        texts.find(|text| text.contains(&format!("fn {function}(")))
    }

    /// Whether its file starts the consumer as a program of its own, from where cargo built it. The
    /// next build must not replace that program meanwhile.
    pub(crate) fn starts_programs(&self, root: &Path) -> bool {
        self.source(root).is_some_and(|text| text.contains("Process::start"))
    }
}

/// Reads the list of the clone at `root`, sorted by file, in the files' order.
pub(crate) fn read(root: &Path) -> anyhow::Result<Vec<Guard>> {
    let directory = root.join(DIRECTORY);
    let entries = fs::read_dir(&directory)
        .with_context(|| format!("cannot read the list of guards in {}", directory.display()))?;
    let mut files = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .context("cannot read the list of guards")?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut guards = Vec::new();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let list = format!("{DIRECTORY}/{name}");
        let text = fs::read_to_string(&path).with_context(|| list.clone())?;
        let file: ListFile = toml::from_str(&text).with_context(|| list.clone())?;
        guards.extend(file.guard.into_iter().map(|guard| Guard { list: list.clone(), ..guard }));
    }
    anyhow::ensure!(!guards.is_empty(), "{} holds no guards", directory.display());
    Ok(guards)
}

/// What is wrong with the list, seen without building anything: a guard that moved, a test that is
/// gone, a name used twice.
pub(crate) fn faults(guards: &[Guard], root: &Path) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let twice = guards.iter().filter(|guard| !seen.insert(&guard.name));
    let twice = twice.map(|guard| format!("guard {}: the name is used twice", guard.name));
    guards.iter().flat_map(|guard| guard.faults(root)).chain(twice.collect::<Vec<_>>()).collect()
}

/// The guards of these names, all without any.
pub(crate) fn select(guards: Vec<Guard>, only: &[String]) -> anyhow::Result<Vec<Guard>> {
    let unknown = only.iter().find(|name| guards.iter().all(|guard| guard.name != **name));
    if let Some(name) = unknown {
        anyhow::bail!("there is no guard {name:?}; ./dev guards --list shows them");
    }
    let wanted = |guard: &Guard| only.is_empty() || only.contains(&guard.name);
    Ok(guards.into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
    }

    fn guard(find: &str, test: &str) -> Guard {
        Guard {
            name: "sample".to_owned(),
            promise: "A sample.".to_owned(),
            file: "cdc-consumer/src/fence.rs".to_owned(),
            find: find.to_owned(),
            replace: String::new(),
            unit: vec![],
            integration: vec![test.to_owned()],
            list: "guards/sample.toml".to_owned(),
        }
    }

    #[test]
    fn every_guard_of_the_list_is_in_the_sources_once_and_names_tests_that_exist() {
        let guards = read(root()).unwrap();
        assert_eq!(faults(&guards, root()), Vec::<String>::new());
    }

    #[test]
    fn a_guard_that_moved_and_a_test_that_is_gone_are_named() {
        let test = "commits::a_commit_that_never_arrived_is_repeated";
        let check = |find: &str, test: &str, expected: &str| {
            let found = faults(&[guard(find, test)], root()).join("\n");
            assert!(found.contains(expected), "{expected}: {found}");
        };
        check("and o.epoch = never", test, "stands 0 times in cdc-consumer/src/fence.rs");
        check("epoch", test, "the guard moved, update guards/sample.toml");
        check(
            "if moved.len() != claims.len()",
            "commits::no_such_test",
            "no test commits::no_such_test",
        );
        let good = guard("if moved.len() != claims.len()", test);
        assert_eq!(faults(std::slice::from_ref(&good), root()), Vec::<String>::new());
        let twice = faults(&[good.clone(), good], root()).join("\n");
        assert!(twice.contains("used twice"), "{twice}");
    }

    #[test]
    fn only_the_guards_asked_for_are_taken() {
        let guards = || read(root()).unwrap();
        let name = guards()[1].name.clone();
        let selected = select(guards(), std::slice::from_ref(&name)).unwrap();
        assert_eq!(selected.iter().map(|guard| &guard.name).collect::<Vec<_>>(), [&name]);
        assert_eq!(select(guards(), &[]).unwrap().len(), guards().len());
        let error = select(guards(), &["no-such-guard".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("no-such-guard"), "{error}");
    }
}
