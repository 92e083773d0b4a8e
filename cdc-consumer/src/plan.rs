//! From a writer schema to columns of a view, compiled once per schema id.

use crate::avro::Reader;
use crate::catalog::Table;
use crate::convert::{Cell, Converter, ValueError, check_length};
use crate::envelope::{EnvelopePlan, EnvelopeSchemaError};
use crate::pairing::{self, Mismatch};
use crate::rows::RowWriter;
use crate::schema::{Node, Record};
use crate::skip::Skip;
use crate::view::{Absent, ViewSpec};

/// Why a schema cannot feed a view. The declaration, the table or the connector is wrong; nothing of
/// the topic is applied until that is changed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    NotAnEnvelope(#[from] EnvelopeSchemaError),
    #[error("the schema is not a record")]
    NotARecord,
    #[error("field '{field}' cannot feed column {table}.{column}")]
    Mismatch {
        field: String,
        table: String,
        column: String,
        #[source]
        source: Mismatch,
    },
    #[error(
        "no field feeds column {table}.{column}; \
         map one in the views file ([view.columns]), drop the column, or say absent = \"keep\" for this \
         view (a new row gets the column's default, an existing row keeps what it has)"
    )]
    ColumnWithoutField { table: String, column: String },
    #[error(
        "fields '{}' and '{}' both feed column {table}.{column}; map one of them elsewhere in the views file",
        fields[0], fields[1]
    )]
    ColumnTwice { fields: [String; 2], table: String, column: String },
    #[error(
        "field '{field}' would feed column {table}.{column}, which the consumer fills itself; map the field to \
         another column in the views file ([view.columns]), or leave it out in the connector \
         (column.exclude.list)"
    )]
    Reserved { field: String, table: String, column: String },
    #[error(
        "the record key has no field for key column {table}.{column}; \
         map one in the views file (key = {{ field = \"{column}\" }})"
    )]
    KeyColumnWithoutField { table: String, column: String },
    #[error(
        "field '{field}' of the record key feeds no key column of {table}; \
         the view's primary key must be the source's"
    )]
    KeyFieldWithoutColumn { table: String, field: String },
}

/// Why one row cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("field '{field}' of the {part} could not be read")]
pub struct FieldError {
    /// Which row: `key` or `value`.
    pub part: &'static str,
    pub field: String,
    #[source]
    pub source: ValueError,
}

/// How to write one Avro record into the columns of a view's row.
#[derive(Debug)]
pub struct RowPlan {
    part: &'static str,
    steps: Vec<Step>,
    /// Columns that no field feeds, where the declaration allows that.
    absent: Vec<usize>,
}

#[derive(Debug)]
enum Step {
    Skip(Skip),
    Column {
        index: usize,
        field: String,
        /// The source always sends it, so whatever it reads like is the value.
        in_key: bool,
        converter: Converter,
    },
}

/// Plans for a value schema.
#[derive(Debug)]
pub struct ValuePlan {
    pub envelope: EnvelopePlan,
    pub row: RowPlan,
    /// Source fields no column wants: ignored, and reported once.
    pub ignored_fields: Vec<String>,
    /// Columns that may show the source's default where the source has null.
    pub defaulted_columns: Vec<String>,
}

/// Of [`ValuePlan::defaulted_columns`], and what to do about it.
pub(crate) const DEFAULTED: &str = "may be null at the source and have a default there, which Apicurio's \
    converter sends for null; make them not null, drop the default, or use a converter that sends nulls \
    (Confluent's with ignore.default.for.nullables=true)";

impl ValuePlan {
    /// Compiles the plan of an envelope's schema for a view. Key columns come from the record key.
    pub fn compile(node: &Node, spec: &ViewSpec, table: &Table) -> Result<Self, PlanError> {
        let Node::Record(envelope) = node else {
            return Err(PlanError::NotARecord);
        };
        let plan = EnvelopePlan::compile(envelope)?;
        let row_type = EnvelopePlan::row_type(envelope).ok_or(PlanError::NotARecord)?;
        let mut ignored_fields = Vec::new();
        let present = |field: &str| row_type.fields.iter().any(|other| other.name == field);
        let column_of = |field: &str| {
            let column = spec.column_of(field);
            if table.reserves(column) {
                let (table, column) = (table.name.clone(), column.to_owned());
                return Err(PlanError::Reserved { field: field.to_owned(), table, column });
            }
            let Some(index) = table.value_column(column) else {
                if table.key_column(column).is_none() {
                    ignored_fields.push(field.to_owned());
                }
                return Ok(None);
            };
            let feeding =
                spec.field_of(column, present).map_err(|fields| twice(fields, table, index))?;
            if feeding != field {
                ignored_fields.push(field.to_owned());
            }
            Ok((feeding == field).then_some(index))
        };
        let in_key = |field: &str| {
            let column = spec.key_column_of(field);
            table.key_column(column).is_some() && spec.key_field_of(column, present) == Ok(field)
        };
        let steps = steps(row_type, table, in_key, column_of)?;
        let mut row = RowPlan { part: "value", steps, absent: vec![] };
        row.absent = table.value_columns().filter(|column| !row.feeds(*column)).collect();
        if let (Some(column), Absent::Halt) = (row.absent.first(), spec.absent) {
            let column = table.column_name(*column).to_owned();
            return Err(PlanError::ColumnWithoutField { table: table.name.clone(), column });
        }
        let defaulted =
            row.steps.iter().zip(&row_type.fields).filter_map(|(step, field)| match step {
                Step::Column { index, .. } if field.null_or_default => Some(*index),
                _ => None,
            });
        let defaulted_columns =
            defaulted.map(|index| table.column_name(index).to_owned()).collect();
        Ok(Self { envelope: plan, row, ignored_fields, defaulted_columns })
    }

    /// Says once what of the schema does not show, or may show otherwise.
    pub(crate) fn report(&self, spec: &ViewSpec, table: &Table, schema_id: u32) {
        if !self.ignored_fields.is_empty() {
            tracing::info!(
                kafka.topic = spec.topic,
                schema.id = schema_id,
                table = table.name,
                fields = self.ignored_fields.join(", "),
                "source fields without a column are ignored"
            );
        }
        if !self.defaulted_columns.is_empty() {
            tracing::warn!(
                kafka.topic = spec.topic,
                schema.id = schema_id,
                table = table.name,
                columns = self.defaulted_columns.join(", "),
                "columns {DEFAULTED}"
            );
        }
    }
}

impl RowPlan {
    /// Compiles the plan of a record key's schema for a view.
    pub fn compile_key<'a>(
        node: &'a Node,
        spec: &ViewSpec,
        table: &Table,
    ) -> Result<Self, PlanError> {
        let Node::Record(key) = node else {
            return Err(PlanError::NotARecord);
        };
        // Keys that differ at the source must not meet in the view, so no field gives way to another.
        let mut fed: Vec<Option<&str>> = vec![None; table.width()];
        let column_of = |field: &'a str| {
            let Some(index) = table.key_column(spec.key_column_of(field)) else {
                let (table, field) = (table.name.clone(), field.to_owned());
                return Err(PlanError::KeyFieldWithoutColumn { table, field });
            };
            match fed.get_mut(index).and_then(|fed| fed.replace(field)) {
                Some(other) => Err(twice([other, field], table, index)),
                None => Ok(Some(index)),
            }
        };
        let steps = steps(key, table, |_| true, column_of)?;
        let plan = Self { part: "key", steps, absent: vec![] };
        if let Some(column) = table.key_columns().find(|column| !plan.feeds(*column)) {
            let column = table.column_name(column).to_owned();
            return Err(PlanError::KeyColumnWithoutField { table: table.name.clone(), column });
        }
        Ok(plan)
    }

    /// Reads a record key into a row's cells. All its steps are `in_key`.
    pub fn write_key(&self, bytes: &[u8], row: &mut RowWriter<'_>) -> Result<(), FieldError> {
        self.write(bytes, || false, row)
    }

    /// Reads one Avro record into a row's cells. `whole` is asked at a value that reads like one that was not
    /// sent: whether the record has all its values.
    pub fn write(
        &self,
        bytes: &[u8],
        whole: impl Fn() -> bool,
        row: &mut RowWriter<'_>,
    ) -> Result<(), FieldError> {
        let mut reader = Reader::new(bytes);
        for step in &self.steps {
            match step {
                Step::Skip(skip) => {
                    skip.step_over(&mut reader)
                        .map_err(|error| self.error("(not mapped)", error))?;
                }
                Step::Column { index, field, in_key, converter } => row
                    .cell(*index, |out| match converter.write(&mut reader, out)? {
                        Cell::Keep if *in_key || whole() => Ok(Cell::Text),
                        cell => Ok(cell),
                    })
                    .and_then(|()| check_length(row.byte_count()))
                    .map_err(|source: ValueError| self.error(field, source))?,
            }
        }
        for column in &self.absent {
            row.cell(*column, |_| Ok(Cell::Absent))?;
        }
        reader.finish().map_err(|error| self.error("(end)", error))
    }

    fn feeds(&self, column: usize) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Column { index, .. } if *index == column))
    }

    fn error(&self, field: &str, source: impl Into<ValueError>) -> FieldError {
        FieldError { part: self.part, field: field.to_owned(), source: source.into() }
    }
}

pub(crate) fn twice(fields: [&str; 2], table: &Table, column: usize) -> PlanError {
    let (table, column) = (table.name.clone(), table.column_name(column).to_owned());
    PlanError::ColumnTwice { fields: fields.map(str::to_owned), table, column }
}

/// A step per field: into its column, or over it.
fn steps<'a>(
    record: &'a Record,
    table: &Table,
    in_key: impl Fn(&str) -> bool,
    mut column_of: impl FnMut(&'a str) -> Result<Option<usize>, PlanError>,
) -> Result<Vec<Step>, PlanError> {
    let steps = record.fields.iter().map(|field| {
        let Some(index) = column_of(&field.name)? else {
            return Ok(Step::Skip(Skip::over(&field.node)));
        };
        let converter = table
            .column_type(index)
            .map_or(Ok(Converter::Null), |target| pairing::compile(&field.node, target));
        let converter = converter.map_err(|source| PlanError::Mismatch {
            field: field.name.clone(),
            table: table.name.clone(),
            column: table.column_name(index).to_owned(),
            source,
        })?;
        let (field, in_key) = (field.name.clone(), in_key(&field.name));
        Ok(Step::Column { index, field, in_key, converter })
    });
    steps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Rows;
    use crate::schema;
    use crate::view;

    fn spec(more: &str) -> ViewSpec {
        let declared = format!("[[view]]\ntopic = 't'\ntable = 't'\n{more}");
        view::parse(&declared).expect("a valid declaration").remove(0)
    }

    /// Each field is of six bytes and makes 131,073 characters.
    #[test]
    fn a_row_whose_text_would_not_end_is_refused() {
        let write = |width: usize| {
            let decimal = r#"{"type": "bytes", "connect.name": "org.apache.kafka.connect.data.Decimal",
                "connect.parameters": {"scale": "-131072"}}"#;
            let names: Vec<String> = (0..width).map(|number| format!("c{number}")).collect();
            let fields: Vec<_> = names
                .iter()
                .map(|name| format!(r#"{{"name": "{name}", "type": {decimal}}}"#))
                .collect();
            let fields = fields.join(",");
            let schema = format!(r#"{{"type": "record", "name": "Key", "fields": [{fields}]}}"#);
            let node = schema::parse(&schema, &[]).expect("a supported schema");
            let columns: Vec<_> = names.iter().map(|name| (name.as_str(), "numeric")).collect();
            let table = Table::sample("t", width, &columns);
            let plan = RowPlan::compile_key(&node, &spec(""), &table).expect("it fits the view");
            let mut rows = Rows::new(width);
            let bytes = [2, 7].repeat(width);
            rows.push(|row| plan.write_key(&bytes, row)).map_err(|error| error.source)
        };
        assert!(write(500).is_ok());
        assert_eq!(write(600), Err(ValueError::TooLong));
    }
}
