//! Values written as JSON, encoded by `apache-avro`: not by the code under test.

use std::collections::HashMap;

use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::Value as Json;

/// A registered schema.
#[derive(Clone)]
pub(crate) struct Schema {
    pub(crate) id: u32,
    json: Json,
    parsed: apache_avro::Schema,
}

impl Schema {
    pub(crate) fn new(id: u32, json: Json) -> Self {
        let parsed = apache_avro::Schema::parse(&json).expect("a valid test schema");
        Self { id, json, parsed }
    }

    /// The schema as the registry has it.
    pub(crate) fn text(&self) -> String {
        self.json.to_string()
    }

    /// The bytes of a record's key or value: prefix and Avro.
    pub(crate) fn encode(&self, value: &Json) -> Vec<u8> {
        let value = to_avro(&self.json, &mut HashMap::new(), value);
        let body = GenericDatumWriter::builder(&self.parsed)
            .build()
            .and_then(|writer| writer.write_value_to_vec(value))
            .expect("the value fits its schema");
        [&[0], self.id.to_be_bytes().as_slice(), &body].concat()
    }
}

/// A JSON value as the schema has it. A missing member takes the schema's default, or null.
fn to_avro(schema: &Json, named: &mut HashMap<String, Json>, value: &Json) -> Value {
    match schema {
        Json::String(name) => {
            if let Some(definition) = named.get(name).cloned() {
                return to_avro(&definition, named, value);
            }
            primitive(name, value)
        }
        Json::Array(branches) => {
            let wanted = |branch: &&Json| (**branch == "null") == value.is_null();
            let index = branches.iter().position(|branch| wanted(&branch));
            let index = index.unwrap_or_else(|| panic!("{value} has no branch in {schema}"));
            // The other branch may define a name that is used later.
            for branch in branches {
                define(branch, named);
            }
            let inner = to_avro(&branches[index], named, value);
            Value::Union(u32::try_from(index).expect("few branches"), Box::new(inner))
        }
        Json::Object(object) => match object["type"].as_str() {
            Some("record") => {
                define(schema, named);
                let fields = object["fields"].as_array().expect("a record has fields").iter();
                let fields = fields.map(|field| {
                    let name = field["name"].as_str().expect("a name");
                    let given = value.get(name).or_else(|| field.get("default"));
                    let inner = to_avro(&field["type"], named, given.unwrap_or(&Json::Null));
                    (name.to_owned(), inner)
                });
                Value::Record(fields.collect())
            }
            Some("array") => {
                let items = value.as_array().expect("an array").iter();
                Value::Array(items.map(|item| to_avro(&object["items"], named, item)).collect())
            }
            Some(name) => primitive(name, value),
            None => to_avro(&object["type"], named, value),
        },
        _ => panic!("not a schema: {schema}"),
    }
}

fn define(schema: &Json, named: &mut HashMap<String, Json>) {
    if let (Some("record"), Some(name)) = (schema["type"].as_str(), schema["name"].as_str()) {
        named.insert(name.to_owned(), schema.clone());
    }
}

fn primitive(name: &str, value: &Json) -> Value {
    let number = || value.as_i64().unwrap_or_else(|| panic!("{value} is not a whole number"));
    let text = || value.as_str().unwrap_or_else(|| panic!("{value} is not text"));
    match name {
        "null" => Value::Null,
        "boolean" => Value::Boolean(value.as_bool().expect("a boolean")),
        "int" => Value::Int(i32::try_from(number()).expect("an int")),
        "long" => Value::Long(number()),
        "double" => Value::Double(value.as_f64().expect("a number")),
        "string" => Value::String(text().to_owned()),
        "bytes" => Value::Bytes(match value {
            Json::Array(bytes) => {
                let byte = |byte: &Json| byte.as_u64().and_then(|byte| u8::try_from(byte).ok());
                bytes.iter().map(|number| byte(number).expect("a byte")).collect()
            }
            _ => text().as_bytes().to_vec(),
        }),
        other => panic!("the harness does not write {other}"),
    }
}
