//! Columns of each type with the values at their edges and a way to make others.

use super::values::{
    array, bigint, bits, boolean, bytea, cidr, date, decimal, double, hexadecimal, hstore, inet,
    integer, interval, json, money, numeric, oid, real, smallint, text, time, timestamp,
    timestamptz, uuid, word,
};
use crate::histories::Random;

/// A column of the source table and of the view.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    /// As in `create table`.
    pub(crate) kind: &'static str,
    /// Values as text, each cast to `kind`.
    pub(crate) edges: &'static [&'static str],
    pub(crate) random: fn(&mut Random) -> String,
}

const fn column(
    kind: &'static str,
    edges: &'static [&'static str],
    random: fn(&mut Random) -> String,
) -> Column {
    Column { kind, edges, random }
}

/// What the types below need, in the source database and in the view's.
pub(crate) const PREPARE: &str = "
    create extension if not exists citext;
    create extension if not exists hstore;
    create extension if not exists ltree;
    create type mood as enum ('sad', 'ok', 'it''s \"fine\"', '좋음');
    create domain positive as integer check (value > 0);
    create domain code as varchar(8);
    create domain amount as numeric(12, 3);
    create type pair as (a integer, b text)";

pub(crate) const NUMBERS: &[Column] = &[
    column("smallint", &["-32768", "32767", "0"], smallint),
    column("integer", &["-2147483648", "2147483647"], integer),
    column("bigint", &["-9223372036854775808", "9223372036854775807"], bigint),
    column("real", &["NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38", "0.1"], real),
    column(
        "double precision",
        &["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "0.1", "1e22"],
        double,
    ),
    column(
        "numeric(12, 2)",
        &["0", "0.01", "-0.01", "9999999999.99", "-9999999999.99"],
        |random| decimal(random, 10, 2),
    ),
    column("numeric(60, 30)", &["0", "1", "-1e-30", "1e29"], |random| decimal(random, 30, 30)),
    column("numeric(5, -2)", &["0", "100", "-9999900"], |random| decimal(random, 6, 0)),
    column("numeric(3, 5)", &["0", "0.00999", "-0.00001"], |_| "0.00123".to_owned()),
    column(
        "numeric",
        &["0", "1e100", "-1e-100", "12345678901234567890123456789.123456789"],
        numeric,
    ),
    column("boolean", &["true", "false"], boolean),
    column("money", &["0", "-92233720368547758.08", "92233720368547758.07", "0.01"], money),
    column("oid", &["0", "4294967295"], oid),
    column("positive", &["1", "2147483647"], |random| (random.below(1000) + 1).to_string()),
    column("amount", &["0", "-999999999.999"], |random| decimal(random, 9, 3)),
];

pub(crate) const TEXTS: &[Column] = &[
    column("text", &["", " ", "NULL", "\\N", "\\x00", "__debezium"], text),
    column("varchar", &["", "  "], text),
    column("varchar(12)", &["", "열두글자로이루어진글이야", "            "], |random| {
        word(random, 12)
    }),
    column("char(5)", &["", "a", "a b  ", "글"], |random| word(random, 5)),
    column("char", &["x", ""], |random| word(random, 1)),
    column("\"char\"", &["x", ""], |random| random.below(10).to_string()),
    column("citext", &["", "ÀÉ", "aB"], text),
    column("code", &["", "12345678"], |random| word(random, 8)),
    column("mood", &["sad", "ok", "it's \"fine\"", "좋음"], |_| "ok".to_owned()),
    column("json", &["null", "{}", "[ 1,2 ]", "{\"a\": 1, \"a\": 2}", "1e400"], json),
    column("jsonb", &["null", "{}", "[]", "\"\"", "1e400", "-0.00"], json),
    column("xml", &["", "<a/>", "<a b=\"c\">d &amp; 글</a>", "text only"], |random| {
        format!("<a>{}</a>", word(random, 9))
    }),
    column("uuid", &["00000000-0000-0000-0000-000000000000"], uuid),
    column("ltree", &["", "a", "Top.Science_1.x"], |random| {
        format!("a.b{}", hexadecimal(random, 3))
    }),
    column("hstore", &["", "a=>NULL", "\"\"=>\"\"", "\"{\"=>\"}\""], hstore),
    column("tsvector", &["", "'a':1A,3 'it''s'", "'c' 'b'"], |random| {
        format!("'{}':{}", word(random, 5), random.below(99) + 1)
    }),
    column("bytea", &["", "\\x00", "\\xff00ff"], bytea),
    column("bit", &["0", "1"], |random| bits(random, 1)),
    column("bit(8)", &["00000000", "11111111", "10000000", "00000001"], |random| bits(random, 8)),
    column("bit(11)", &["00000000000", "00000000001", "10000000000"], |random| bits(random, 11)),
    column("inet", &["::", "0.0.0.0/0", "10.1.2.3/8", "fe80::1"], inet),
    column("cidr", &["::/0", "0.0.0.0/0"], cidr),
    column("macaddr", &["00:00:00:00:00:00"], |random| hexadecimal(random, 6)),
    column("macaddr8", &["ff:ff:ff:ff:ff:ff:ff:ff"], |random| hexadecimal(random, 8)),
];

pub(crate) const TIMES: &[Column] = &[
    column(
        "date",
        &[
            "1970-01-01",
            "1969-12-31",
            "2000-02-29",
            "9999-12-31",
            "10000-01-01",
            "5874897-12-31",
            "1582-10-15",
            "1500-02-28",
            "0001-01-01",
            "infinity",
            "-infinity",
        ],
        date,
    ),
    column("time", &["00:00:00", "24:00:00", "23:59:59.999999"], |random| time(random, 6)),
    column("time(0)", &["00:00:00", "23:59:59"], |random| time(random, 0)),
    column("time(3)", &["00:00:00", "23:59:59.999"], |random| time(random, 3)),
    column("timetz", &["00:00:00+00", "23:59:59.999999+00"], |random| {
        format!("{}+00", time(random, 6))
    }),
    column(
        "timestamp",
        &[
            "1970-01-01 00:00:00",
            "1969-12-31 23:59:59.999999",
            "1500-02-28 01:02:03.123456",
            "0044-03-15 12:00:00 BC",
            "4714-11-24 00:00:00 BC",
            "294246-12-31 23:59:59.999999",
            "infinity",
            "-infinity",
        ],
        |random| timestamp(random, 6),
    ),
    column("timestamp(0)", &["1969-12-31 23:59:59"], |random| timestamp(random, 0)),
    column(
        "timestamp(3)",
        &[
            "1969-12-31 23:59:59.999",
            "294276-12-31 23:59:59.999",
            "0044-03-15 12:00:00.001 BC",
            "infinity",
            "-infinity",
        ],
        |random| timestamp(random, 3),
    ),
    column(
        "timestamptz",
        &[
            "1970-01-01 00:00:00+00",
            "1969-12-31 23:59:59.999999+00",
            "9999-12-31 23:59:59.999999+00",
        ],
        timestamptz,
    ),
    column("timestamptz(0)", &["1970-01-01 00:00:00+00"], timestamptz),
];

/// With `interval.handling.mode=string`: the default cannot be turned back.
pub(crate) const INTERVALS: &[Column] = &[column(
    "interval",
    &["0", "1 mon", "-1 day", "1 year 2 mons 3 days 04:05:06.789", "-0.000001 seconds", "24:00:00"],
    interval,
)];

/// With `decimal.handling.mode=string`: also the scale of each value, and what is no number.
pub(crate) const EXACT: &[Column] = &[
    column(
        "numeric",
        &["1.50", "0.000", "NaN", "Infinity", "-Infinity", "1e30", "-1e-30"],
        |random| decimal(random, 30, 9),
    ),
    column("numeric(12, 2)", &["0", "NaN", "-9999999999.99"], |random| decimal(random, 10, 2)),
    column("numeric[]", &["{}", "{1.50,NULL}"], |random| {
        array(random, |random| decimal(random, 30, 9))
    }),
    column("money", &["0", "-92233720368547758.08"], money),
];

/// Columns that `time.precision.mode=connect` has no more precise values for than they can hold.
pub(crate) const MILLISECONDS: &[Column] = &[
    column("date", &["1969-12-31", "infinity", "-infinity"], date),
    column("time(3)", &["24:00:00", "23:59:59.999"], |random| time(random, 3)),
    column("timestamp(3)", &["1969-12-31 23:59:59.999", "infinity", "-infinity"], |random| {
        timestamp(random, 3)
    }),
    column("timestamp(0)", &["0044-03-15 12:00:00 BC"], |random| timestamp(random, 0)),
];

/// Columns within the three centuries that `time.precision.mode=nanoseconds` can count.
pub(crate) const NANOSECONDS: &[Column] = &[
    column("time", &["24:00:00", "23:59:59.999999"], |random| time(random, 6)),
    column(
        "timestamp",
        &["1678-01-01 00:00:00.000001", "2261-12-31 23:59:59.999999", "infinity", "-infinity"],
        |random| format!("20{:02}-05-17 {}", random.below(100), time(random, 6)),
    ),
];

pub(crate) const RANGES: &[Column] = &[
    column("int4range", &["empty", "(,)", "[1,2)", "[,5]"], |random| {
        format!("[{},9]", random.below(9))
    }),
    column("int8range", &["empty", "(,)", "[1,9223372036854775807)"], |_| "[1,5]".to_owned()),
    column("numrange", &["empty", "(,)", "(1.50,2.0]"], |_| "(-1,2]".to_owned()),
    column("daterange", &["empty", "(,)", "[2020-01-01,infinity)"], |random| {
        format!("[{},)", date(random))
    }),
    column("tsrange", &["empty", "(,)", "[2020-01-01 00:00:00.000001,infinity]"], |random| {
        format!("[{},)", timestamp(random, 6))
    }),
    column("tstzrange", &["empty", "(,)", "[2020-01-01 00:00:00+00,)"], |random| {
        format!("[{},)", timestamptz(random))
    }),
    column("point", &["(0,0)", "(-1.5,1e300)", "(Infinity,NaN)"], |random| {
        format!("({},{})", double(random), double(random))
    }),
];

pub(crate) const ARRAYS: &[Column] = &[
    column("smallint[]", &["{}", "{NULL}"], |random| array(random, smallint)),
    column("integer[]", &["{}", "{NULL,1}"], |random| array(random, integer)),
    column("bigint[]", &["{}"], |random| array(random, bigint)),
    column("real[]", &["{}", "{NaN,Infinity,NULL,0.1}"], |random| array(random, real)),
    column("double precision[]", &["{}", "{NaN,-Infinity,NULL}"], |random| array(random, double)),
    column("numeric(12, 2)[]", &["{}", "{NULL,0.01}"], |random| {
        array(random, |random| decimal(random, 10, 2))
    }),
    column("numeric[]", &["{}", "{NULL,0.01}"], |random| array(random, numeric)),
    column("boolean[]", &["{}", "{t,NULL,f}"], |random| array(random, boolean)),
    column("text[]", &["{}", "{\"\",NULL,\"NULL\",\"a,b\",\"\\\\\"}"], |random| {
        array(random, text)
    }),
    column("varchar(9)[]", &["{}"], |random| array(random, |random| word(random, 9))),
    column("char(4)[]", &["{}", "{a,\"\"}"], |random| array(random, |random| word(random, 4))),
    column("citext[]", &["{}", "{aB,NULL}"], |random| array(random, text)),
    column("date[]", &["{}", "{1970-01-01,NULL}"], |random| array(random, date)),
    column("time(3)[]", &["{}", "{23:59:59.999,NULL}"], |random| {
        array(random, |random| time(random, 3))
    }),
    column("timetz(0)[]", &["{}", "{NULL}"], |random| {
        array(random, |random| format!("{}+00", time(random, 0)))
    }),
    column("timestamp[]", &["{}", "{NULL}"], |random| array(random, |random| timestamp(random, 6))),
    column("timestamp(3)[]", &["{}", "{NULL}"], |random| {
        array(random, |random| timestamp(random, 3))
    }),
    column("timestamptz[]", &["{}", "{NULL}"], |random| array(random, timestamptz)),
    column("uuid[]", &["{}", "{NULL}"], |random| array(random, uuid)),
    column("json[]", &["{}", "{NULL,\"null\"}"], |random| array(random, json)),
    column("jsonb[]", &["{}", "{NULL,\"null\"}"], |random| array(random, json)),
    column("bytea[]", &["{}", "{NULL,\"\\\\\\\\x\",\"\\\\\\\\x00ff\"}"], |random| {
        array(random, bytea)
    }),
    column("inet[]", &["{}", "{NULL,::}"], |random| array(random, inet)),
    column("cidr[]", &["{}"], |random| array(random, cidr)),
    column("macaddr[]", &["{}"], |random| array(random, |random| hexadecimal(random, 6))),
    column("macaddr8[]", &["{}"], |random| array(random, |random| hexadecimal(random, 8))),
    column("int4range[]", &["{}", "{\"[1,2)\",empty}"], |_| "{\"(,5)\"}".to_owned()),
    column("tstzrange[]", &["{}", "{\"[2020-01-01 00:00:00+00,)\"}"], |_| "{empty}".to_owned()),
    column("oid[]", &["{}", "{4294967295,NULL}"], |random| array(random, oid)),
    column("mood[]", &["{}", "{sad,\"it's \\\"fine\\\"\"}"], |_| "{ok}".to_owned()),
    column("ltree[]", &["{a.b,c}"], |_| "{Top.x}".to_owned()),
    column("tsvector[]", &["{}", "{a}"], |_| "{\"'b':1\"}".to_owned()),
    column("hstore[]", &["{}", "{\"a=>1\"}"], |_| "{}".to_owned()),
];

/// Types that Debezium leaves out: its records have no such field.
pub(crate) const LEFT_OUT: &[&str] = &[
    "money[]",
    "interval[]",
    "varbit[]",
    "xml[]",
    "point[]",
    "positive[]",
    "name[]",
    "box",
    "circle",
    "line",
    "lseg",
    "path",
    "polygon",
    "tsquery",
    "pg_lsn",
    "xid",
    "int4multirange",
    "pair",
];
