//! The targets of cdc-consumer's own tests, for a fuzzer. `./dev fuzz` runs them.

#[path = "../../cdc-consumer/tests/main/hostile/targets.rs"]
#[allow(dead_code, reason = "the seeds are made from the rest, by the tests of cdc-consumer")]
mod targets;

/// Tries bytes against the target of this name; panics when something does not hold.
pub fn against(name: &str, data: &[u8]) {
    let target = targets::TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.expect("a target of the list");
    target(data);
}
