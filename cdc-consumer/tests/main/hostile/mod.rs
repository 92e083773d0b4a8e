//! Hostile bytes, without servers: what was found before, and changes of it made at random. The fuzzer
//! (`./dev fuzz`) tries the same targets for longer, and leaves what it finds beside the seeds.
//!
//! `CDC_SEED=n` replays one random change. `CDC_WRITE_SEEDS=1` writes the seeds after a change of the
//! encoder.

mod seeds;
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use cdc_consumer::avro::Reader;
use cdc_consumer::schema;
use cdc_consumer::skip::Skip;

use crate::harness::optional_setting;
use crate::histories::generator::Random;
use crate::histories::{Replay, seeds};

use targets::{SHAPES_SCHEMA, TARGETS, conversion_count};

const CHANGES: u64 = 30_000;
/// For one input. All of them together take seconds, also without optimisation.
const INPUT_LIMIT: Duration = Duration::from_mins(1);

/// The inputs of a target: seeds, and what crashed it once.
fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = directory(target);
    let files = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("a directory entry").path());
    let mut inputs: Vec<_> =
        files.map(|file| (file.clone(), fs::read(file).expect("a readable seed"))).collect();
    inputs.sort();
    inputs
}

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target)
}

/// Names the input when a target fails on it.
struct Named<'a>(&'a Path);

impl Drop for Named<'_> {
    #[expect(clippy::print_stderr, reason = "what a failed test has to say")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input is {}", self.0.display());
        }
    }
}

#[test]
fn every_seed_and_whatever_the_fuzzer_found_is_survived() {
    for (name, target) in TARGETS {
        let inputs = inputs(name);
        assert!(!inputs.is_empty(), "{name} has no seeds");
        for (file, data) in inputs {
            let _named = Named(&file);
            let (done, ended) = mpsc::channel();
            let run = thread::spawn(move || {
                target(&data);
                done.send(()).ok();
            });
            let ended = ended.recv_timeout(INPUT_LIMIT);
            assert_ne!(ended, Err(RecvTimeoutError::Timeout), "{name} takes too long");
            run.join().expect("it survived");
        }
    }
}

#[test]
fn random_changes_of_the_seeds_are_survived() {
    let all: Vec<_> = TARGETS.iter().map(|(name, target)| (target, inputs(name))).collect();
    for seed in seeds(CHANGES) {
        let _replay = Replay(seed);
        let mut random = Random::new(seed);
        for (target, inputs) in &all {
            let (_, data) = &inputs[random.below(inputs.len())];
            let (_, other) = &inputs[random.below(inputs.len())];
            target(&changed(&mut random, data.clone(), other));
        }
    }
}

/// What goes wrong with bytes: flipped, lost, doubled, cut, run into others.
fn changed(random: &mut Random, mut data: Vec<u8>, other: &[u8]) -> Vec<u8> {
    const TELLING: [u8; 8] = [0x00, 0x01, 0x02, 0x7f, 0x80, 0xfe, 0xff, b'"'];
    for _ in 0..=random.below(6) {
        let at = random.below(data.len() + 1);
        match random.below(6) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 if at < data.len() => data[at] = TELLING[random.below(TELLING.len())],
            2 => data.truncate(at),
            3 => data.insert(at, TELLING[random.below(TELLING.len())]),
            4 => {
                let end = at + random.below(data.len() - at + 1);
                data.drain(at..end);
            }
            _ => {
                let from = random.below(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
        }
    }
    data
}

#[test]
fn the_seeds_are_what_the_encoder_of_these_tests_writes() {
    let write = optional_setting("CDC_WRITE_SEEDS").is_some();
    let stale: Vec<PathBuf> = seeds::all()
        .into_iter()
        .filter(|(file, data)| fs::read(file).ok().as_ref() != Some(data))
        .map(|(file, data)| {
            if write {
                fs::create_dir_all(file.parent().expect("a directory")).expect("a new directory");
                fs::write(&file, data).expect("a seed written");
            }
            file
        })
        .collect();
    assert!(write || stale.is_empty(), "say CDC_WRITE_SEEDS=1 to write {stale:?}");
    assert!(conversion_count() > 100, "conversions of every kind are tried");
    let shapes = schema::parse(SHAPES_SCHEMA, &[]).expect("a valid schema");
    let mut value = Reader::new(seeds::SHAPES_VALUE);
    assert_eq!(
        Skip::over(&shapes).step_over(&mut value).and_then(|()| value.finish()),
        Ok(()),
        "a whole value"
    );
}
