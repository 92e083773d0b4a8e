//! Stepping over values that nobody asked for, which is most of an envelope. Pure.
//!
//! A schema is laid out as a list of steps once, so that a record walks along a list instead of through a
//! tree.

use crate::avro::{AvroError, Reader};
use crate::schema::Node;

/// How to step over values that follow each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skip {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// As many bytes.
    Fixed(usize),
    /// As many variable-length integers.
    Longs(usize),
    /// As many values that begin with their length.
    Texts(usize),
    /// The number of a branch, and what that says.
    Union(Vec<Skip>),
    /// Blocks of items; those of a map have a key before them.
    Blocks(Skip),
}

impl Skip {
    /// Over one value.
    pub fn over(node: &Node) -> Self {
        let mut skip = Self::default();
        skip.and(node);
        skip
    }

    /// Over the value that follows, too.
    pub fn and(&mut self, node: &Node) {
        match node {
            Node::Null => {}
            Node::Boolean => self.push(Step::Fixed(1)),
            Node::Float => self.push(Step::Fixed(4)),
            Node::Double => self.push(Step::Fixed(8)),
            Node::Fixed(length) => self.push(Step::Fixed(*length)),
            Node::Int(_) | Node::Long(_) | Node::Enum(_) => self.push(Step::Longs(1)),
            Node::Bytes(_) | Node::String(_) => self.push(Step::Texts(1)),
            Node::Union(branches) => {
                self.push(Step::Union(branches.iter().map(Self::over).collect()));
            }
            Node::Array(item) => self.push(Step::Blocks(Self::over(item))),
            Node::Map(item) => {
                let mut pair = Self { steps: vec![Step::Texts(1)] };
                pair.and(item);
                self.push(Step::Blocks(pair));
            }
            Node::Record(record) => record.fields.iter().for_each(|field| self.and(&field.node)),
        }
    }

    /// Appends a step, or lengthens the last one.
    fn push(&mut self, step: Step) {
        match (self.steps.last_mut(), step) {
            (Some(Step::Fixed(before)), Step::Fixed(more))
            | (Some(Step::Longs(before)), Step::Longs(more))
            | (Some(Step::Texts(before)), Step::Texts(more)) => {
                *before = before.saturating_add(more);
            }
            (_, step) => self.steps.push(step),
        }
    }

    /// Moves `reader` behind the values.
    pub fn step_over(&self, reader: &mut Reader<'_>) -> Result<(), AvroError> {
        for step in &self.steps {
            match step {
                Step::Fixed(length) => drop(reader.fixed(*length)?),
                Step::Longs(count) => (0..*count).try_for_each(|_| reader.skip_long())?,
                Step::Texts(count) => (0..*count).try_for_each(|_| reader.skip_bytes())?,
                Step::Union(branches) => {
                    let branch = reader.branch(branches)?;
                    // Mostly a null or a number: they need no call.
                    match branch.steps.as_slice() {
                        [] => {}
                        [Step::Longs(1)] => reader.skip_long()?,
                        _ => branch.step_over(reader)?,
                    }
                }
                Step::Blocks(item) => loop {
                    let count = reader.block()?;
                    if count == 0 {
                        break;
                    }
                    for _ in 0..count {
                        item.step_over(reader)?;
                    }
                },
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn what_is_skipped_is_what_would_be_read() {
        let check =
            |node: &Node, bytes: &[u8], read: fn(&mut Reader<'_>) -> Result<(), AvroError>| {
                let (mut skipped, mut taken) = (Reader::new(bytes), Reader::new(bytes));
                assert_eq!(Skip::over(node).step_over(&mut skipped), read(&mut taken), "{bytes:?}");
                assert_eq!(skipped.rest().len(), taken.rest().len(), "{bytes:?}");
            };
        let long = |bytes: &[u8]| check(&Node::Long(None), bytes, |it| it.long().map(drop));
        long(&[0, 9]);
        long(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 9]);
        long(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 9]);
        let text = |bytes: &[u8]| check(&Node::String(None), bytes, |it| it.bytes().map(drop));
        text(&[0, 9]);
        text(&[4, b'a', b'b', 9]);
        let mut longer = vec![0x80, 0x01];
        longer.extend([b'a'; 65]);
        text(&longer);
        for bytes in [&[0xff; 11][..], &[0x80], &[]] {
            assert!(Skip::over(&Node::Long(None)).step_over(&mut Reader::new(bytes)).is_err());
        }
        for bytes in [&[4, b'a'][..], &[1], &[]] {
            assert!(Skip::over(&Node::String(None)).step_over(&mut Reader::new(bytes)).is_err());
        }
    }

    #[test]
    fn an_array_is_skipped_in_either_block_form() {
        let node = Node::Array(Box::new(Node::Int(None)));
        let check = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes);
            Skip::over(&node).step_over(&mut reader).expect("a well-formed array");
            reader.finish().expect("nothing is left");
        };
        check(&[0]);
        check(&[4, 2, 4, 0]);
        check(&[3, 4, 2, 4, 0]);
    }

    #[test]
    fn a_value_of_any_shape_is_skipped_to_its_end_and_no_further() {
        let check = |schema: &str, bytes: &[u8]| {
            let skip = Skip::over(&schema::parse(schema, &[]).expect("a supported schema"));
            let followed = [bytes, &[9]].concat();
            let mut reader = Reader::new(&followed);
            assert_eq!(skip.step_over(&mut reader), Ok(()), "{schema}");
            assert_eq!(reader.rest(), [9], "{schema}");
            if let Some((_, cut)) = bytes.split_last() {
                assert!(skip.step_over(&mut Reader::new(cut)).is_err(), "{schema}");
            }
        };
        check(r#""null""#, &[]);
        check(r#""boolean""#, &[1]);
        check(r#""double""#, &[0; 8]);
        check(r#"["null", "long"]"#, &[0]);
        check(r#"["null", "long"]"#, &[2, 0x80, 1]);
        check(r#"["string", "null"]"#, &[0, 2, b'a']);
        check(r#"{"type": "map", "values": ["null", "int"]}"#, &[4, 2, b'a', 0, 0, 2, 1, 0]);
        let fields = r#"[{"name": "a", "type": "float"}, {"name": "b", "type": "boolean"},
            {"name": "c", "type": "string"}, {"name": "d", "type": "bytes"},
            {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["X"]}},
            {"name": "f", "type": {"type": "array", "items": "string"}}]"#;
        let record = format!(r#"{{"type": "record", "name": "R", "fields": {fields}}}"#);
        check(&record, &[0, 0, 0, 0, 1, 2, b'a', 0, 0, 2, 4, b'a', b'b', 0]);
        let skip = Skip::over(&Node::Union(vec![Node::Null]));
        let beyond = skip.step_over(&mut Reader::new(&[2]));
        assert_eq!(beyond, Err(AvroError::UnknownBranch(1)));
    }
}
