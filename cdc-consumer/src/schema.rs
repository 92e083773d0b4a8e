//! A writer schema as the consumer needs it: shape, field names and Kafka Connect's semantic types.
//!
//! `apache_avro` parses and validates the schema, but drops `connect.name` from primitives, and that
//! name is what tells a date from a number. So the tree is built from the raw JSON after
//! `apache_avro` has accepted it.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value as Json;

/// Parts of a type, each name replaced by what it stands for: what is compiled of a schema goes through them
/// all, and a few names that use each other twice stand for any number. A table of 1600 columns has some
/// ten thousand.
const NODES_MAX: usize = 100_000;

/// Why a schema from the registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("the schema is not valid Avro")]
    Invalid(#[source] Box<apache_avro::Error>),
    #[error("the schema is not JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("the schema contains itself at '{0}'; recursive types have no column")]
    Recursive(String),
    #[error("the schema's attribute '{0}' means something in Avro, and its value is not that")]
    Misused(String),
    #[error("the schema's type has more than {NODES_MAX} parts, counting each time a name is used")]
    TooLarge,
    #[error("the schema has an unexpected form at '{0}'")]
    Unexpected(String),
}

/// A semantic type: Kafka Connect's name for what a primitive means, with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Semantic {
    /// For example `io.debezium.time.MicroTimestamp`.
    pub name: String,
    /// `scale` of a decimal, when the schema gives one.
    pub scale: Option<i32>,
    /// `length` of a bit string.
    pub length: Option<i32>,
}

/// The shape of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Null,
    Boolean,
    Int(Option<Semantic>),
    Long(Option<Semantic>),
    Float,
    Double,
    Bytes(Option<Semantic>),
    String(Option<Semantic>),
    Fixed(usize),
    Enum(Vec<String>),
    Array(Box<Node>),
    Map(Box<Node>),
    Union(Vec<Node>),
    Record(Arc<Record>),
}

/// A record type.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// Full name, namespace included.
    pub name: String,
    /// Connect's semantic name, for example `io.debezium.data.VariableScaleDecimal`.
    pub connect_name: Option<String>,
    pub fields: Vec<Field>,
}

/// A field in the writer's order.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub node: Node,
    /// It may be null, and has another default: a converter that asks Connect for a field's value gets that for
    /// a null, and nobody behind it can tell.
    pub null_or_default: bool,
}

/// Parses `text`; `references` are schemas it uses by name, dependencies first.
pub fn parse(text: &str, references: &[String]) -> Result<Node, SchemaError> {
    let all: Vec<&str> = references.iter().map(String::as_str).chain([text]).collect();
    let trees: Vec<Json> = all
        .iter()
        .map(|text| serde_json::from_str(text).map_err(SchemaError::NotJson))
        .collect::<Result<_, _>>()?;
    if let Some(attribute) = trees.iter().find_map(|tree| misused("type", tree)) {
        return Err(SchemaError::Misused(attribute.to_owned()));
    }
    // A list takes named types only, while a schema that stands alone may be a primitive.
    let valid = if references.is_empty() {
        apache_avro::Schema::parse_str(text).map(drop)
    } else {
        apache_avro::Schema::parse_list(&all).map(drop)
    };
    valid.map_err(|error| SchemaError::Invalid(Box::new(error)))?;
    let mut builder = Builder::default();
    let mut node = Node::Null;
    for tree in &trees {
        node = builder.node(tree, "")?;
    }
    Ok(node)
}

/// An attribute that Avro knows, with a value it cannot have, also where it would not matter: `values` of a
/// record, say. `apache_avro` 0.22 panics at one when it makes a schema's canonical form.
fn misused<'j>(name: &'j str, json: &'j Json) -> Option<&'j str> {
    let attributes = match json {
        Json::String(_) => return None,
        Json::Array(items) => return items.iter().find_map(|item| misused(name, item)),
        Json::Object(attributes) => attributes,
        Json::Null | Json::Bool(_) | Json::Number(_) => return Some(name),
    };
    attributes.iter().find_map(|(name, value)| match name.as_str() {
        "size" | "precision" | "scale" => {
            let text = || value.as_str().is_some_and(|text| text.parse::<i64>().is_ok());
            (value.as_i64().is_none() && !text()).then_some(name.as_str())
        }
        "name" | "type" | "fields" | "symbols" | "items" | "values" | "order" => {
            misused(name, value)
        }
        _ => None,
    })
}

#[derive(Default)]
struct Builder {
    /// Named types met so far, with their parts. `None` while a type is being built: meeting it then is
    /// recursion.
    named: HashMap<String, Option<(Node, usize)>>,
    /// Parts so far.
    nodes: usize,
}

impl Builder {
    fn node(&mut self, json: &Json, namespace: &str) -> Result<Node, SchemaError> {
        self.count(1)?;
        match json {
            Json::String(name) => self.by_name(name, None, namespace),
            Json::Array(branches) => {
                let branches = branches.iter().map(|branch| self.node(branch, namespace));
                Ok(Node::Union(branches.collect::<Result<_, _>>()?))
            }
            Json::Object(_) => self.object(json, namespace),
            _ => Err(SchemaError::Unexpected(json.to_string())),
        }
    }

    fn count(&mut self, nodes: usize) -> Result<(), SchemaError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > NODES_MAX { Err(SchemaError::TooLarge) } else { Ok(()) }
    }

    fn object(&mut self, json: &Json, namespace: &str) -> Result<Node, SchemaError> {
        let kind = json.get("type").ok_or_else(|| SchemaError::Unexpected(json.to_string()))?;
        let Json::String(kind) = kind else {
            return self.node(kind, namespace);
        };
        match kind.as_str() {
            "array" => Ok(Node::Array(Box::new(self.member(json, "items", namespace)?))),
            "map" => Ok(Node::Map(Box::new(self.member(json, "values", namespace)?))),
            "record" | "error" => self.record(json, namespace),
            "enum" => {
                let symbols = json.get("symbols").and_then(Json::as_array).into_iter().flatten();
                let symbols = symbols.filter_map(Json::as_str).map(str::to_owned).collect();
                self.define(json, namespace, Node::Enum(symbols))
            }
            "fixed" => {
                let size = json.get("size").and_then(Json::as_u64);
                let size = size.and_then(|size| usize::try_from(size).ok());
                let size = size.ok_or_else(|| SchemaError::Unexpected(json.to_string()))?;
                self.define(json, namespace, Node::Fixed(size))
            }
            name => self.by_name(name, semantic(json), namespace),
        }
    }

    fn member(&mut self, json: &Json, member: &str, namespace: &str) -> Result<Node, SchemaError> {
        let inner = json.get(member).ok_or_else(|| SchemaError::Unexpected(json.to_string()))?;
        self.node(inner, namespace)
    }

    fn record(&mut self, json: &Json, namespace: &str) -> Result<Node, SchemaError> {
        let (name, namespace) = full_name(json, namespace)?;
        let before = self.nodes;
        self.named.insert(name.clone(), None);
        let mut fields = Vec::new();
        for field in json.get("fields").and_then(Json::as_array).into_iter().flatten() {
            let field_name = field.get("name").and_then(Json::as_str);
            let field_name = field_name.ok_or_else(|| SchemaError::Unexpected(name.clone()))?;
            let node = self.member(field, "type", &namespace)?;
            let default = field.get("default").is_some_and(|default| !default.is_null());
            let optional = matches!(&node, Node::Union(branches) if branches.contains(&Node::Null));
            let null_or_default = default && optional;
            fields.push(Field { name: field_name.to_owned(), node, null_or_default });
        }
        let connect_name = json.get("connect.name").and_then(Json::as_str).map(str::to_owned);
        let node = Node::Record(Arc::new(Record { name: name.clone(), connect_name, fields }));
        self.named.insert(name, Some((node.clone(), self.nodes - before)));
        Ok(node)
    }

    fn define(&mut self, json: &Json, namespace: &str, node: Node) -> Result<Node, SchemaError> {
        let (name, _) = full_name(json, namespace)?;
        self.named.insert(name, Some((node.clone(), 1)));
        Ok(node)
    }

    fn by_name(
        &mut self,
        name: &str,
        semantic: Option<Semantic>,
        namespace: &str,
    ) -> Result<Node, SchemaError> {
        Ok(match name {
            "null" => Node::Null,
            "boolean" => Node::Boolean,
            "int" => Node::Int(semantic),
            "long" => Node::Long(semantic),
            "float" => Node::Float,
            "double" => Node::Double,
            "bytes" => Node::Bytes(semantic),
            "string" => Node::String(semantic),
            name => {
                let qualified = format!("{namespace}.{name}");
                let found = self.named.get(&qualified).or_else(|| self.named.get(name)).cloned();
                match found {
                    Some(Some((node, nodes))) => {
                        self.count(nodes)?;
                        node
                    }
                    Some(None) => return Err(SchemaError::Recursive(name.to_owned())),
                    None => return Err(SchemaError::Unexpected(name.to_owned())),
                }
            }
        })
    }
}

fn full_name(json: &Json, namespace: &str) -> Result<(String, String), SchemaError> {
    let name = json.get("name").and_then(Json::as_str);
    let name = name.ok_or_else(|| SchemaError::Unexpected(json.to_string()))?;
    if let Some((namespace, _)) = name.rsplit_once('.') {
        return Ok((name.to_owned(), namespace.to_owned()));
    }
    let namespace = json.get("namespace").and_then(Json::as_str).unwrap_or(namespace);
    let full = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") };
    Ok((full, namespace.to_owned()))
}

fn semantic(json: &Json) -> Option<Semantic> {
    let name = json.get("connect.name").and_then(Json::as_str).map(str::to_owned);
    // Some converters write Avro's own `logicalType: decimal` and no Connect name.
    let logical = json.get("logicalType").and_then(Json::as_str);
    let name = name.or_else(|| {
        (logical == Some("decimal")).then(|| "org.apache.kafka.connect.data.Decimal".to_owned())
    })?;
    let parameter = |name| json.get("connect.parameters").and_then(|all| all.get(name));
    let number = |name| parameter(name).and_then(Json::as_str).and_then(|text| text.parse().ok());
    let scale = number("scale").or_else(|| {
        json.get("scale").and_then(Json::as_i64).and_then(|scale| i32::try_from(scale).ok())
    });
    Some(Semantic { name, scale, length: number("length") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semantic_names_survive_on_primitives() {
        let node = parse(
            r#"{"type":"record","name":"Value","namespace":"s.public.t","fields":[
                {"name":"at","type":["null",{"type":"long","connect.name":"io.debezium.time.MicroTimestamp"}],"default":null},
                {"name":"price","type":{"type":"bytes","scale":2,"precision":10,"logicalType":"decimal",
                  "connect.name":"org.apache.kafka.connect.data.Decimal","connect.parameters":{"scale":"2"}}}]}"#,
            &[],
        )
        .expect("a valid schema");
        let Node::Record(record) = node else { panic!("a record") };
        let at =
            Semantic { name: "io.debezium.time.MicroTimestamp".into(), scale: None, length: None };
        let price = Semantic {
            name: "org.apache.kafka.connect.data.Decimal".into(),
            scale: Some(2),
            length: None,
        };
        assert_eq!(record.name, "s.public.t.Value");
        assert_eq!(record.fields[0].node, Node::Union(vec![Node::Null, Node::Long(Some(at))]));
        assert_eq!(record.fields[1].node, Node::Bytes(Some(price)));
    }

    #[test]
    fn a_type_defined_under_before_is_found_under_after() {
        let node = parse(
            r#"{"type":"record","name":"Envelope","namespace":"s.public.t","fields":[
                {"name":"before","type":["null",{"type":"record","name":"Value","fields":[{"name":"id","type":"long"}]}]},
                {"name":"after","type":["null","Value"]}]}"#,
            &[],
        )
        .expect("a valid schema");
        let Node::Record(record) = node else { panic!("a record") };
        assert_eq!(record.fields[0].node, record.fields[1].node);
    }

    #[test]
    fn an_attribute_that_means_something_else_is_refused() {
        let check = |attribute: &str, name: &str| {
            let of = r#"{"type":"record","name":"R","fields":[{"name":"a","default":null,"type":["null","T"]}]}"#;
            let inner = r#"{"type":"record","name":"I","fields":[],ATTRIBUTE}"#;
            let text = of.replace("\"T\"", &inner.replace("ATTRIBUTE", attribute));
            let refused = parse(&text, &[]);
            assert!(matches!(&refused, Err(SchemaError::Misused(it)) if it == name), "{refused:?}");
        };
        check(r#""values":2"#, "values");
        check(r#""items":[null]"#, "items");
        check(r#""scale":2.5"#, "scale");
        check(r#""symbols":true"#, "symbols");
    }

    /// Fifty names are enough: each type has the one before it twice.
    #[test]
    fn a_small_schema_of_a_huge_type_is_refused() {
        let chain = |length: usize| {
            let first = r#"{"type":"record","name":"R0","fields":[{"name":"a","type":"long"}]}"#;
            let fields = (1..=length).map(|number| {
                let inner = format!("R{}", number - 1);
                let two = format!(
                    r#"{{"name":"a","type":"{inner}"}},{{"name":"b","type":"{inner}"}}"#
                );
                format!(
                    r#"{{"name":"f{number}","type":{{"type":"record","name":"R{number}","fields":[{two}]}}}}"#
                )
            });
            let fields: Vec<String> = fields.collect();
            let first = format!(r#"{{"name":"f0","type":{first}}}"#);
            let fields = fields.join(",");
            parse(&format!(r#"{{"type":"record","name":"All","fields":[{first},{fields}]}}"#), &[])
        };
        assert!(chain(8).is_ok());
        let error = chain(50).map(drop).expect_err("2^50 values");
        assert!(error.to_string().contains("100000"), "{error}");
    }

    #[test]
    fn a_recursive_type_is_refused() {
        let error = parse(
            r#"{"type":"record","name":"A","fields":[{"name":"next","type":["null","A"]}]}"#,
            &[],
        );
        assert!(matches!(error, Err(SchemaError::Recursive(name)) if name == "A"));
    }
}
