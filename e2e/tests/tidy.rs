//! The repository's own rules, as far as a program can see them. Each failure names the file and
//! what to do.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 400;
/// Crates that are programs people run by settings of their own.
const PROGRAMS: [&str; 4] = ["cdc-consumer", "migrate", "post-api", "user-api"];
/// Words a message may begin with although they have a capital.
const NAMES: [&str; 6] = ["Avro", "Connect", "Debezium", "Java", "Kafka", "Maven"];

#[test]
fn files_are_short_and_hold_no_unfinished_work() {
    // In two halves, so that this file does not hold what it looks for.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME")];
    report(files("", ".rs").iter().flat_map(|(name, text)| {
        let lines = text.lines().count();
        let long = (lines > FILE_LINES_MAX)
            .then(|| format!("{name} has {lines} lines: split it, {FILE_LINES_MAX} are allowed"));
        let marked = marks.into_iter().filter(|mark| text.contains(mark));
        long.into_iter().chain(marked.map(move |mark| format!("{name} holds a {mark}: do it now")))
    }));
}

#[test]
fn messages_begin_in_lower_case_and_end_without_a_full_stop() {
    let mut wrong = Vec::new();
    for (name, text) in files("", ".rs") {
        let source = text.split("#[cfg(test)]").next().unwrap();
        let errors =
            source.split("#[error(").skip(1).filter_map(|rest| literals(rest).first().copied());
        let logs = ["trace!(", "debug!(", "info!(", "warn!(", "error!("];
        let logs = logs.map(|level| format!("tracing::{level}"));
        // The message is the last literal that is not a field's value.
        let logs = logs.iter().flat_map(|call| source.split(call.as_str()).skip(1));
        for message in errors.chain(logs.filter_map(|rest| literals(rest).last().copied())) {
            let word = message.split([' ', ',', ':', '\'']).next().unwrap();
            let capital = word.chars().next().is_some_and(char::is_uppercase);
            let is_name = NAMES.contains(&word) || word.chars().skip(1).any(char::is_uppercase);
            if (capital && !is_name) || message.ends_with('.') {
                wrong.push(format!("{name}: write {message:?} as a fragment, `like this one`"));
            }
        }
    }
    report(wrong);
}

#[test]
fn every_setting_of_a_program_is_documented() {
    let documents = [".env.example", "docs/operations.md"].map(read).concat();
    let sources = PROGRAMS.iter().flat_map(|program| files(&format!("{program}/src"), ".rs"));
    report(sources.flat_map(|(name, text)| {
        let settings = text.split("env = \"").skip(1);
        let settings = settings.filter_map(|rest| rest.split('"').next().map(str::to_owned));
        let unknown = settings.filter(|setting| !documents.contains(setting.as_str()));
        let text =
            |setting| format!("{setting} ({name}): add it to .env.example or docs/operations.md");
        unknown.map(text).collect::<Vec<_>>()
    }));
}

#[test]
fn every_module_migration_and_decision_is_named_where_people_look() {
    let architecture = read("ARCHITECTURE.md");
    let documents = files("docs", ".md").into_iter().map(|(_, text)| text).collect::<String>();
    let everywhere = format!("{architecture}{documents}");
    let decisions = read("docs/adr/README.md");
    let missing = |directory: &str, extension: &str, text: &str, place: &str| -> Vec<String> {
        let all = files(directory, extension).into_iter().map(|(name, _)| name);
        let file =
            |name: &String| Path::new(name).file_name().unwrap().to_str().unwrap().to_owned();
        let unnamed = all.filter(|name| !text.contains(&file(name)));
        unnamed.map(|name| format!("{name}: say in {place} what it is for")).collect()
    };
    report(
        [
            missing("cdc-consumer/src", ".rs", &architecture, "ARCHITECTURE.md"),
            missing("migrations", ".sql", &everywhere, "ARCHITECTURE.md"),
            missing("docs/adr", ".md", &format!("{decisions}README.md"), "docs/adr/README.md"),
        ]
        .concat(),
    );
}

#[test]
fn the_api_document_tells_of_every_route_and_problem_and_of_no_other() {
    let sources = ["user-api/src", "post-api/src", "service/src"].map(|name| files(name, ".rs"));
    let (mut routes, mut problems) = (BTreeSet::new(), BTreeSet::new());
    for (_, text) in sources.concat() {
        let source = text.split("#[cfg(test)]").next().unwrap();
        for route in source.split(".route(").skip(1) {
            // The last one ends with its function.
            let route = route.split("\n}").next().unwrap();
            let methods = ["get", "post", "put", "patch", "delete"].into_iter();
            let methods = methods.filter(|method| route.contains(&format!("{method}(")));
            let path = literals(route)[0];
            routes.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
        }
        let made = source.split("::new(").skip(1).map(str::trim_start);
        let made = made.filter(|rest| rest.starts_with("StatusCode::"));
        problems.extend(made.map(|rest| literals(rest)[0].to_owned()));
    }
    let document = read("docs/api.md");
    let cell =
        |line: &str, number| Some(line.split('|').nth(number)?.split('`').nth(1)?.to_owned());
    let told: BTreeSet<_> = document.lines().filter_map(|line| cell(line, 1)).collect();
    assert_eq!(told, routes);
    let kinds =
        document.split("### Errors").nth(1).unwrap().lines().filter_map(|line| cell(line, 2));
    assert_eq!(kinds.collect::<BTreeSet<_>>(), problems);
}

#[test]
fn each_test_that_a_document_names_stands_in_the_file_it_links_to() {
    let mut named = 0;
    let mut wrong = Vec::new();
    for (name, text) in files("docs", ".md") {
        // `test` ([file](path))
        for (before, after) in text.split("` ([").zip(text.split("` ([").skip(1)) {
            let test = before.rsplit('`').next().unwrap();
            let Some(link) = after.split_once("](").map(|(_, rest)| rest) else { continue };
            let link = link.split(')').next().unwrap();
            if Path::new(link).extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            named += 1;
            let path = root().join(&name).parent().unwrap().join(link);
            let source = fs::read_to_string(path).unwrap_or_default();
            if !source.contains(&format!("fn {test}(")) {
                wrong.push(format!("{name}: {test} is not in {link}"));
            }
        }
    }
    assert!(named > 0, "no document names a test: mend this test");
    report(wrong);
}

/// String literals up to the closing bracket, without a field's value or an argument's argument.
fn literals(rest: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut depth, mut at) = (1, 0);
    while depth > 0 && at < rest.len() {
        match rest.as_bytes()[at] {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b'"' => {
                let start = at + 1;
                at = start;
                while at < rest.len() && rest.as_bytes()[at] != b'"' {
                    at += if rest.as_bytes()[at] == b'\\' { 2 } else { 1 };
                }
                if depth == 1 && !rest[..start - 1].trim_end().ends_with('=') {
                    found.push(&rest[start..at]);
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Names (from the root) and texts of the files below a directory; build products are left out.
fn files(directory: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                open.push(path);
            } else if name.ends_with(extension) {
                let text = fs::read_to_string(&path).unwrap();
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, text));
            }
        }
    }
    assert!(!found.is_empty(), "no {extension} file below {directory:?}: mend this test");
    found
}

fn read(name: &str) -> String {
    let what = |error| panic!("{name} is missing ({error}); the rules are checked against it");
    fs::read_to_string(root().join(name)).unwrap_or_else(what)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

#[track_caller]
fn report(wrong: impl IntoIterator<Item = String>) {
    let wrong: Vec<String> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
