//! Which kinds of source values fit which PostgreSQL columns.
//!
//! A pair is allowed only when PostgreSQL reads the value back unchanged. Everything else is refused
//! when the plan is compiled, so a wrong pairing never reaches a row.

/// The type of a view's column, from the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgType {
    /// As `format_type` writes it, with modifiers: for people.
    pub name: String,
    /// The bare type, qualified and quoted: what a cast names. Without modifiers, because a cast to
    /// `varchar(3)` cuts silently where an assignment refuses.
    pub cast: String,
    /// The length of `bit(n)`, the precision of `time(p)` and the like; -1 without one.
    pub modifier: i32,
    /// `typname` of the type, or of a domain's base type: what the rules below compare.
    pub base: String,
    /// `typtype = 'e'`: a user-defined enum.
    pub enumeration: bool,
    /// `typcategory = 'R'`: a range or multirange.
    pub range: bool,
    /// The element type of an array.
    pub element: Option<Box<PgType>>,
}

/// What a source value is, whatever its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Boolean,
    Integer,
    Float,
    Double,
    Text,
    Bytes,
    Decimal,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
    /// An interval as a number of microseconds.
    Duration,
    Json,
    Uuid,
    Xml,
    Enum,
    Bits,
    Point,
    Ltree,
    Map,
}

const TEXTS: &[&str] = &["text", "varchar", "bpchar", "citext", "name"];

/// Whether values of this type are text of any kind.
pub fn is_text(base: &str) -> bool {
    TEXTS.contains(&base)
}

/// Types whose only wire form is a plain string holding PostgreSQL's own text.
const SENT_AS_TEXT: &[&str] = &[
    "inet", "cidr", "macaddr", "macaddr8", "tsvector", "tsquery", "numeric", "money", "interval",
    "isbn", "ltree", "xml", "json", "jsonb", "uuid", "hstore", "box", "circle", "line", "lseg",
    "path", "polygon", "pg_lsn", "oid", "char",
];

impl Kind {
    /// The kind in an error message.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boolean => "a boolean",
            Self::Integer => "an integer",
            Self::Float => "a single-precision number",
            Self::Double => "a double-precision number",
            Self::Text => "text",
            Self::Bytes => "binary data",
            Self::Decimal => "a decimal",
            Self::Date => "a date",
            Self::Time => "a time of day",
            Self::TimeTz => "a time of day with zone",
            Self::Timestamp => "a timestamp without zone",
            Self::TimestampTz => "a timestamp with zone",
            Self::Interval => "an interval",
            Self::Duration => "a duration",
            Self::Json => "JSON",
            Self::Uuid => "a UUID",
            Self::Xml => "XML",
            Self::Enum => "an enum label",
            Self::Bits => "a bit string",
            Self::Point => "a point",
            Self::Ltree => "an ltree",
            Self::Map => "a map",
        }
    }

    /// Whether a column of this type holds every such value exactly.
    ///
    /// Integers fit a narrower integer column too: a value out of its range is that record's fault and
    /// is quarantined, while refusing the pair would refuse every `smallint` primary key Debezium widens.
    pub fn fits(self, target: &PgType) -> bool {
        let base = target.base.as_str();
        if self != Self::Bytes && is_text(base) {
            return true;
        }
        match self {
            Self::Boolean => base == "bool" || base == "bit" && target.modifier <= 1,
            Self::Integer => matches!(base, "int2" | "int4" | "int8" | "numeric" | "oid"),
            Self::Float => matches!(base, "float4" | "float8"),
            Self::Double => base == "float8",
            Self::Text => target.enumeration || target.range || SENT_AS_TEXT.contains(&base),
            Self::Bytes => base == "bytea",
            Self::Decimal => matches!(base, "numeric" | "money"),
            Self::Date => base == "date",
            Self::Time => base == "time",
            Self::TimeTz => base == "timetz",
            Self::Timestamp => base == "timestamp",
            Self::TimestampTz => base == "timestamptz",
            Self::Interval => base == "interval",
            Self::Duration => false,
            Self::Json => matches!(base, "json" | "jsonb" | "hstore"),
            Self::Uuid => base == "uuid",
            Self::Xml => base == "xml",
            Self::Enum => target.enumeration,
            Self::Bits => base == "bit",
            Self::Point => base == "point",
            Self::Ltree => base == "ltree",
            Self::Map => base == "hstore",
        }
    }
}
