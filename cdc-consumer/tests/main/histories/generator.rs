//! Histories of a source table, as the records a connector makes of them. One seed, one history.

use crate::harness::feed::{Event, Feed, Message};
use crate::harness::source::Users;

/// `SplitMix64`: the same numbers for a seed today and in years.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("a small limit");
        usize::try_from(self.next() % limit).expect("below a small limit")
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// A source table's life as the logs of its topic's partitions, and what the table ends as.
pub(crate) struct History {
    pub(crate) partitions: Vec<Vec<Message>>,
    pub(crate) users: Users,
}

/// Keys are few, so that the same one comes often.
const KEYS: usize = 7;
/// Each life of the source has LSNs below all of the life before.
const LIFE: i64 = 1_000_000;

pub(crate) struct Generator<'a> {
    random: &'a mut Random,
    feed: &'a Feed,
    partitions: Vec<Vec<Message>>,
    users: Users,
    /// Events since the last snapshot: what a connector that crashed may send again.
    streamed: Vec<(usize, Vec<Message>)>,
    life: i64,
}

/// A history of about `length` steps over `partitions` partitions.
pub(crate) fn history(
    random: &mut Random,
    feed: &Feed,
    partitions: usize,
    length: usize,
) -> History {
    let mut generator = Generator {
        random,
        feed,
        partitions: vec![vec![]; partitions],
        users: Users::default(),
        streamed: vec![],
        life: 20,
    };
    generator.restore();
    for _ in 0..length {
        generator.step();
    }
    History { partitions: generator.partitions, users: generator.users }
}

impl Generator<'_> {
    fn step(&mut self) {
        let key = self.key();
        match self.random.below(100) {
            0..55 => {
                let event = self.users.put(key);
                self.stream(&event);
            }
            55..72 => self.delete(key),
            72..80 => self.move_key(key),
            80..87 => self.send_again(),
            87..94 => {
                if let Some(event) = self.users.read(key) {
                    self.stream(&event);
                }
            }
            94..96 => self.snapshot(),
            96..98 => self.restore(),
            _ => {
                let event = self.users.truncate();
                self.stream(&event);
            }
        }
    }

    fn key(&mut self) -> i64 {
        i64::try_from(self.random.below(KEYS)).expect("a small number")
    }

    /// Of a key that exists; a table sees no other delete.
    fn delete(&mut self, key: i64) {
        if self.users.ids().contains(&key) {
            let event = self.users.delete(key);
            self.stream(&event);
        }
    }

    /// An update of the primary key: delete and create at one LSN, perhaps in two partitions.
    fn move_key(&mut self, from: i64) {
        let to = self.key();
        let ids = self.users.ids();
        if !ids.contains(&from) || ids.contains(&to) {
            return;
        }
        let deleted = self.users.delete(from);
        let lsn = self.users.lsn;
        let mut created = self.users.put(to);
        created.lsn = lsn;
        self.stream(&deleted);
        self.stream(&created);
    }

    /// A crashed connector continues at an older position: everything from there once more.
    fn send_again(&mut self) {
        let from = self.random.below(self.streamed.len() + 1);
        for (partition, messages) in &self.streamed[from..] {
            self.partitions[*partition].extend(messages.iter().cloned());
        }
    }

    /// The whole table is read again, in the same life of the source.
    fn snapshot(&mut self) {
        for event in self.users.snapshot() {
            let partition = self.partition(&event);
            self.partitions[partition].push(self.feed.message(&event));
        }
        self.streamed.clear();
    }

    /// The source is another server now, with lower LSNs and other values. Every partition gets a row
    /// of its first snapshot: that is how a partition learns of the new life.
    fn restore(&mut self) {
        self.life -= 1;
        self.users.lsn = self.life * LIFE;
        let changed = self.users.ids();
        self.users.puts(changed);
        let pins =
            (0..self.partitions.len()).map(|partition| self.partitions.len() * 1000 + partition);
        self.users.puts(pins.map(|pin| i64::try_from(pin).expect("a small number")));
        self.users.lsn = self.life * LIFE;
        self.snapshot();
    }

    fn stream(&mut self, event: &Event) {
        let partition = self.partition(event);
        let mut messages = vec![self.feed.message(event)];
        if event.op == "d" {
            messages.push(self.feed.tombstone(&event.row));
        }
        self.partitions[partition].extend(messages.iter().cloned());
        self.streamed.push((partition, messages));
    }

    /// A TRUNCATE has no key: any partition may get it.
    fn partition(&mut self, event: &Event) -> usize {
        let count = self.partitions.len();
        match event.row["id"].as_i64() {
            Some(id) => usize::try_from(id).expect("not negative") % count,
            None => self.random.below(count),
        }
    }
}
