//! Avro's binary encoding, read in place.
//!
//! Only what a record on its way to a view needs: primitives and lengths. Schemas are parsed elsewhere
//! ([`crate::schema`]), whole values are stepped over there ([`crate::skip`]). Bytes come from the network,
//! so every read is checked and nothing here panics, or allocates by a length it was told.

/// Why bytes are not what their schema says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AvroError {
    #[error("the value ends before its schema does")]
    Truncated,
    #[error("a variable-length integer has more than 64 bits")]
    VarintTooLong,
    #[error("an integer does not fit into 32 bits")]
    IntOverflow,
    #[error("a length is negative or longer than the rest of the value")]
    BadLength,
    #[error("a boolean is neither 0 nor 1")]
    BadBoolean,
    #[error("a string is not UTF-8")]
    NotUtf8,
    #[error("a union names branch {0}, which its schema does not have")]
    UnknownBranch(i64),
    #[error("an enum names symbol {0}, which its schema does not have")]
    UnknownSymbol(i64),
    #[error("{0} bytes follow the value")]
    TrailingBytes(usize),
}

/// A cursor over one Avro value.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Fails when the value was longer than its schema.
    pub fn finish(self) -> Result<(), AvroError> {
        if self.rest.is_empty() { Ok(()) } else { Err(AvroError::TrailingBytes(self.rest.len())) }
    }

    pub fn boolean(&mut self) -> Result<bool, AvroError> {
        match self.fixed(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(AvroError::BadBoolean),
        }
    }

    /// Zigzag variable-length integer: the encoding of `long`, of lengths and of union branches.
    pub fn long(&mut self) -> Result<i64, AvroError> {
        // Most are branches, lengths and flags of one byte.
        if let Some((&byte, rest)) = self.rest.split_first()
            && byte < 0x80
        {
            self.rest = rest;
            return Ok(i64::from(byte >> 1) ^ -i64::from(byte & 1));
        }
        let mut value: u64 = 0;
        let mut shift = 0;
        loop {
            let (&byte, rest) = self.rest.split_first().ok_or(AvroError::Truncated)?;
            self.rest = rest;
            if shift == 63 && byte > 1 {
                return Err(AvroError::VarintTooLong);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
        }
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    pub fn int(&mut self) -> Result<i32, AvroError> {
        i32::try_from(self.long()?).map_err(|_| AvroError::IntOverflow)
    }

    pub fn float(&mut self) -> Result<f32, AvroError> {
        let bytes = self.fixed(4)?.try_into().map_err(|_| AvroError::Truncated)?;
        Ok(f32::from_le_bytes(bytes))
    }

    pub fn double(&mut self) -> Result<f64, AvroError> {
        let bytes = self.fixed(8)?.try_into().map_err(|_| AvroError::Truncated)?;
        Ok(f64::from_le_bytes(bytes))
    }

    pub fn fixed(&mut self, length: usize) -> Result<&'a [u8], AvroError> {
        let (value, rest) = self.rest.split_at_checked(length).ok_or(AvroError::Truncated)?;
        self.rest = rest;
        Ok(value)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], AvroError> {
        let length = usize::try_from(self.long()?).map_err(|_| AvroError::BadLength)?;
        if length > self.rest.len() {
            return Err(AvroError::BadLength);
        }
        self.fixed(length)
    }

    pub fn string(&mut self) -> Result<&'a str, AvroError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| AvroError::NotUtf8)
    }

    /// Item count of the next block of an array or map; 0 ends it.
    ///
    /// A block cannot hold more items than bytes are left: the schemas met here have no items of size
    /// zero, and without the limit a hostile count would spin for ever.
    pub fn block(&mut self) -> Result<usize, AvroError> {
        let mut count = self.long()?;
        if count < 0 {
            self.long()?; // the block's size in bytes, given when the count is negative
            count = count.checked_neg().ok_or(AvroError::BadLength)?;
        }
        let count = usize::try_from(count).map_err(|_| AvroError::BadLength)?;
        if count > self.rest.len() { Err(AvroError::BadLength) } else { Ok(count) }
    }

    /// The branch a union value takes.
    pub fn branch<'n, B>(&mut self, branches: &'n [B]) -> Result<&'n B, AvroError> {
        let index = self.long()?;
        usize::try_from(index)
            .ok()
            .and_then(|index| branches.get(index))
            .ok_or(AvroError::UnknownBranch(index))
    }

    /// Steps over a [`Self::long`]. Eight bytes cannot hold too much; more are read to see.
    pub fn skip_long(&mut self) -> Result<(), AvroError> {
        const CONTINUED: u64 = 0x8080_8080_8080_8080;
        if let Some(bytes) = self.rest.first_chunk() {
            let ends = !u64::from_le_bytes(*bytes) & CONTINUED;
            if ends != 0 {
                let length = ends.trailing_zeros() as usize / 8 + 1;
                self.rest = self.rest.get(length..).unwrap_or_default();
                return Ok(());
            }
        }
        self.long().map(drop)
    }

    /// Steps over [`Self::bytes`]. A length of one byte that is not negative, as most are, needs no decoding.
    pub fn skip_bytes(&mut self) -> Result<(), AvroError> {
        if let Some(&length) = self.rest.first().filter(|&&byte| byte & 0x81 == 0) {
            let end = 1 + usize::from(length >> 1);
            self.rest = self.rest.get(end..).ok_or(AvroError::BadLength)?;
            return Ok(());
        }
        self.bytes().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longs_are_zigzag_and_bounded() {
        let check = |bytes: &[u8], expected| assert_eq!(Reader::new(bytes).long(), expected);
        check(&[0], Ok(0));
        check(&[1], Ok(-1));
        check(&[2], Ok(1));
        check(&[0xac, 0x02], Ok(150));
        check(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Ok(i64::MIN));
        check(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Ok(i64::MAX));
        check(&[0xff; 11], Err(AvroError::VarintTooLong));
        check(&[0x80], Err(AvroError::Truncated));
        check(&[], Err(AvroError::Truncated));
    }

    #[test]
    fn lengths_never_reach_past_the_value() {
        assert_eq!(Reader::new(&[4, b'a']).bytes(), Err(AvroError::BadLength));
        assert_eq!(Reader::new(&[1]).bytes(), Err(AvroError::BadLength));
        assert_eq!(Reader::new(&[2, 0xff]).string(), Err(AvroError::NotUtf8));
        assert_eq!(Reader::new(&[200, 1]).block(), Err(AvroError::BadLength));
    }
}
