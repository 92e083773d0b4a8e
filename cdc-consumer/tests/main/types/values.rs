//! Random values of PostgreSQL's types, as text that PostgreSQL reads.

use crate::histories::Random;

/// A number between `low` and `high`, both included; small ones come as often as large ones.
pub(crate) fn between(random: &mut Random, low: i64, high: i64) -> i64 {
    let bits = u32::try_from(random.below(64)).expect("below 64");
    let number = i64::from_ne_bytes(random.next().to_ne_bytes()) >> bits;
    let span = i128::from(high) - i128::from(low) + 1;
    let place = (i128::from(number) - i128::from(low)).rem_euclid(span) + i128::from(low);
    i64::try_from(place).expect("between two numbers")
}

pub(crate) fn smallint(random: &mut Random) -> String {
    between(random, i16::MIN.into(), i16::MAX.into()).to_string()
}

pub(crate) fn integer(random: &mut Random) -> String {
    between(random, i32::MIN.into(), i32::MAX.into()).to_string()
}

pub(crate) fn bigint(random: &mut Random) -> String {
    between(random, i64::MIN, i64::MAX).to_string()
}

pub(crate) fn oid(random: &mut Random) -> String {
    between(random, 0, u32::MAX.into()).to_string()
}

pub(crate) fn real(random: &mut Random) -> String {
    let bits = u32::try_from(random.next() >> 32).expect("32 bits");
    f32::from_bits(bits).to_string()
}

pub(crate) fn double(random: &mut Random) -> String {
    f64::from_bits(random.next()).to_string()
}

pub(crate) fn boolean(random: &mut Random) -> String {
    random.percent(50).to_string()
}

fn digits(random: &mut Random, count: usize) -> String {
    (0..count)
        .map(|_| char::from(b'0' + u8::try_from(random.below(10)).expect("a digit")))
        .collect()
}

fn sign(random: &mut Random) -> &'static str {
    if random.percent(50) { "-" } else { "" }
}

/// At most `whole` digits before the point and exactly `fraction` behind it.
pub(crate) fn decimal(random: &mut Random, whole: usize, fraction: usize) -> String {
    let length = random.below(whole) + 1;
    let point = if fraction > 0 { "." } else { "" };
    format!("{}{}{point}{}", sign(random), digits(random, length), digits(random, fraction))
}

/// A numeric whose last digit behind the point is not zero.
pub(crate) fn numeric(random: &mut Random) -> String {
    let fraction = random.below(40);
    let number = decimal(random, 60, fraction);
    if fraction == 0 { number } else { format!("{number}{}", random.below(9) + 1) }
}

pub(crate) fn money(random: &mut Random) -> String {
    let cents = between(random, -1_000_000_000_000, 1_000_000_000_000);
    format!(
        "{}{}.{:02}",
        if cents < 0 { "-" } else { "" },
        (cents / 100).abs(),
        (cents % 100).abs()
    )
}

/// Characters that somebody may forget to quote, of all lengths that UTF-8 has.
pub(crate) fn text(random: &mut Random) -> String {
    const PIECES: &[&str] = &[
        "a",
        "Z",
        "0",
        " ",
        "  ",
        "'",
        "\"",
        "\\",
        "\\\\",
        "\n",
        "\r",
        "\t",
        "\u{1}",
        "{",
        "}",
        ",",
        "%",
        "$1",
        "NULL",
        "null",
        "é",
        "ß",
        "한글",
        "日本",
        "🙂",
        "\u{10ffff}",
        "=>",
        "<",
        ";",
        "--",
    ];
    let count = random.below(12);
    (0..count).map(|_| PIECES[random.below(PIECES.len())]).collect()
}

/// At most `limit` characters that are neither blank nor anything else that a type makes its own.
pub(crate) fn word(random: &mut Random, limit: usize) -> String {
    const LETTERS: &[&str] = &["a", "b", "Z", "9", "é", "글", "_"];
    let count = random.below(limit) + 1;
    (0..count).map(|_| LETTERS[random.below(LETTERS.len())]).collect()
}

pub(crate) fn hexadecimal(random: &mut Random, bytes: usize) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    (0..bytes * 2).map(|_| char::from(DIGITS[random.below(16)])).collect()
}

pub(crate) fn bytea(random: &mut Random) -> String {
    let length = random.below(40);
    format!("\\x{}", hexadecimal(random, length))
}

pub(crate) fn bits(random: &mut Random, count: usize) -> String {
    (0..count).map(|_| if random.percent(50) { '1' } else { '0' }).collect()
}

pub(crate) fn uuid(random: &mut Random) -> String {
    hexadecimal(random, 16)
}

pub(crate) fn json(random: &mut Random) -> String {
    let text = serde_json::Value::from(text(random));
    let number = decimal_for_json(random);
    match random.below(4) {
        0 => text.to_string().replace("\\u0000", ""),
        1 => number,
        2 => format!("[{number}, null, {text}]"),
        _ => format!("{{\"k\": {text}, \"n\":{number},  \"b\": true}}"),
    }
}

fn decimal_for_json(random: &mut Random) -> String {
    let number = between(random, i64::MIN, i64::MAX);
    format!("{number}.{}", digits(random, 3))
}

pub(crate) fn date(random: &mut Random) -> String {
    format!("{:04}-{:02}-{:02}", year(random), random.below(12) + 1, random.below(28) + 1)
}

/// From the first year of the Gregorian calendar on, mostly near.
fn year(random: &mut Random) -> i64 {
    if random.percent(20) { between(random, 1583, 9999) } else { between(random, 1900, 2100) }
}

pub(crate) fn time(random: &mut Random, precision: usize) -> String {
    let whole = format!("{:02}:{:02}:{:02}", random.below(24), random.below(60), random.below(60));
    if precision == 0 { whole } else { format!("{whole}.{}", digits(random, precision)) }
}

pub(crate) fn timestamp(random: &mut Random, precision: usize) -> String {
    format!("{} {}", date(random), time(random, precision))
}

pub(crate) fn timestamptz(random: &mut Random) -> String {
    let zone = between(random, -14, 14);
    format!("{}{zone:+03}", timestamp(random, 6))
}

pub(crate) fn interval(random: &mut Random) -> String {
    let mut part = |limit: i64| between(random, -limit, limit);
    let (years, months, days) = (part(1000), part(11), part(100_000));
    let (hours, micros) = (part(1_000_000), part(3_600_000_000));
    format!("{years} years {months} mons {days} days {hours} hours {micros} microseconds")
}

pub(crate) fn inet(random: &mut Random) -> String {
    if random.percent(50) {
        let mut part = || random.below(256);
        format!("{}.{}.{}.{}/{}", part(), part(), part(), part(), part() % 33)
    } else {
        format!("2001:db8::{}/{}", &hexadecimal(random, 2), random.below(129))
    }
}

pub(crate) fn cidr(random: &mut Random) -> String {
    format!("10.{}.0.0/{}", random.below(256), 16 + random.below(17))
}

pub(crate) fn hstore(random: &mut Random) -> String {
    let quoted = |text: String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let count = random.below(4);
    let pairs = (0..count).map(|number| {
        let key = quoted(format!("{number}{}", text(random)));
        let value = if random.percent(20) { "NULL".to_owned() } else { quoted(text(random)) };
        format!("{key}=>{value}")
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// An array of these values, some of them null; sometimes empty.
pub(crate) fn array(random: &mut Random, item: impl Fn(&mut Random) -> String) -> String {
    let quoted = |text: String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let count = random.below(5);
    let items = (0..count)
        .map(|_| if random.percent(20) { "NULL".to_owned() } else { quoted(item(random)) });
    format!("{{{}}}", items.collect::<Vec<_>>().join(","))
}
