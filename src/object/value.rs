//! What travels: updates as bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes are no such value, or it is of another version of the program.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{len} bytes are no {what}: {why}; run the same program at all members")]
pub struct Undecodable {
    what: &'static str,
    len: usize,
    why: String,
}

impl Undecodable {
    /// `len` bytes are no `T`.
    pub fn of<T>(len: usize, why: &impl ToString) -> Self {
        Self { what: std::any::type_name::<T>(), len, why: why.to_string() }
    }
}

/// Something that can be sent. Whatever serde can, in postcard's form; and [`Bytes`], as they are.
pub trait Value: Sized {
    /// Appends it to `bytes`.
    ///
    /// # Errors
    /// It has no form as bytes.
    fn encode(&self, bytes: &mut Vec<u8>) -> Result<(), Undecodable>;

    /// Makes it from bytes, all of them.
    ///
    /// # Errors
    /// They are none.
    fn decode(bytes: &[u8]) -> Result<Self, Undecodable>;
}

impl<T: Serialize + DeserializeOwned> Value for T {
    fn encode(&self, bytes: &mut Vec<u8>) -> Result<(), Undecodable> {
        postcard::to_io(self, bytes).map(|_| ()).map_err(|why| Undecodable::of::<T>(0, &why))
    }

    fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        match postcard::take_from_bytes(bytes) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(Undecodable::of::<T>(bytes.len(), &format!("{} are left over", rest.len()))),
            Err(why) => Err(Undecodable::of::<T>(bytes.len(), &why)),
        }
    }
}

/// Bytes that travel as they are, for objects with a form of their own.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Value for Bytes {
    fn encode(&self, bytes: &mut Vec<u8>) -> Result<(), Undecodable> {
        bytes.extend_from_slice(&self.0);
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        Ok(Self(bytes.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(value: &impl Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        value.encode(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn values_come_back() {
        let value = (7u32, String::from("seven"), Some(vec![1u8, 2]));
        assert_eq!(Value::decode(&bytes(&value)), Ok(value));
        let raw = Bytes(vec![0, 255, 3]);
        assert_eq!((bytes(&raw), Bytes::decode(&raw.0)), (vec![0, 255, 3], Ok(raw.clone())));
    }

    #[test]
    fn what_is_no_value_is_refused() {
        assert!(<(u32, String)>::decode(&[1]).is_err());
        let error = u8::decode(&[1, 2]).unwrap_err();
        assert!(error.to_string().contains("1 are left over"), "{error}");
    }
}
